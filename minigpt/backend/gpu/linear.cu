// Biases of linear layers, and sums over rows.

// y += b, for rows of y (N, C).
extern "C" __global__ void __launch_bounds__(512)
add_bias(T* y, const T* b, long long N, long long C) {
  const Columns at(C);
  float bias[EACH];
  load_chunk(b + at.c, at.n, bias);
  for (long long row = at.row; row < N; row += at.rows) {
    float v[EACH];
    load_chunk(y + row * C + at.c, at.n, v);
    for (int i = 0; i < EACH; ++i) v[i] += bias[i];
    store_chunk(y + row * C + at.c, at.n, v);
  }
}

// ---- Sums over rows, in two launches: parts (gridDim.y, C) in float, then the sums of these ----

extern "C" __global__ void __launch_bounds__(512)
column_parts(const T* x, float* __restrict__ part, long long N, long long C) {
  const Columns at(C);
  float sum[EACH] = {};
  for (long long row = at.row; row < N; row += at.rows) {
    float v[EACH];
    load_chunk(x + row * C + at.c, at.n, v);
    for (int i = 0; i < EACH; ++i) sum[i] += v[i];
  }
  store_sums(sum, at.n, part + blockIdx.y * C + at.c);
}

// Blocks of 32 x 16 threads: 32 columns, each summed up by 16 threads.
extern "C" __global__ void __launch_bounds__(512)
column_sums(const float* part, T* __restrict__ y, long long N, long long C) {
  __shared__ float sums[16][32];
  const long long c = blockIdx.x * 32 + threadIdx.x;
  float sum = 0.0f;
  for (long long row = threadIdx.y; row < N && c < C; row += 16) sum += part[row * C + c];
  sums[threadIdx.y][threadIdx.x] = sum;
  __syncthreads();
  if (threadIdx.y > 0 || c >= C) return;
  for (int i = 1; i < 16; ++i) sum += sums[i][threadIdx.x];
  y[c] = (T)sum;
}
