// Activations, with or without a bias before them: minigpt/ops/activation.py, linear_activation.py.

// Returns act(x) and sets slope to act'(x); kinds are 0 gelu, 1 gelu_tanh, 2 relu.
__device__ inline float activation(float x, int kind, float* slope) {
  if (kind == 0) {
    const float phi = 0.5f * (1.0f + erff(x * 0.70710678f));
    *slope = phi + x * 0.39894228f * expf(-0.5f * x * x);
    return x * phi;
  }
  if (kind == 1) {
    const float a = 0.79788456f, cubic = 0.044715f;
    const float th = tanhf(a * x * (1.0f + cubic * x * x));
    *slope = 0.5f * (1.0f + th + x * (1.0f - th * th) * a * (1.0f + 3.0f * cubic * x * x));
    return 0.5f * x * (1.0f + th);
  }
  *slope = x > 0.0f ? 1.0f : 0.0f;
  return x * *slope;
}

// y = act(x + b). A thread does EACH columns of every gridDim.y-th row. A null b is 0.
extern "C" __global__ void __launch_bounds__(128)
activation_forward(const T* x, const T* b, T* __restrict__ y, long long N, long long C,
                   long long kind) {
  const long long c = EACH * ((long long)blockIdx.x * blockDim.x + threadIdx.x), n = C - c;
  float bias[EACH] = {}, slope;
  if (b) load_chunk(b + c, n, bias);
  for (long long row = blockIdx.y; row < N; row += gridDim.y) {
    float v[EACH];
    load_chunk(x + row * C + c, n, v);
    for (int i = 0; i < EACH; ++i) v[i] = activation(v[i] + bias[i], (int)kind, &slope);
    store_chunk(y + row * C + c, n, v);
  }
}

// dx = dy * act'(x + b), by the same threads. If there is a b, the sums of dx over the rows of
// blockIdx.y go into that row of part (gridDim.y, C).
extern "C" __global__ void __launch_bounds__(128)
activation_backward(const T* dy, const T* x, const T* b, T* __restrict__ dx,
                    float* __restrict__ part, long long N, long long C, long long kind) {
  const long long c = EACH * ((long long)blockIdx.x * blockDim.x + threadIdx.x), n = C - c;
  float bias[EACH] = {}, sum[EACH] = {};
  if (b) load_chunk(b + c, n, bias);
  for (long long row = blockIdx.y; row < N; row += gridDim.y) {
    float v[EACH], d[EACH], slope;
    load_chunk(x + row * C + c, n, v);
    load_chunk(dy + row * C + c, n, d);
    for (int i = 0; i < EACH; ++i) {
      activation(v[i] + bias[i], (int)kind, &slope);
      d[i] *= slope;
      sum[i] += d[i];
    }
    store_chunk(dx + row * C + c, n, d);
  }
  for (int i = 0; i < EACH && i < n && b; ++i) part[blockIdx.y * C + c + i] = sum[i];
}
