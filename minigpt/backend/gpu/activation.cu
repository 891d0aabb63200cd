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

// y = act(x + b). A null b is 0.
extern "C" __global__ void __launch_bounds__(512)
activation_forward(const T* x, const T* b, T* __restrict__ y, long long N, long long C,
                   long long kind) {
  const Columns at(C);
  float bias[EACH] = {}, slope;
  if (b) load_chunk(b + at.c, at.n, bias);
  for (long long row = at.row; row < N; row += at.rows) {
    float v[EACH];
    load_chunk(x + row * C + at.c, at.n, v);
    for (int i = 0; i < EACH; ++i) v[i] = activation(v[i] + bias[i], (int)kind, &slope);
    store_chunk(y + row * C + at.c, at.n, v);
  }
}

// dx = dy * act'(x + b). If there is a b, the sums of dx over the rows of a block go into its row
// of part (gridDim.y, C).
extern "C" __global__ void __launch_bounds__(512)
activation_backward(const T* dy, const T* x, const T* b, T* __restrict__ dx,
                    float* __restrict__ part, long long N, long long C, long long kind) {
  const Columns at(C);
  float bias[EACH] = {}, sum[EACH] = {};
  if (b) load_chunk(b + at.c, at.n, bias);
  for (long long row = at.row; row < N; row += at.rows) {
    float v[EACH], d[EACH], slope;
    load_chunk(x + row * C + at.c, at.n, v);
    load_chunk(dy + row * C + at.c, at.n, d);
    for (int i = 0; i < EACH; ++i) {
      activation(v[i] + bias[i], (int)kind, &slope);
      d[i] *= slope;
      sum[i] += d[i];
    }
    store_chunk(dx + row * C + at.c, at.n, d);
  }
  if (b) store_sums(sum, at.n, part + blockIdx.y * C + at.c);
}
