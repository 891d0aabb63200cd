// The forward pass of attention on tensor cores; see attention_mma.cu.

#ifdef ATTENTION_MMA
namespace attention_mma {

// Turn rows of scores into weights, still to be divided by their total, and scale down the sums so
// far; lines 9 and 10 of FlashAttention-2's algorithm 1. Of each row a lane has its own total.
template <int R, int N, int D>
__device__ inline void online_softmax(float scale, Sums<R, N>& s, float (&top)[R][2],
                                      float (&total)[R][2], Sums<R, D>& sums) {
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int h = 0; h < 2; ++h) {
      float most = top[r][h];
      UNROLL for (int n = 0; n < N / 8; ++n)
        most = fmaxf(most, fmaxf(s.at[r][n][2 * h], s.at[r][n][2 * h + 1]));
      most = row_reduce<Max>(most);
      const float shift = most == minus_infinity() ? 0.0f : most * scale;  // has seen nothing yet
      const float fade = exp2f(top[r][h] * scale - shift);
      top[r][h] = most;
      total[r][h] *= fade;
      UNROLL for (int n = 0; n < N / 8; ++n)
        UNROLL for (int e = 2 * h; e < 2 * h + 2; ++e) {
          s.at[r][n][e] = exp2f(s.at[r][n][e] * scale - shift);
          total[r][h] += s.at[r][n][e];
        }
      UNROLL for (int n = 0; n < D / 8; ++n)
        UNROLL for (int e = 2 * h; e < 2 * h + 2; ++e) sums.at[r][n][e] *= fade;
    }
}

template <int D, int R, int N, int CHUNK>
__device__ inline void forward(const T* q, const T* k, const T* v, const bool* seen, T* y,
                               float* lse, const Problem& p) {
  __shared__ Tile<N, D> keys[2], values[2];
  const Head at(p, seen);
  const auto [i, stop, own_stop] = queries_of<R>(at);
  k = at.of(k, p.k);
  v = at.of(v, p.v);
  Copies copies;
  keys[0].fetch(copies, k, p.k, 0, p.keys, p.width);
  values[0].fetch(copies, v, p.v, 0, p.keys, p.width);
  const Still<R, D> queries(at.of(q, p.q), p.q, i, p.queries, p.width);
  float top[R][2], total[R][2] = {};
  UNROLL for (int r = 0; r < R; ++r) top[r][0] = top[r][1] = minus_infinity();
  Sums<R, D> sums;
  for (int tile = 0; tile < stop; tile += N) {
    const int now = tile / N % 2;
    copies.wait();
    __syncthreads();  // all have this tile, and have left the one before
    if (tile + N < stop) {
      keys[!now].fetch(copies, k, p.k, tile + N, p.keys, p.width);
      values[!now].fetch(copies, v, p.v, tile + N, p.keys, p.width);
    }
#pragma unroll 1
    for (int c = 0; c < N && tile + c < own_stop; c += CHUNK) {
      const unsigned long long kept = keep<false, R, CHUNK>(at, i, tile + c);
      Sums<R, CHUNK> s;
      scores(queries, keys[now], c, s);
      hide<false>(at, i, tile + c, s);
      online_softmax(at.scale * LOG2_E, s, top, total, sums);
      drop(at, kept, 1.0f, s);
      mix(s, values[now], c, sums);
    }
  }
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int h = 0; h < 2; ++h) {
      total[r][h] = row_reduce<Sum>(total[r][h]);
      const bool nothing = total[r][h] == 0.0f;
      const int query = i + 16 * r + 8 * h + g();
      if (t() == 0 && query < p.queries)
        lse[at.query(query)] = nothing ? 0.0f : top[r][h] * at.scale + logf(total[r][h]);
      total[r][h] = nothing ? 0.0f : gain(p) / total[r][h];
    }
  copies.wait();  // where no tile was of use
  store(sums, total, at.of(y, p.y), p.y, i, p.queries, p.width);
}

}  // namespace attention_mma

// Kernels for heads of up to D numbers; blocks have 64 R queries.
#define ATTENTION_MMA_FORWARD(D, R, N, CHUNK, BLOCKS)                                             \
  extern "C" __global__ __launch_bounds__(attention_mma::THREADS, BLOCKS) void                    \
      attention_mma_forward_##D(const T* q, const T* k, const T* v, const bool* seen, T* y,       \
                                float* lse, attention::Problem p) {                               \
    attention_mma::forward<D, R, N, CHUNK>(q, k, v, seen, y, lse, p);                             \
  }

ATTENTION_MMA_FORWARD(32, 2, 64, 32, 3)
ATTENTION_MMA_FORWARD(64, 2, 64, 64, 2)
ATTENTION_MMA_FORWARD(128, 1, 32, 32, 2)
#endif
