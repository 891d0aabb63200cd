// Rotary positions: minigpt/ops/rotary.py.

// A thread rotates the pairs among EACH channels of a row (3 C); a block covers one row, or as many
// of its channels as its threads hold. sign is 1, or -1 to rotate back. Values stay. cos and sin
// are (length, D / 2).
extern "C" __global__ void __launch_bounds__(1024)
rotary(const T* x, const T* cos, const T* sin, T* __restrict__ y, long long length, long long C,
       long long D, double sign) {
  const long long c = EACH * ((long long)blockIdx.y * blockDim.x + threadIdx.x), n = 3 * C - c;
  const long long at = blockIdx.x * (3 * C) + c, angles = blockIdx.x % length * (D / 2);
  if (n <= 0) return;
  float v[EACH];
  load_chunk(x + at, n, v);
  for (int i = 0; i < EACH && c + i < 2 * C; i += 2) {
    const long long angle = angles + (c + i) % D / 2;
    const float a = v[i], b = v[i + 1];
    const float along = (float)cos[angle], across = (float)sign * (float)sin[angle];
    v[i] = a * along - b * across;
    v[i + 1] = a * across + b * along;
  }
  store_chunk(y + at, n, v);
}
