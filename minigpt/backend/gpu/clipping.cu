// The norm, clipping and the loss scale.

// Places in AdamW.state, as in optim/clipping.py.
enum { LOSS_SCALE, GOOD, TAKEN, SKIPPED, SCALE, NORM };

// One block. See optim/clipping.py.
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
