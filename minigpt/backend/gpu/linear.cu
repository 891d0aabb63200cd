// Biases of linear layers, and sums over rows.

// y += b, for rows of y (N, C): a thread does EACH columns of every gridDim.y-th row.
extern "C" __global__ void __launch_bounds__(128)
add_bias(T* y, const T* b, long long N, long long C) {
  const long long c = EACH * ((long long)blockIdx.x * blockDim.x + threadIdx.x), n = C - c;
  float bias[EACH];
  load_chunk(b + c, n, bias);
  for (long long row = blockIdx.y; row < N; row += gridDim.y) {
    float v[EACH];
    load_chunk(y + row * C + c, n, v);
    for (int i = 0; i < EACH; ++i) v[i] += bias[i];
    store_chunk(y + row * C + c, n, v);
  }
}

// ---- Sums over rows, in two launches: parts (gridDim.y, C) in float, then the sums of these ----

extern "C" __global__ void __launch_bounds__(128)
column_parts(const T* x, float* __restrict__ part, long long N, long long C) {
  const long long c = EACH * ((long long)blockIdx.x * blockDim.x + threadIdx.x), n = C - c;
  float sum[EACH] = {};
  for (long long row = blockIdx.y; row < N && n > 0; row += gridDim.y) {
    float v[EACH];
    load_chunk(x + row * C + c, n, v);
    for (int i = 0; i < EACH; ++i) sum[i] += v[i];
  }
  for (int i = 0; i < EACH && i < n; ++i) part[blockIdx.y * C + c + i] = sum[i];
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
