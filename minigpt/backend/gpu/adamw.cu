// AdamW. T is the type of the parameters' copy in half precision.

// 1 - beta^step, without cancellation where beta is near 1; log_beta = log(beta).
__device__ inline float debias(float log_beta, float step) { return -expm1f(step * log_beta); }

// See optim/adamw.py. step and scale are on the GPU, too: nobody waits for them.
extern "C" __global__ void __launch_bounds__(256)
adamw_step(float* __restrict__ p, const float* __restrict__ grad, float* __restrict__ m,
           float* __restrict__ v, T* __restrict__ p_half, long long n, long long decayed,
           const float* step, const float* scale, double lr, double beta1, double beta2,
           double log_beta1, double log_beta2, double eps, double weight_decay) {
  const float s = *scale;
  if (!isfinite(s)) return;
  // With the bias corrections moved out: lr mhat / (sqrt(vhat) + eps) = a m / (sqrt(v) + c).
  const float root = sqrtf(debias(log_beta2, *step));
  const float a = float(lr) * root / debias(log_beta1, *step), c = float(eps) * root;
  const float b1 = beta1, b2 = beta2, r1 = 1 - beta1, r2 = 1 - beta2;
  const float kept = 1 - lr * weight_decay;
  const long long threads = (long long)gridDim.x * blockDim.x;
#pragma unroll 4
  for (long long i = blockIdx.x * (long long)blockDim.x + threadIdx.x; i < n; i += threads) {
    const float g = s * grad[i];
    const float mi = b1 * m[i] + r1 * g, vi = b2 * v[i] + r2 * g * g;
    const float pi = (i < decayed ? kept * p[i] : p[i]) - a * mi / (sqrtf(vi) + c);
    m[i] = mi;
    v[i] = vi;
    p[i] = pi;
    if (p_half) p_half[i] = T(pi);
  }
}
