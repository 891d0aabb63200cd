// Softmax: one block of threads per row of C elements; minigpt/ops/softmax.py.

extern "C" __global__ void __launch_bounds__(1024)
softmax_forward(const T* x, T* __restrict__ y, long long C) {
  x += blockIdx.x * C;
  y += blockIdx.x * C;
  float top = minus_infinity(), total = 0.0f;
  for (long long c = threadIdx.x; c < C; c += blockDim.x) top = fmaxf(top, (float)x[c]);
  top = block_reduce<Max>(top);
  if (top == minus_infinity()) top = 0.0f;  // all is masked: exp(-inf - 0) = 0
  for (long long c = threadIdx.x; c < C; c += blockDim.x) total += expf((float)x[c] - top);
  total = block_reduce<Sum>(total);
  const float scale = total == 0.0f ? 0.0f : 1.0f / total;
  for (long long c = threadIdx.x; c < C; c += blockDim.x)
    y[c] = (T)(expf((float)x[c] - top) * scale);
}

extern "C" __global__ void __launch_bounds__(1024)
softmax_backward(const T* dy, const T* y, T* __restrict__ dx, long long C) {
  dy += blockIdx.x * C;
  y += blockIdx.x * C;
  dx += blockIdx.x * C;
  float along = 0.0f;
  for (long long c = threadIdx.x; c < C; c += blockDim.x) along += (float)y[c] * (float)dy[c];
  along = block_reduce<Sum>(along);
  for (long long c = threadIdx.x; c < C; c += blockDim.x)
    dx[c] = (T)((float)y[c] * ((float)dy[c] - along));
}
