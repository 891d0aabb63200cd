// The optimizer: gradients into one buffer, their norm, AdamW. T is the type of the gradients.

// Places in AdamW.state, as in optim.py.
enum { LOSS_SCALE, GOOD, TAKEN, SKIPPED, SCALE, NORM };

// Arrays end to end, by value: the arguments of a launch are at most 4 KB.
constexpr int ARRAYS = 240;  // as in optimizer_cupy.py
struct Arrays {
  const T* at[ARRAYS];
  long long start[ARRAYS];  // of the first element of each among all
};

// Each block puts, or adds, `width` elements into flat (n) and leaves their sum of squares.
extern "C" __global__ void gather(float* __restrict__ flat, float* __restrict__ squares,
                                  const Arrays arrays, long long count, long long n,
                                  long long width, long long add) {
  const long long first = blockIdx.x * width;
  const long long last = min(first + width, n);
  int a = 0;  // the last array that starts at or before `first`
  for (int above = count; above - a > 1;) {
    const int middle = (a + above) / 2;
    if (arrays.start[middle] <= first)
      a = middle;
    else
      above = middle;
  }
  float total = 0.0f;
  for (; a < count && arrays.start[a] < last; ++a) {
    const long long start = arrays.start[a];
    const long long stop = min(a + 1 < count ? arrays.start[a + 1] : n, last);
    const T* x = arrays.at[a];
#pragma unroll 4
    for (long long i = max(start, first) + threadIdx.x; i < stop; i += blockDim.x) {
      const float g = add ? flat[i] + float(x[i - start]) : float(x[i - start]);
      flat[i] = g;
      total += g * g;
    }
  }
  total = block_reduce<Sum>(total);
  if (threadIdx.x == 0) squares[blockIdx.x] = total;
}

// One block. See optim.clip.
extern "C" __global__ void clip(float* state, const float* squares, long long n, double max_norm,
                                double growth, double largest, const float* loss) {
  float total = 0.0f;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) total += squares[i];
  total = block_reduce<Sum>(total);
  if (threadIdx.x != 0) return;
  const float loss_scale = state[LOSS_SCALE];
  const float norm = sqrtf(total) / loss_scale + (loss ? 0.0f * *loss : 0.0f);
  const bool taken = isfinite(norm);
  const float least = max_norm > 0 ? fminf(1.0f, float(max_norm) / (norm + 1e-6f)) : 1.0f;
  state[NORM] = norm;
  state[SCALE] = taken ? least / loss_scale : norm - norm;  // nan
  state[taken ? TAKEN : SKIPPED] += 1.0f;
  if (growth > 0) {
    const float good = taken ? state[GOOD] + 1.0f : 0.0f;
    const bool doubled = good == float(growth);
    state[GOOD] = doubled ? 0.0f : good;
    const float factor = !taken ? 0.5f : doubled ? 2.0f : 1.0f;
    state[LOSS_SCALE] = fminf(fmaxf(loss_scale * factor, 1.0f), float(largest));
  }
}

// 1 - beta^step, without cancellation where beta is near 1; log_beta = log(beta).
__device__ inline float debias(float log_beta, float step) { return -expm1f(step * log_beta); }

// See optim.adamw_step. step and scale are where they are on the device.
extern "C" __global__ void adamw_step(float* __restrict__ p, const float* __restrict__ grad,
                                      float* __restrict__ m, float* __restrict__ v,
                                      T* __restrict__ low, long long n, long long decayed,
                                      const float* step, const float* scale, double lr,
                                      double beta1, double beta2, double log_beta1,
                                      double log_beta2, double eps, double weight_decay) {
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
    if (low) low[i] = T(pi);
  }
}
