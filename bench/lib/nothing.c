/* Leaves out the device's work where CuPy's kernels run on the CPU: cc -shared -fPIC -O2.

Loaded before the HIP libraries (LD_PRELOAD): a launch, a product or a fill of memory returns at
once, and is counted. What is left of a step is the time of the host. */

static long long counts[3];

/* Write how many launches, products and fills there were since the last call. */
void nothing_counts(long long *to) {
  for (int i = 0; i < 3; ++i) to[i] = counts[i], counts[i] = 0;
}

#define NOTHING(name, kind) \
  int name() { return ++counts[kind], 0; }
NOTHING(hipModuleLaunchKernel, 0)
NOTHING(hipblasSgemm, 1)
NOTHING(hipblasSgemmBatched, 1)
NOTHING(hipblasSgemmStridedBatched, 1)
NOTHING(hipblasGemmStridedBatchedEx, 1)
NOTHING(hipblasGemmEx, 1)
NOTHING(cublasGemmEx, 1)
NOTHING(cublasGemmStridedBatchedEx, 1)
NOTHING(hipMemsetAsync, 2)

int cublasSetStream_v2() { return 0; }
