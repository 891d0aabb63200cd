// Dropout: minigpt/ops/dropout.py. A thread does EACH elements; the first is number `start`.

extern "C" __global__ void __launch_bounds__(256)
dropout_forward(const T* x, T* __restrict__ y, long long size, long long start,
                unsigned long long key, long long limit, double scale) {
  const long long i = EACH * ((long long)blockIdx.x * blockDim.x + threadIdx.x);
  float v[EACH];
  load_chunk(x + i, size - i, v);
  Dropout{key, limit, (float)scale}.apply(v, start + i);
  store_chunk(y + i, size - i, v);
}
