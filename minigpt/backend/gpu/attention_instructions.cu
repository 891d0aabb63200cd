// The instructions that attention on tensor cores is made of, for a T of 16 bits.
//
// One multiplies 16 x 16 by 16 x 8 numbers of T, with sums in float: c += a @ b. They are spread
// over the registers of the 32 lanes. With g = lane / 4 and t = lane % 4 (PTX ISA, "Matrix
// Fragments for mma.m16n8k16"):
//
//   a, 16 x 16, rows down, k across          b, 16 x 8, k down          c, 16 x 8
//            2t 2t+1  2t+8 2t+9                      g                       2t  2t+1
//    g      [  a0   ][   a2   ]             2t    [ b0 ]             g     [ c0   c1 ]
//    g + 8  [  a1   ][   a3   ]             2t+1  [    ]             g + 8 [ c2   c3 ]
//                                           2t+8  [ b1 ]
//                                           2t+9  [    ]
//
// Another, ldmatrix, reads four 8 x 8 matrices from shared memory, of which lane 8 m + i names the
// start of row i of matrix m. It gives each lane two adjacent numbers of row g, (g, 2t) and
// (g, 2t+1), or with trans of column g: (2t, g) and (2t+1, g).
//
// The third, cp.async, copies from global to shared memory while a thread does other things.

#if (defined(HALF) || defined(BFLOAT16)) && (__CUDA_ARCH__ >= 800 || defined(CUPY_ON_CPU))
#define ATTENTION_MMA
#endif

#ifdef ATTENTION_MMA
namespace attention_mma {

constexpr int WARPS = 4, THREADS = 32 * WARPS;

__device__ inline int warp() { return threadIdx.x / 32; }
__device__ inline int lane() { return threadIdx.x % 32; }
__device__ inline int g() { return lane() / 4; }
__device__ inline int t() { return lane() % 4; }

union Pair {
  T at[2];
  unsigned word;
};

struct alignas(16) Words {  // registers of a, or of two b
  unsigned at[4];
};

#ifdef CUPY_ON_CPU

// Emulated where kernels run on a CPU, number by number as the drawings above have them.

__device__ inline unsigned pack(float low, float high) { return Pair{{(T)low, (T)high}}.word; }

__device__ inline float number(unsigned word, int i) { return (float)Pair{.word = word}.at[i]; }

// c += a @ b
__device__ __noinline__ void multiply(float (&c)[4], const Words& a, unsigned b0, unsigned b1) {
  __shared__ float as[WARPS][16][16], bs[WARPS][16][8];
  const unsigned b[2] = {b0, b1};
  for (int r = 0; r < 4; ++r)
    for (int i = 0; i < 2; ++i)
      as[warp()][g() + r % 2 * 8][2 * t() + i + r / 2 * 8] = number(a.at[r], i);
  for (int r = 0; r < 2; ++r)
    for (int i = 0; i < 2; ++i) bs[warp()][2 * t() + i + r * 8][g()] = number(b[r], i);
  __syncwarp();
  for (int r = 0; r < 4; ++r)
    for (int k = 0; k < 16; ++k)
      c[r] += as[warp()][g() + r / 2 * 8][k] * bs[warp()][k][2 * t() + r % 2];
  __syncwarp();
}

// Four matrices; this lane names the row at `row`.
template <bool TRANS>
__device__ __noinline__ Words load_matrices(const T* row) {
  __shared__ const T* rows[WARPS][32];
  rows[warp()][lane()] = row;
  __syncwarp();
  Words words;
  for (int m = 0; m < 4; ++m) {
    const T* const* matrix = rows[warp()] + 8 * m;
    Pair pair;
    for (int i = 0; i < 2; ++i)
      pair.at[i] = TRANS ? matrix[2 * t() + i][g()] : matrix[g()][2 * t() + i];
    words.at[m] = (size_t)matrix[g()] % 16 ? ~0u : pair.word;  // NaN where a GPU stops
  }
  __syncwarp();
  return words;
}

// Copies from global to shared memory that go on while a thread does other things. What they
// write is undefined until wait(): NaN, so that who reads too early or writes too early shows. It
// stays NaN where a GPU stops: at addresses that are not aligned.
class Copies {
  static constexpr int MOST = 32;
  struct Copy {
    unsigned *to, words;
    const unsigned* from;  // null: zeros
  } pending[MOST];
  int n = 0;

 public:
  template <int BYTES>
  __device__ void start(void* to, const void* from, bool inside) {
    for (int i = 0; i < BYTES / 4; ++i) ((unsigned*)to)[i] = ~0u;
    if (n < MOST && (size_t)to % BYTES == 0 && (size_t)from % BYTES == 0)
      pending[n++] = {(unsigned*)to, BYTES / 4, inside ? (const unsigned*)from : nullptr};
  }

  __device__ void wait() {
    for (; n > 0; --n) {
      const Copy& copy = pending[n - 1];
      for (int i = 0; i < copy.words; ++i) copy.to[i] = copy.from ? copy.from[i] : 0;
    }
  }
};

#else

#ifdef BFLOAT16
#define ATTENTION_TYPE "bf16"
#else
#define ATTENTION_TYPE "f16"
#endif

// Both rounded to T.
__device__ inline unsigned pack(float low, float high) {
  unsigned word;
  asm("cvt.rn." ATTENTION_TYPE "x2.f32 %0, %1, %2;" : "=r"(word) : "f"(high), "f"(low));
  return word;
}

// c += a @ b
__device__ inline void multiply(float (&c)[4], const Words& a, unsigned b0, unsigned b1) {
  asm("mma.sync.aligned.m16n8k16.row.col.f32." ATTENTION_TYPE "." ATTENTION_TYPE
      ".f32 {%0, %1, %2, %3}, {%4, %5, %6, %7}, {%8, %9}, {%0, %1, %2, %3};"
      : "+f"(c[0]), "+f"(c[1]), "+f"(c[2]), "+f"(c[3])
      : "r"(a.at[0]), "r"(a.at[1]), "r"(a.at[2]), "r"(a.at[3]), "r"(b0), "r"(b1));
}

__device__ inline unsigned in_shared(const void* p) {
  return (unsigned)__cvta_generic_to_shared(p);
}

// Four matrices; this lane names the row at `row`.
template <bool TRANS>
__device__ inline Words load_matrices(const T* row) {
  Words w;
  if (TRANS)
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.trans.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
                 : "r"(in_shared(row))
                 : "memory");
  else
    asm volatile("ldmatrix.sync.aligned.m8n8.x4.shared.b16 {%0, %1, %2, %3}, [%4];"
                 : "=r"(w.at[0]), "=r"(w.at[1]), "=r"(w.at[2]), "=r"(w.at[3])
                 : "r"(in_shared(row))
                 : "memory");
  return w;
}

// Copies from global to shared memory that go on while a thread does other things. What they
// write is undefined until wait().
struct Copies {
  // Copy BYTES, 4 or 16, that are so aligned; or write zeros, if they are not inside of an array.
  template <int BYTES>
  __device__ void start(void* to, const void* from, bool inside) {
    const int n = inside ? BYTES : 0;
    if (BYTES == 16)  // past the first-level cache
      asm volatile("cp.async.cg.shared.global [%0], [%1], 16, %2;" ::"r"(in_shared(to)), "l"(from),
                   "r"(n)
                   : "memory");
    else
      asm volatile("cp.async.ca.shared.global [%0], [%1], 4, %2;" ::"r"(in_shared(to)), "l"(from),
                   "r"(n)
                   : "memory");
  }

  __device__ void wait() { asm volatile("cp.async.wait_all;" ::: "memory"); }
};

#endif

}  // namespace attention_mma
#endif
