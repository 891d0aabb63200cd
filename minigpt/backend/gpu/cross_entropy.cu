// Softmax cross-entropy over the logits of a large vocabulary: minigpt/ops/cross_entropy.py.

// A block per row of logits (n, V), to which the bias b, if any, is added; a row begins `length`
// elements after the one before. lse and losses are (n); a row whose target is -1 has loss 0. With
// `gradient`, the logits are replaced by their gradient, (softmax - onehot) * dloss / count;
// dloss_at, if not null, points to dloss on the GPU.
extern "C" __global__ void __launch_bounds__(1024, 1)
cross_entropy(T* logits, const T* b, const int* targets, float* lse, float* losses, long long V,
              long long length, double count, long long gradient, const float* dloss_at,
              double dloss) {
  const long long row = blockIdx.x;
  const long long step = EACH * blockDim.x;
  const int target = targets[row];
  T* x = logits + row * length;
  // Read before any thread may write to it.
  const float right = target < 0 ? 0.0f : float(x[target]) + (b ? float(b[target]) : 0.0f);

  // Maximum and sum of exponentials in one pass: a larger maximum scales the sum so far down. It
  // starts finite, so that no difference is infinity minus infinity.
  float top = -3.0e38f, total = 0.0f;
#pragma unroll 2
  for (long long c = EACH * threadIdx.x; c < V; c += step) {
    float v[EACH], bias[EACH] = {}, highest = top;
    load_chunk(x + c, V - c, v);
    if (b) load_chunk(b + c, V - c, bias);
    for (int i = 0; i < EACH; ++i) {
      v[i] = c + i < V ? v[i] + bias[i] : minus_infinity();
      highest = fmaxf(highest, v[i]);
    }
    total *= expf(top - highest);
    for (int i = 0; i < EACH; ++i) total += expf(v[i] - highest);
    top = highest;
  }
  const float highest = block_reduce<Max>(top);
  total = block_reduce<Sum>(total * expf(top - highest));
  const float all = highest + logf(total);
  if (threadIdx.x == 0) {
    lse[row] = all;
    losses[row] = target < 0 ? 0.0f : (all - right) / float(count);
  }
  if (!gradient) return;
  const float factor = target < 0 ? 0.0f : (dloss_at ? *dloss_at : float(dloss)) / float(count);
#pragma unroll 2
  for (long long c = EACH * threadIdx.x; c < V; c += step) {
    float v[EACH], bias[EACH] = {};
    load_chunk(x + c, V - c, v);
    if (b) load_chunk(b + c, V - c, bias);
    for (int i = 0; i < EACH; ++i) {
      const float p = expf(v[i] + bias[i] - all);
      v[i] = (c + i == target ? p - 1.0f : p) * factor;
    }
    store_chunk(x + c, V - c, v);
  }
}
