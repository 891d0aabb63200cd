// The backward pass of attention on tensor cores; see attention_mma.cu, and attention_backward.cu
// for what it computes.

#ifdef ATTENTION_MMA
namespace attention_mma {

// sum(x * y) of the rows of x, where y (count, width) is read; for all lanes of a row.
template <int R, int D>
__device__ inline void row_dots(const Still<R, D>& x, const Still<R, D>& y, float (&sum)[R][2]) {
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int h = 0; h < 2; ++h) {
      sum[r][h] = 0.0f;
      UNROLL for (int k = 0; k < D / 16; ++k)
        UNROLL for (int i = h; i < 4; i += 2) {
          Pair a, b;
          a.word = x.at[r][k].at[i];
          b.word = y.at[r][k].at[i];
          UNROLL for (int e = 0; e < 2; ++e) sum[r][h] += (float)a.at[e] * (float)b.at[e];
        }
      sum[r][h] = row_reduce<Sum>(sum[r][h]);
    }
}

// For one query and key: turn the score s into the weight, and dropout(dy . v) into ds.
__device__ inline void weigh(float scale, float lse, float delta, float& s, float& ds) {
  s = exp2f(s * scale - lse);
  ds = s * (ds - delta);
}

// delta and dq.
template <int D, int R, int N, int CHUNK>
__device__ inline void backward_queries(const T* q, const T* k, const T* v, const bool* seen,
                                        const T* y, const T* dy, const float* lse, float* delta,
                                        T* dq, const Problem& p) {
  __shared__ Tile<N, D> keys[2], values[2];
  const Head at(p, seen);
  const auto [i, stop, own_stop] = queries_of<R>(at);
  k = at.of(k, p.k);
  v = at.of(v, p.v);
  Copies copies;
  keys[0].fetch(copies, k, p.k, 0, p.keys, p.width);
  values[0].fetch(copies, v, p.v, 0, p.keys, p.width);
  const Still<R, D> queries(at.of(q, p.q), p.q, i, p.queries, p.width);
  const Still<R, D> dys(at.of(dy, p.dy), p.dy, i, p.queries, p.width);
  float total[R][2], norm[R][2], scale[R][2];
  row_dots(dys, Still<R, D>(at.of(y, p.y), p.y, i, p.queries, p.width), total);
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int h = 0; h < 2; ++h) {
      const int query = i + 16 * r + 8 * h + g();
      const bool inside = query < p.queries;
      if (inside && t() == 0) delta[at.query(query)] = total[r][h];
      norm[r][h] = inside ? lse[at.query(query)] * LOG2_E : 0.0f;
      scale[r][h] = at.scale;
    }
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
      Sums<R, CHUNK> s, ds;
      scores(queries, keys[now], c, s);
      scores(dys, values[now], c, ds);
      hide<false>(at, i, tile + c, s);
      drop(at, kept, gain(p), ds);
      UNROLL for (int r = 0; r < R; ++r)
        UNROLL for (int n = 0; n < CHUNK / 8; ++n)
          UNROLL for (int e = 0; e < 4; ++e)
            weigh(at.scale * LOG2_E, norm[r][e / 2], total[r][e / 2], s.at[r][n][e],
                  ds.at[r][n][e]);
      mix(ds, keys[now], c, sums);
    }
  }
  copies.wait();  // where no tile was of use
  store(sums, scale, at.of(dq, p.dq), p.dq, i, p.queries, p.width);
}

// dk and dv; rows are keys here, and columns queries.
template <int D, int R, int N, int CHUNK>
__device__ inline void backward_keys(const T* q, const T* k, const T* v, const bool* seen,
                                     const T* dy, const float* lse, const float* delta, T* dk,
                                     T* dv, const Problem& p) {
  __shared__ Tile<THREADS / 2 * R, D> value_tile;  // there are not enough registers for all
  __shared__ Tile<N, D> queries[2], dys[2];
  __shared__ float norms[2][2 * N];  // lse, and behind them delta
  const Head at(p, seen);
  const int start = blockIdx.y * THREADS / 2 * R, j = start + warp() * 16 * R;
  const int begin = p.causal ? max(0, start - at.past) : 0;  // the first query that sees any
  q = at.of(q, p.q);
  dy = at.of(dy, p.dy);
  Copies copies;
  auto fetch_tile = [&](int to, int first) {
    queries[to].fetch(copies, q, p.q, first, p.queries, p.width);
    dys[to].fetch(copies, dy, p.dy, first, p.queries, p.width);
    const int own = threadIdx.x % N;  // each thread fetches one of these numbers
    const float* numbers = (threadIdx.x < N ? lse : delta) + at.query(0);
    const bool inside = first + own < p.queries;
    if (threadIdx.x < 2 * N)
      copies.start<4>(norms[to] + threadIdx.x, numbers + (inside ? first + own : 0), inside);
  };
  fetch_tile(0, begin);
  value_tile.fetch(copies, at.of(v, p.v), p.v, start, p.keys, p.width);
  const Still<R, D> keys(at.of(k, p.k), p.k, j, p.keys, p.width);
  const StillInTile<THREADS / 2 * R, D> values{value_tile, j - start};
  Sums<R, D> dk_sums, dv_sums;
  for (int tile = begin, now = 0; tile < p.queries; tile += N, now = !now) {
    copies.wait();
    __syncthreads();  // all have this tile, and have left the one before
    if (tile + N < p.queries) fetch_tile(!now, tile + N);
    const int unseeing =  // queries that see none of the warp's keys
        j >= p.keys ? N : p.causal ? max(0, j - at.past - tile) : 0;
#pragma unroll 1
    for (int c = unseeing / CHUNK * CHUNK; c < N && tile + c < p.queries; c += CHUNK) {
      const unsigned long long kept = keep<true, R, CHUNK>(at, j, tile + c);
      Sums<R, CHUNK> s, ds;
      scores(keys, queries[now], c, s);
      scores(values, dys[now], c, ds);
      hide<true>(at, j, tile + c, s);
      drop(at, kept, gain(p), ds);
      UNROLL for (int n = 0; n < CHUNK / 8; ++n)
        UNROLL for (int e = 0; e < 4; ++e) {
          const int column = c + 8 * n + 2 * t() + e % 2;
          const float norm = norms[now][column] * LOG2_E, total = norms[now][N + column];
          UNROLL for (int r = 0; r < R; ++r)
            weigh(at.scale * LOG2_E, norm, total, s.at[r][n][e], ds.at[r][n][e]);
        }
      drop(at, kept, 1.0f, s);
      mix(s, dys[now], c, dv_sums);
      mix(ds, queries[now], c, dk_sums);
    }
  }
  copies.wait();  // where no tile was of use
  float dk_factor[R][2], dv_factor[R][2];
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int h = 0; h < 2; ++h) dk_factor[r][h] = at.scale, dv_factor[r][h] = gain(p);
  store(dk_sums, dk_factor, at.of(dk, p.dk), p.dk, j, p.keys, p.width);
  store(dv_sums, dv_factor, at.of(dv, p.dv), p.dv, j, p.keys, p.width);
}

}  // namespace attention_mma

// Kernels for heads of up to D numbers; blocks have 64 R queries or keys.
#define ATTENTION_MMA_QUERIES(D, R, N, CHUNK, BLOCKS)                                             \
  extern "C" __global__ __launch_bounds__(attention_mma::THREADS, BLOCKS) void                    \
      attention_mma_backward_queries_##D(const T* q, const T* k, const T* v, const bool* seen,    \
                                         const T* y, const T* dy, const float* lse, float* delta, \
                                         T* dq, attention::Problem p) {                           \
    attention_mma::backward_queries<D, R, N, CHUNK>(q, k, v, seen, y, dy, lse, delta, dq, p);     \
  }
#define ATTENTION_MMA_KEYS(D, R, N, CHUNK, BLOCKS)                                                \
  extern "C" __global__ __launch_bounds__(attention_mma::THREADS, BLOCKS) void                    \
      attention_mma_backward_keys_##D(const T* q, const T* k, const T* v, const bool* seen,       \
                                      const T* dy, const float* lse, const float* delta, T* dk,   \
                                      T* dv, attention::Problem p) {                              \
    attention_mma::backward_keys<D, R, N, CHUNK>(q, k, v, seen, dy, lse, delta, dk, dv, p);       \
  }

ATTENTION_MMA_QUERIES(32, 2, 64, 16, 3)
ATTENTION_MMA_QUERIES(64, 2, 64, 16, 2)
ATTENTION_MMA_QUERIES(128, 1, 32, 32, 2)
ATTENTION_MMA_KEYS(32, 2, 64, 32, 2)
ATTENTION_MMA_KEYS(64, 2, 32, 16, 2)
ATTENTION_MMA_KEYS(128, 1, 16, 16, 2)
#endif
