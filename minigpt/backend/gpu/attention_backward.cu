// The backward pass of attention by tiles; see attention.cu. With the weights w = exp(s - lse):
//
//   dv = dropout(w)^T @ dy
//   ds = w * (dropout(dy @ v^T) - delta)    where delta = sum(dy * y) is sum_j w_ij dw_ij
//   dq = ds @ k / sqrt(D)
//   dk = ds^T @ q / sqrt(D)

namespace attention {

// sum(dy * y) of one query, returned to all threads of its row.
__device__ inline float delta_of(const float* dy, const T* y, int width) {
  float sum = 0.0f;
  for (int d = across(); d < width; d += ACROSS) sum += dy[d] * (float)y[d];
  return across_reduce<Sum>(sum);
}

// For one query and key: turn the score s into the weight after dropout, and dy . v into ds.
__device__ inline void weigh(const Head& at, bool visible, float lse, float delta, float factor,
                             float& s, float& ds) {
  const float w = visible ? expf(s * at.scale - lse) : 0.0f;
  s = w * factor;
  ds = w * (ds * factor - delta);
}

// delta and dq.
template <int D, int R, int C>
__device__ inline void backward_queries(const T* q, const T* k, const T* v, const bool* seen,
                                        const T* y, const T* dy, const float* lse, float* delta,
                                        T* dq, const Problem& p) {
  __shared__ Tile<R * DOWN, D> queries, dys;
  __shared__ Tile<C * ACROSS, D> keys, values;
  __shared__ Tile<R * DOWN, C * ACROSS> exchange;
  const Head at(p, seen);
  const int start = (gridDim.y - 1 - blockIdx.y) * R * DOWN, i = start + down() * R;
  const int last = min(start + R * DOWN, p.queries) - 1;
  const int stop = p.causal ? min(p.keys, last + at.past + 1) : p.keys;
  k = at.of(k, p.k);
  v = at.of(v, p.v);
  y = at.of(y, p.y);
  load(queries, at.of(q, p.q), p.q, start, p.queries, p.width);
  load(dys, at.of(dy, p.dy), p.dy, start, p.queries, p.width);
  __syncthreads();
  float total[R], norm[R], scale[R], s[R][C], ds[R][C];
  UNROLL for (int r = 0; r < R; ++r) {
    const bool inside = i + r < p.queries;
    const T* row = y + (i + r) * p.y.row;
    total[r] = delta_of(dys.at[r * DOWN + down()], row, inside ? p.width : 0);
    if (inside && across() == 0) delta[at.query(i + r)] = total[r];
    norm[r] = inside ? lse[at.query(i + r)] : 0.0f;
    scale[r] = at.scale;
  }
  Sums<R, D> sums = {};
  Share<C * ACROSS, D> share_k, share_v;
  fetch(share_k, k, p.k, 0, p.keys, p.width);
  fetch(share_v, v, p.v, 0, p.keys, p.width);
  for (int tile = 0; tile < stop; tile += C * ACROSS) {
    put<ACROSS>(share_k, keys);
    put<ACROSS>(share_v, values);
    __syncthreads();
    fetch(share_k, k, p.k, tile + C * ACROSS, p.keys, p.width);
    fetch(share_v, v, p.v, tile + C * ACROSS, p.keys, p.width);
    dots(queries, keys, s);
    dots(dys, values, ds);
    const int j = tile + across() * C;
    bool real[C];
    UNROLL for (int c = 0; c < C; ++c) real[c] = at.real(j + c);
    UNROLL for (int r = 0; r < R; ++r) {
      float factor[C];
      at.drop(i + r, j, factor);
      UNROLL for (int c = 0; c < C; ++c) {
        const bool visible = real[c] && at.sees(i + r, j + c);
        weigh(at, visible, norm[r], total[r], factor[c], s[r][c], ds[r][c]);
      }
    }
    gather(ds, exchange, keys, sums);
  }
  store(sums, scale, at.of(dq, p.dq), p.dq, start, p.queries, p.width);
}

// dk and dv; rows are keys here, and columns queries.
template <int D, int R, int C>
__device__ inline void backward_keys(const T* q, const T* k, const T* v, const bool* seen,
                                     const T* dy, const float* lse, const float* delta, T* dk,
                                     T* dv, const Problem& p) {
  __shared__ Tile<R * DOWN, D> keys, values;
  __shared__ Tile<C * ACROSS, D> queries, dys;
  __shared__ Tile<R * DOWN, C * ACROSS> exchange;
  const Head at(p, seen);
  const int start = blockIdx.y * R * DOWN, j = start + down() * R;
  const int begin = p.causal ? max(0, start - at.past) : 0;  // the first query that sees any
  q = at.of(q, p.q);
  dy = at.of(dy, p.dy);
  load(keys, at.of(k, p.k), p.k, start, p.keys, p.width);
  load(values, at.of(v, p.v), p.v, start, p.keys, p.width);
  bool real[R];
  float scale[R], one[R], s[R][C], ds[R][C];
  UNROLL for (int r = 0; r < R; ++r) {
    real[r] = at.real(j + r);
    scale[r] = at.scale;
    one[r] = 1.0f;
  }
  Sums<R, D> dk_sums = {}, dv_sums = {};
  Share<C * ACROSS, D> share_q, share_dy;
  fetch(share_q, q, p.q, begin, p.queries, p.width);
  fetch(share_dy, dy, p.dy, begin, p.queries, p.width);
  for (int tile = begin; tile < p.queries; tile += C * ACROSS) {
    put<ACROSS>(share_q, queries);
    put<ACROSS>(share_dy, dys);
    __syncthreads();
    fetch(share_q, q, p.q, tile + C * ACROSS, p.queries, p.width);
    fetch(share_dy, dy, p.dy, tile + C * ACROSS, p.queries, p.width);
    dots(keys, queries, s);
    dots(values, dys, ds);
    UNROLL for (int c = 0; c < C; ++c) {
      const int i = tile + across() * C + c;
      const float norm = i < p.queries ? lse[at.query(i)] : 0.0f;
      const float total = i < p.queries ? delta[at.query(i)] : 0.0f;
      float factor[R];
      at.drop(i, j, factor);
      UNROLL for (int r = 0; r < R; ++r) {
        const bool visible = real[r] && at.sees(i, j + r);
        weigh(at, visible, norm, total, factor[r], s[r][c], ds[r][c]);
      }
    }
    gather(s, exchange, dys, dv_sums);
    gather(ds, exchange, queries, dk_sums);
  }
  store(dk_sums, scale, at.of(dk, p.dk), p.dk, start, p.keys, p.width);
  store(dv_sums, one, at.of(dv, p.dv), p.dv, start, p.keys, p.width);
}

}  // namespace attention

// Kernels for heads of up to D numbers; the tiles fit 48 KB of shared memory.
#define ATTENTION_BACKWARD(D, R, C)                                                               \
  extern "C" __global__ __launch_bounds__(attention::THREADS, attention::BLOCKS) void             \
      attention_backward_queries_##D(const T* q, const T* k, const T* v, const bool* seen,        \
                                     const T* y, const T* dy, const float* lse, float* delta,     \
                                     T* dq, attention::Problem p) {                               \
    attention::backward_queries<D, R, C>(q, k, v, seen, y, dy, lse, delta, dq, p);                \
  }                                                                                               \
  extern "C" __global__ __launch_bounds__(attention::THREADS, attention::BLOCKS) void             \
      attention_backward_keys_##D(const T* q, const T* k, const T* v, const bool* seen,           \
                                  const T* dy, const float* lse, const float* delta, T* dk,       \
                                  T* dv, attention::Problem p) {                                  \
    attention::backward_keys<D, R, C>(q, k, v, seen, dy, lse, delta, dk, dv, p);                  \
  }

ATTENTION_BACKWARD(32, 4, 4)
ATTENTION_BACKWARD(64, 4, 2)
ATTENTION_BACKWARD(128, 2, 1)
