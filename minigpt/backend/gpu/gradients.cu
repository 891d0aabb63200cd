// The gradients of a step into one buffer. T is the type of the gradients.

// Arrays end to end, by value: the arguments of a launch are at most 4 KB.
constexpr int ARRAYS = 240;  // as in gradients.py
struct Arrays {
  const T* at[ARRAYS];
  long long start[ARRAYS];  // of the first element of each among all
};

// Each block puts, or adds, `width` elements into flat (n).
extern "C" __global__ void __launch_bounds__(256)
gather(float* __restrict__ flat, const Arrays arrays, long long count, long long n,
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
  for (; a < count && arrays.start[a] < last; ++a) {
    const long long start = arrays.start[a];
    const long long stop = min(a + 1 < count ? arrays.start[a + 1] : n, last);
    const T* x = arrays.at[a];
#pragma unroll 4
    for (long long i = max(start, first) + threadIdx.x; i < stop; i += blockDim.x) {
      const float g = float(x[i - start]);
      flat[i] = add ? flat[i] + g : g;
    }
  }
}

// Each block leaves the sum of squares of `width` elements of g (n) in parts.
extern "C" __global__ void __launch_bounds__(256)
sum_of_squares(const float* __restrict__ g, float* __restrict__ parts, long long n,
               long long width) {
  const long long first = blockIdx.x * width;
  const long long last = min(first + width, n);
  float total = 0.0f;
#pragma unroll 4
  for (long long i = first + threadIdx.x; i < last; i += blockDim.x) total += g[i] * g[i];
  total = block_reduce<Sum>(total);
  if (threadIdx.x == 0) parts[blockIdx.x] = total;
}
