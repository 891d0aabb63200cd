// The norm, clipping and the loss scale.

// Indices into AdamW.state, as in optim/clipping.py.
enum { LOSS_SCALE, GOOD_STEPS, STEPS, SKIPPED, GRAD_SCALE, GRAD_NORM };

// One block. See optim/clipping.py.
extern "C" __global__ void __launch_bounds__(1024)
clip(float* state, const float* parts, long long n, double max_norm, double growth,
     double max_loss_scale, const float* loss) {
  float total = 0.0f;
  for (long long i = threadIdx.x; i < n; i += blockDim.x) total += parts[i];
  total = block_reduce<Sum>(total);
  if (threadIdx.x != 0) return;
  const float loss_scale = state[LOSS_SCALE];
  const float norm = sqrtf(total) / loss_scale + (loss ? 0.0f * *loss : 0.0f);
  const bool taken = isfinite(norm);
  const float clipped = max_norm > 0 ? fminf(1.0f, float(max_norm) / (norm + 1e-6f)) : 1.0f;
  state[GRAD_NORM] = norm;
  state[GRAD_SCALE] = taken ? clipped / loss_scale : norm - norm;  // nan
  state[taken ? STEPS : SKIPPED] += 1.0f;
  if (growth > 0) {
    const float good_steps = taken ? state[GOOD_STEPS] + 1.0f : 0.0f;
    const bool grown = good_steps == float(growth);
    state[GOOD_STEPS] = grown ? 0.0f : good_steps;
    const float factor = !taken ? 0.5f : grown ? 2.0f : 1.0f;
    state[LOSS_SCALE] = fminf(fmaxf(loss_scale * factor, 1.0f), float(max_loss_scale));
  }
}
