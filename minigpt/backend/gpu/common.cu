// Shared by all kernels.
//
// The text is compiled once per dtype, with T float, __half or a bfloat16; all arithmetic is in
// float. Sums are taken in a fixed order, without atomics: the same input gives the same bits. No
// kernel assumes warps of 32 threads (warpSize is the GPU's); block sizes are multiples of 64.
//
// Arrays are contiguous, with N rows of length C; a thread does EACH adjacent elements at a time.

#if defined(HALF)
#ifndef __HIP__  // built into HIP
#include <cuda_fp16.h>
#endif
using T = __half;
#elif defined(BFLOAT16) && defined(__HIP__)
// The upper half of a float, rounded to nearest even.
__device__ inline unsigned short upper_half(float v) {
  const unsigned int u = __float_as_uint(v);
  return v == v ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fff;
}

// As CUDA's __nv_bfloat16. The conversions of HIP's own type differ between its versions.
struct Bfloat16 {
  unsigned short bits;

  Bfloat16() = default;
  __device__ inline Bfloat16(float v) : bits(upper_half(v)) {}
  __device__ inline operator float() const { return __uint_as_float((unsigned int)bits << 16); }
};
using T = Bfloat16;
#elif defined(BFLOAT16)
#include <cuda_bf16.h>
using T = __nv_bfloat16;
#else
using T = float;
#endif

__device__ inline float minus_infinity() { return __int_as_float(0xff800000); }

// ---- Warps and blocks (one-dimensional). All their threads must call these. ----

// The value v of the lane whose number is this lane's xor mask.
__device__ inline float warp_xor(float v, int mask) {
#ifdef __HIP__
  return __shfl_xor(v, mask);
#else
  return __shfl_xor_sync(0xffffffffu, v, mask);
#endif
}

// Bit i tells whether p holds in lane i.
__device__ inline unsigned long long warp_ballot(bool p) {
#ifdef __HIP__
  return __ballot(p);
#else
  return __ballot_sync(0xffffffffu, p);
#endif
}

struct Sum {
  static __device__ float identity() { return 0.0f; }
  static __device__ float combine(float a, float b) { return a + b; }
};

struct Max {
  static __device__ float identity() { return minus_infinity(); }
  static __device__ float combine(float a, float b) { return fmaxf(a, b); }
};

// Every lane gets the result over its warp: all the same bits, since a + b = b + a.
template <class Op>
__device__ inline float warp_reduce(float v) {
  for (int mask = warpSize / 2; mask > 0; mask /= 2) v = Op::combine(v, warp_xor(v, mask));
  return v;
}

// Every thread gets the result over its block.
template <class Op>
__device__ inline float block_reduce(float v) {
  __shared__ float part[32];  // 1024 threads are at most 32 warps
  v = warp_reduce<Op>(v);
  __syncthreads();  // an earlier call's results have been read
  if (threadIdx.x % warpSize == 0) part[threadIdx.x / warpSize] = v;
  __syncthreads();
  v = Op::identity();
  for (int i = 0; i < (int)blockDim.x / warpSize; ++i) v = Op::combine(v, part[i]);
  return v;
}

// ---- 16 bytes of adjacent elements at once: a load or store of the widest kind ----

constexpr int EACH = 16 / sizeof(T);

struct alignas(16) Chunk {
  T v[EACH];
};

// Load p[0 .. EACH - 1], of which the first n exist; the others are 0.
__device__ inline void load_chunk(const T* p, long long n, float* v) {
  if (n >= EACH && (size_t)p % sizeof(Chunk) == 0) {
    const Chunk chunk = *(const Chunk*)p;
    for (int i = 0; i < EACH; ++i) v[i] = (float)chunk.v[i];
  } else {
    for (int i = 0; i < EACH; ++i) v[i] = i < n ? (float)p[i] : 0.0f;
  }
}

__device__ inline void store_chunk(T* p, long long n, const float* v) {
  if (n >= EACH && (size_t)p % sizeof(Chunk) == 0) {
    Chunk chunk;
    for (int i = 0; i < EACH; ++i) chunk.v[i] = (T)v[i];
    *(Chunk*)p = chunk;
  } else {
    for (int i = 0; i < EACH && i < n; ++i) p[i] = (T)v[i];
  }
}

// ---- Columns of rows (N, C): a thread does EACH adjacent ones of some rows ----

// Of row number `row`, and of every `rows`-th row from there on.
struct Columns {
  long long c, n, row, rows;  // c is the first column, n how many there are from it on

  __device__ Columns(long long C)
      : c(EACH * ((long long)blockIdx.x * blockDim.x + threadIdx.x)),
        n(C - c),
        row((long long)blockIdx.y * blockDim.y + threadIdx.y),
        rows((long long)gridDim.y * blockDim.y) {}
};

// Add up what the threads of a block have for the same columns; write the sums of columns that
// exist to part. All threads of a block call it, once in a kernel.
__device__ inline void store_sums(const float* sum, long long n, float* part) {
  __shared__ float sums[2048];  // COLUMNS * DOWN of linear.py
  for (int i = 0; i < EACH; ++i)
    sums[(threadIdx.y * EACH + i) * blockDim.x + threadIdx.x] = sum[i];
  __syncthreads();
  for (int i = 0; i < EACH && i < n && threadIdx.y == 0; ++i) {
    float all = sum[i];
    for (int y = 1; y < (int)blockDim.y; ++y)
      all += sums[(y * EACH + i) * blockDim.x + threadIdx.x];
    part[i] = all;
  }
}

// ---- Dropout: the bits of minigpt/ops/dropout.py ----

// Word number `word` of SplitMix64's stream of key.
__device__ inline unsigned long long random_word(unsigned long long key, unsigned long long word) {
  unsigned long long z = (word + 1) * 0x9E3779B97F4A7C15ull + key;
  z = (z ^ (z >> 30)) * 0xBF58476D1CE4E5B9ull;
  z = (z ^ (z >> 27)) * 0x94D049BB133111EBull;
  return z ^ (z >> 31);
}

// An element whose 16 bits are at least limit stays, and is multiplied by scale; limit 0 is no
// dropout.
struct Dropout {
  unsigned long long key;
  long long limit;
  float scale;

  // Apply it to v[0 .. EACH - 1]; v[0] is element number `place` of the whole batch.
  __device__ void apply(float* v, unsigned long long place) const {
    if (limit == 0) return;
    unsigned long long word = random_word(key, place / 4) >> (16 * (place % 4));
    for (int i = 0; i < EACH; ++i) {
      if (i > 0 && (place + i) % 4 == 0) word = random_word(key, (place + i) / 4);
      v[i] = (long long)(word & 0xffff) >= limit ? v[i] * scale : 0.0f;
      word >>= 16;
    }
  }
};
