/* Counts what CuPy does to device memory where its kernels run on the CPU: cc -shared -fPIC -O2.

Loaded before the HIP libraries (LD_PRELOAD), it sees each call that starts work on the device. The
kernels are compiled with -fsanitize=thread, which makes them report every load and store to the
functions __tsan_*, defined here in place of the sanitizer's own. Of each launch the distinct bytes
read and written are counted, as a cache would that holds all that one launch touches. */

#define _GNU_SOURCE
#include <dlfcn.h>
#include <stdint.h>
#include <stdio.h>
#include <stdlib.h>

enum { READ = 1, WRITTEN = 2, LAUNCHES = 1 << 14 };
static uintptr_t base, size; /* the memory that is watched */
static uint16_t *seen;       /* for each byte of it, 4 * launch + READ, WRITTEN */
static unsigned launch_number;
static long long bytes[4];
static FILE *out;

/* Begin to watch `n` bytes at `start`; a line for each piece of work goes to the file. */
int traffic_start(uintptr_t start, uintptr_t n, const char *path) {
  seen = calloc(n, sizeof *seen);
  out = fopen(path, "w");
  base = start, size = seen && out ? n : 0;
  return size != 0;
}

/* Write a line by which to find where a step begins. */
void traffic_mark(void) { fputs("step\n", out); }

void traffic_stop(void) {
  size = 0;
  if (out) fclose(out);
  free(seen);
  out = NULL, seen = NULL;
}

static inline void touch(const void *p, unsigned n, int how) {
  const uintptr_t at = (uintptr_t)p - base;
  if (at >= size) return;
  const unsigned part = n < 4 ? n : 4;
  for (unsigned i = 0; i < n; i += part) {
    uint16_t *s = &seen[at + i];
    if (*s >> 2 != launch_number) *s = launch_number << 2;
    if (!(*s & how)) *s |= how, bytes[how] += part;
  }
}

#define ACCESS(n)                                                      \
  void __tsan_read##n(void *p) { touch(p, n, READ); }                  \
  void __tsan_write##n(void *p) { touch(p, n, WRITTEN); }              \
  void __tsan_unaligned_read##n(void *p) { touch(p, n, READ); }        \
  void __tsan_unaligned_write##n(void *p) { touch(p, n, WRITTEN); }
ACCESS(1) ACCESS(2) ACCESS(4) ACCESS(8) ACCESS(16)
void __tsan_read_range(void *p, unsigned long n) { touch(p, n, READ); }
void __tsan_write_range(void *p, unsigned long n) { touch(p, n, WRITTEN); }
void __tsan_init(void) {}
void __tsan_func_entry(void *p) { (void)p; }
void __tsan_func_exit(void) {}

/* The functions of these names in the libraries that come behind this one. */
#define REAL(name) ((__typeof__(&name))dlsym(RTLD_NEXT, #name))
#define BLAS(name) ((__typeof__(&name))dlsym(dlopen("libhipblas.so.3", RTLD_LAZY), #name))

static struct { void *function; char name[128]; } names[4096];
static unsigned named;

int hipModuleGetFunction(void **f, void *module, const char *name) {
  const int status = REAL(hipModuleGetFunction)(f, module, name);
  if (!status && named < sizeof names / sizeof *names) {
    names[named].function = *f;
    snprintf(names[named++].name, sizeof names->name, "%s", name);
  }
  return status;
}

int hipModuleLaunchKernel(void *f, unsigned gx, unsigned gy, unsigned gz, unsigned bx, unsigned by,
                          unsigned bz, unsigned shared, void *stream, void **args, void **extra) {
  if (size && ++launch_number % LAUNCHES == 0) { /* the numbers begin anew */
    for (uintptr_t i = 0; i < size; ++i) seen[i] = 0;
    launch_number = 1;
  }
  bytes[READ] = bytes[WRITTEN] = 0;
  const int status =
      REAL(hipModuleLaunchKernel)(f, gx, gy, gz, bx, by, bz, shared, stream, args, extra);
  unsigned i = named;
  while (i && names[i - 1].function != f) --i;
  if (size)
    fprintf(out, "kernel %s %lld %lld 0\n", i ? names[i - 1].name : "?", bytes[READ],
            bytes[WRITTEN]);
  return status;
}

int hipMemsetAsync(void *p, int value, size_t n, void *stream) {
  if (size) fprintf(out, "copy memset 0 %zu 0\n", n);
  return REAL(hipMemsetAsync)(p, value, n, stream);
}

int hipMemcpyAsync(void *to, const void *from, size_t n, int kind, void *stream) {
  if (size) {
    const int in = (uintptr_t)from - base < size, into = (uintptr_t)to - base < size;
    fprintf(out, "copy %s %zu %zu 0\n", in && into ? "device" : in ? "to_host" : "from_host",
            in * n, into * n);
  }
  return REAL(hipMemcpyAsync)(to, from, n, kind, stream);
}

/* A product of m x k and k x n numbers; with a beta it adds to what is there. */
static void product(long long m, long long n, long long k, long long batch, int item, int result,
                    const void *beta) {
  const long long read = item * (m * k + k * n) + (*(const float *)beta != 0) * result * m * n;
  if (size)
    fprintf(out, "product %lldx%lldx%lldx%lld %lld %lld %lld\n", batch, m, n, k, batch * read,
            batch * result * m * n, 2 * batch * m * n * k);
}

/* HIP_R_16F by its two numbers, HIP_R_16BF, or float */
static int item_of(int type) { return type == 2 || type == 150 || type == 14 ? 2 : 4; }

int hipblasSgemm(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                 int lda, const void *b, int ldb, const void *beta, void *c, int ldc) {
  product(m, n, k, 1, 4, 4, beta);
  return BLAS(hipblasSgemm)(h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc);
}

int hipblasSgemmBatched(void *h, int ta, int tb, int m, int n, int k, const void *alpha,
                        const void *a, int lda, const void *b, int ldb, const void *beta, void *c,
                        int ldc, int batch) {
  product(m, n, k, batch, 4, 4, beta);
  return BLAS(hipblasSgemmBatched)(h, ta, tb, m, n, k, alpha, a, lda, b, ldb, beta, c, ldc, batch);
}

int hipblasSgemmStridedBatched(void *h, int ta, int tb, int m, int n, int k, const void *alpha,
                               const void *a, int lda, long long sa, const void *b, int ldb,
                               long long sb, const void *beta, void *c, int ldc, long long sc,
                               int batch) {
  product(m, n, k, batch, 4, 4, beta);
  return BLAS(hipblasSgemmStridedBatched)(h, ta, tb, m, n, k, alpha, a, lda, sa, b, ldb, sb, beta,
                                          c, ldc, sc, batch);
}

int hipblasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha,
                                const void *a, int at, int lda, long long sa, const void *b, int bt,
                                int ldb, long long sb, const void *beta, void *c, int ct, int ldc,
                                long long sc, int batch, int compute, int algorithm) {
  product(m, n, k, batch, item_of(at), item_of(ct), beta);
  return BLAS(hipblasGemmStridedBatchedEx)(h, ta, tb, m, n, k, alpha, a, at, lda, sa, b, bt, ldb,
                                           sb, beta, c, ct, ldc, sc, batch, compute, algorithm);
}

int hipblasGemmEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                  int at, int lda, const void *b, int bt, int ldb, const void *beta, void *c,
                  int ct, int ldc, int compute, int algorithm) {
  product(m, n, k, 1, item_of(at), item_of(ct), beta);
  return BLAS(hipblasGemmEx)(h, ta, tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct, ldc,
                             compute, algorithm);
}

/* What minigpt calls on CUDA, in the terms of HIP: other numbers for transposed, sums in float. */
int cublasSetStream_v2(void *h, void *stream) { return (void)stream, h ? 0 : 1; }

int cublasGemmEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha, const void *a,
                 int at, int lda, const void *b, int bt, int ldb, const void *beta, void *c, int ct,
                 int ldc, int compute, int algorithm) {
  (void)compute;
  return hipblasGemmEx(h, 111 + ta, 111 + tb, m, n, k, alpha, a, at, lda, b, bt, ldb, beta, c, ct,
                       ldc, 2, algorithm);
}

int cublasGemmStridedBatchedEx(void *h, int ta, int tb, int m, int n, int k, const void *alpha,
                               const void *a, int at, int lda, long long sa, const void *b, int bt,
                               int ldb, long long sb, const void *beta, void *c, int ct, int ldc,
                               long long sc, int batch, int compute, int algorithm) {
  (void)compute;
  return hipblasGemmStridedBatchedEx(h, 111 + ta, 111 + tb, m, n, k, alpha, a, at, lda, sa, b, bt,
                                     ldb, sb, beta, c, ct, ldc, sc, batch, 2, algorithm);
}
