// Windows of a text: minigpt/data/batches.py.

// A thread per token of x and y (B, length). An id takes 1, 2 or 4 bytes.
extern "C" __global__ void __launch_bounds__(256)
windows(const void* ids, const long long* starts, int* __restrict__ x, int* __restrict__ y,
        long long size, long long length, long long bytes) {
  const long long i = (long long)blockIdx.x * blockDim.x + threadIdx.x;
  if (i >= size) return;
  const long long at = starts[i / length] + i % length;
  for (int k = 0; k < 2; ++k)
    (k ? y : x)[i] = bytes == 1   ? ((const unsigned char*)ids)[at + k]
                     : bytes == 2 ? ((const unsigned short*)ids)[at + k]
                                  : ((const int*)ids)[at + k];
}
