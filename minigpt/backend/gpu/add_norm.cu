// Residual connection and layernorm: a block per row, four channels per thread.

// stream = x + dropout(h), y = w * (stream - mu) * rstd + b. A null x is 0; a null stream is not
// written. mu and rstd are float: rounded to 16 bits they would move the whole row.
extern "C" __global__ void __launch_bounds__(1024)
add_norm_forward(const T* x, const T* h, const T* w, const T* b, T* __restrict__ stream,
                 T* __restrict__ y, float* __restrict__ mu, float* __restrict__ rstd,
                 long long C, double eps, long long start, unsigned long long key,
                 long long limit, double scale) {
  const long long c = 4 * threadIdx.x, n = C - c, at = blockIdx.x * C + c;
  float v[4], gain[4], bias[4] = {}, sum = 0.0f, squares = 0.0f;
  load4(h + at, n, v);
  Dropout{key, limit, (float)scale}.apply(v, start + at);
  if (x) {
    float before[4];
    load4(x + at, n, before);
    for (int i = 0; i < 4; ++i) v[i] += before[i];
  }
  if (stream) store4(stream + at, n, v);
  // The layernorm is that of the stream as it is stored, rounded to T.
  for (int i = 0; i < 4; ++i) sum += v[i] = (float)(T)v[i];
  const float mean = block_reduce<Sum>(sum) / C;
  for (int i = 0; i < 4; ++i) squares += i < n ? (v[i] - mean) * (v[i] - mean) : 0.0f;
  const float r = 1.0f / sqrtf(block_reduce<Sum>(squares) / C + (float)eps);
  load4(w + c, n, gain);
  if (b) load4(b + c, n, bias);
  for (int i = 0; i < 4; ++i) v[i] = gain[i] * ((v[i] - mean) * r) + bias[i];
  store4(y + at, n, v);
  if (threadIdx.x == 0) {
    mu[blockIdx.x] = mean;
    rstd[blockIdx.x] = r;
  }
}

// total = dx + layernorm_backward(dy), dh = dropout(total). A null dx is 0; a null total or dh is
// not written. A block takes every gridDim.x-th row, and writes its part of dw, and of db if width
// is 2 C, into a row of part (gridDim.x, width).
extern "C" __global__ void __launch_bounds__(1024)
add_norm_backward(const T* dx, const T* dy, const T* x, const T* w, const float* mu,
                  const float* rstd, T* __restrict__ total, T* __restrict__ dh,
                  float* __restrict__ part, long long N, long long C, long long width,
                  long long start, unsigned long long key, long long limit, double scale) {
  const long long c = 4 * threadIdx.x, n = C - c;
  float gain[4], dw[4] = {}, db[4] = {};
  load4(w + c, n, gain);
  for (long long row = blockIdx.x; row < N; row += gridDim.x) {
    const long long at = row * C + c;
    const float mean = mu[row], r = rstd[row];
    float xhat[4], d[4], sum = 0.0f, along = 0.0f;
    load4(x + at, n, xhat);
    load4(dy + at, n, d);
    for (int i = 0; i < 4; ++i) {
      xhat[i] = (xhat[i] - mean) * r;
      dw[i] += d[i] * xhat[i];
      db[i] += d[i];
      d[i] *= gain[i];  // 0 beyond the end of the row, as is d
      sum += d[i];
      along += d[i] * xhat[i];
    }
    sum = block_reduce<Sum>(sum) / C;
    along = block_reduce<Sum>(along) / C;
    float before[4] = {};
    if (dx) load4(dx + at, n, before);
    for (int i = 0; i < 4; ++i) d[i] = (float)(T)(before[i] + r * (d[i] - sum - xhat[i] * along));
    if (total) store4(total + at, n, d);
    if (dh) {
      Dropout{key, limit, (float)scale}.apply(d, start + at);
      store4(dh + at, n, d);
    }
  }
  for (int i = 0; i < 4 && i < n; ++i) {
    part[blockIdx.x * width + c + i] = dw[i];
    if (width > C) part[blockIdx.x * width + C + c + i] = db[i];
  }
}
