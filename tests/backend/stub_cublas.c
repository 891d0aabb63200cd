/* The functions of cuBLAS that minigpt calls, for arrays in host memory: cc -shared -fPIC.

cublasGemmEx checks its arguments as cuBLAS does and sums in float. float32 factors are rounded to
TF32 (10 bits, to nearest even) if that is asked for. The last call's arguments are kept. */

#include <math.h>
#include <stddef.h>
#include <stdint.h>
#include <string.h>

enum { SUCCESS = 0, INVALID_VALUE = 7, NOT_SUPPORTED = 15 };
enum { FLOAT32 = 0, FLOAT16 = 2, BFLOAT16 = 14 };
enum { COMPUTE_32F = 68, COMPUTE_32F_FAST_TF32 = 77 };

void *last_handle, *last_stream;
int last_compute, last_algorithm, last_lds[3], calls;

static float from_bits(uint32_t bits) {
  float x;
  memcpy(&x, &bits, 4);
  return x;
}

static uint32_t bits_of(float x) {
  uint32_t bits;
  memcpy(&bits, &x, 4);
  return bits;
}

/* x with its last `n` bits rounded away, to nearest even. */
static float rounded(float x, int n) {
  const uint32_t bits = bits_of(x), half = (1u << (n - 1)) - 1;
  if (isnan(x) || isinf(x)) return x;
  return from_bits((bits + half + (bits >> n & 1)) >> n << n);
}

static float load(const void *p, int type, size_t i, int tf32) {
  if (type == FLOAT32) return tf32 ? rounded(((const float *)p)[i], 13) : ((const float *)p)[i];
  if (type == FLOAT16) return (float)((const _Float16 *)p)[i];
  return from_bits((uint32_t)((const uint16_t *)p)[i] << 16);
}

static void store(void *p, int type, size_t i, float x) {
  if (type == FLOAT32) ((float *)p)[i] = x;
  if (type == FLOAT16) ((_Float16 *)p)[i] = (_Float16)x;
  if (type == BFLOAT16) ((uint16_t *)p)[i] = (uint16_t)(bits_of(rounded(x, 16)) >> 16);
}

int cublasSetStream_v2(void *handle, void *stream) {
  last_stream = stream;
  return handle ? SUCCESS : INVALID_VALUE;
}

/* C (m, n) = alpha op(A) op(B) + beta C; columns are ld elements apart. */
int cublasGemmEx(void *handle, int transa, int transb, int m, int n, int k, const void *alpha,
                 const void *A, int a, int lda, const void *B, int b, int ldb, const void *beta,
                 void *C, int c, int ldc, int compute, int algorithm) {
  const int rows_a = transa ? k : m, rows_b = transb ? n : k, tf32 = compute == COMPUTE_32F_FAST_TF32;
  const float al = *(const float *)alpha, be = *(const float *)beta;
  last_handle = handle, last_compute = compute, last_algorithm = algorithm, ++calls;
  last_lds[0] = lda, last_lds[1] = ldb, last_lds[2] = ldc;
  if (!handle || (transa | transb) & ~1 || m < 0 || n < 0 || k < 0) return INVALID_VALUE;
  if (lda < (rows_a > 1 ? rows_a : 1) || ldb < (rows_b > 1 ? rows_b : 1) || ldc < (m > 1 ? m : 1))
    return INVALID_VALUE;
  if (a != b || (a != FLOAT32 && a != FLOAT16 && a != BFLOAT16) || (c != a && c != FLOAT32) ||
      (compute != COMPUTE_32F && (!tf32 || a != FLOAT32)))
    return NOT_SUPPORTED;
  for (int j = 0; j < n; ++j)
    for (int i = 0; i < m; ++i) {
      const size_t at = i + (size_t)j * ldc;
      float sum = 0;
      for (int l = 0; l < k; ++l)
        sum += load(A, a, transa ? l + (size_t)i * lda : i + (size_t)l * lda, tf32) *
               load(B, b, transb ? j + (size_t)l * ldb : l + (size_t)j * ldb, tf32);
      store(C, c, at, be == 0 ? al * sum : al * sum + be * load(C, c, at, 0)); /* 0: not read */
    }
  return SUCCESS;
}

/* One product after the other, of matrices that lie so many elements apart. */
int cublasGemmStridedBatchedEx(void *handle, int transa, int transb, int m, int n, int k,
                               const void *alpha, const void *A, int a, int lda, long long step_a,
                               const void *B, int b, int ldb, long long step_b, const void *beta,
                               void *C, int c, int ldc, long long step_c, int count, int compute,
                               int algorithm) {
  if (a != FLOAT32 || b != FLOAT32 || c != FLOAT32) return NOT_SUPPORTED;
  int status = count < 0 ? INVALID_VALUE : SUCCESS;
  for (int i = 0; i < count && status == SUCCESS; ++i)
    status = cublasGemmEx(handle, transa, transb, m, n, k, alpha, (const float *)A + i * step_a, a,
                          lda, (const float *)B + i * step_b, b, ldb, beta,
                          (float *)C + i * step_c, c, ldc, compute, algorithm);
  return status;
}
