// Token and position embedding: minigpt/ops/embedding.py.

// x = wte[id] + wpe[start + t], one block of threads per token. A null wpe is 0.
extern "C" __global__ void __launch_bounds__(1024)
embedding_forward(const int* ids, const T* wte, const T* wpe, T* __restrict__ x, long long length,
                  long long C, long long start) {
  const long long row = blockIdx.x;
  wte += ids[row] * C;
  if (wpe) wpe += (start + row % length) * C;
  for (long long c = EACH * threadIdx.x; c < C; c += EACH * blockDim.x) {
    float v[EACH], position[EACH] = {};
    load_chunk(wte + c, C - c, v);
    if (wpe) load_chunk(wpe + c, C - c, position);
    for (int i = 0; i < EACH; ++i) v[i] += position[i];
    store_chunk(x + row * C + c, C - c, v);
  }
}

// ---- The backward pass: sums of rows of dy ----

// A block of EMBEDDING_THREADS computes EMBEDDING_CHANNELS of one row of a gradient. Each warp sums
// up its share of the rows of dy; then one thread per channel sums up the results of the warps.
constexpr int EMBEDDING_THREADS = 512, EMBEDDING_CHANNELS = 512;
constexpr int EMBEDDING_PARTS = EMBEDDING_CHANNELS / (EACH * 32);  // chunks per lane of 32

struct RowSum {
  float sum[EMBEDDING_PARTS][EACH];
  long long first, C;  // the first channel of this block, and their number

  // The first channel, within the block, of part k of this lane.
  __device__ static int channel(int k) {
    return EACH * (threadIdx.x % warpSize + k * warpSize);
  }

  __device__ void add(const T* row) {
    for (int k = 0; k < EMBEDDING_PARTS; ++k) {
      const int c = channel(k);
      if (c >= EMBEDDING_CHANNELS || first + c >= C) break;
      float v[EACH];
      load_chunk(row + first + c, C - first - c, v);
      for (int i = 0; i < EACH; ++i) sum[k][i] += v[i];
    }
  }

  // The sum over the warps, in order, for channel first + threadIdx.x.
  __device__ float total() const {
    __shared__ float sums[EMBEDDING_THREADS / 32][EMBEDDING_CHANNELS];
    for (int k = 0; k < EMBEDDING_PARTS && channel(k) < EMBEDDING_CHANNELS; ++k)
      for (int i = 0; i < EACH; ++i) sums[threadIdx.x / warpSize][channel(k) + i] = sum[k][i];
    __syncthreads();
    float total = 0.0f;
    for (int warp = 0; warp < EMBEDDING_THREADS / warpSize; ++warp)
      total += sums[warp][threadIdx.x];
    return total;
  }
};

// Tells whether the id of token n also occurs before it; searches backwards.
__device__ inline bool stands_before(const int* ids, int n) {
  for (int last = n - 1; last >= 0; last -= blockDim.x) {
    const int m = last - (int)threadIdx.x;
    if (__syncthreads_or(m >= 0 && ids[m] == ids[n])) return true;
  }
  return false;
}

// Put or add a sum where it belongs: in an array of T or, where that is null, of float.
__device__ inline void put_sum(T* low, float* wide, long long i, float sum, bool add) {
  if (add) sum += low ? (float)low[i] : wide[i];
  if (low)
    low[i] = (T)sum;
  else
    wide[i] = sum;
}

// dwte += onehot(ids)^T @ dy, and dwpe = the sums of dy over the batch, 0 at unused positions.
//
// The first `owners` blocks are for dwte: with by_id, one per id of the (small) vocabulary; else
// one per token, which returns at once unless its token is the first with its id. The other blocks
// are for dwpe, one per position. The N tokens are rows of `length` that begin at position `start`.
// With `add`, dwpe is added to what is there. A gradient in float, where T is not, has the name
// `wide_...`, and the other pointer is null.
extern "C" __global__ void __launch_bounds__(EMBEDDING_THREADS)
embedding_backward(const T* dy, const int* ids, T* __restrict__ dwte, float* __restrict__ wide_wte,
                   T* __restrict__ dwpe, float* __restrict__ wide_wpe, long long N,
                   long long length, long long C, long long owners, long long by_id,
                   long long start, long long add) {
  const int lane = threadIdx.x % warpSize, warp = threadIdx.x / warpSize;
  const int warps = EMBEDDING_THREADS / warpSize;
  const long long c = (long long)blockIdx.y * EMBEDDING_CHANNELS + threadIdx.x;
  RowSum rows = {{}, (long long)blockIdx.y * EMBEDDING_CHANNELS, C};
  if (blockIdx.x >= owners) {
    const long long position = blockIdx.x - owners, t = position - start;
    for (long long n = t + warp * length; t >= 0 && t < length && n < N; n += warps * length)
      rows.add(dy + n * C);
    const float sum = rows.total();
    if (c < C) put_sum(dwpe, wide_wpe, position * C + c, sum, add);
    return;
  }
  if (!by_id && stands_before(ids, blockIdx.x)) return;
  const int id = by_id ? (int)blockIdx.x : ids[blockIdx.x];
  for (long long first = warp * warpSize; first < N; first += EMBEDDING_THREADS) {
    unsigned long long found = warp_ballot(first + lane < N && ids[first + lane] == id);
    for (; found; found &= found - 1) rows.add(dy + (first + __ffsll(found) - 1) * C);
  }
  const float sum = rows.total();
  if (c < C) put_sum(dwte, wide_wte, id * C + c, sum, true);
}
