// Rotary positions: minigpt/ops/rotary.py.

// A thread rotates two neighbouring pairs of a row (3 C); a block covers one row, or as many of its
// channels as its threads hold. sign is 1, or -1 to rotate back. Values stay; they begin with a
// thread of their own, since C is even. cos and sin are (length, D / 2).
extern "C" __global__ void __launch_bounds__(1024)
rotary(const T* x, const T* cos, const T* sin, T* __restrict__ y, long long length, long long C,
       long long D, double sign) {
  const long long c = 4 * ((long long)blockIdx.y * blockDim.x + threadIdx.x), n = 3 * C - c;
  const long long at = blockIdx.x * (3 * C) + c, angles = blockIdx.x % length * (D / 2);
  if (n <= 0) return;
  float v[4];
  load4(x + at, n, v);
  for (int i = 0; i < 4 && c < 2 * C; i += 2) {
    const long long angle = angles + (c + i) % D / 2;
    const float a = v[i], b = v[i + 1];
    const float along = (float)cos[angle], across = (float)sign * (float)sin[angle];
    v[i] = a * along - b * across;
    v[i + 1] = a * across + b * along;
  }
  store4(y + at, n, v);
}
