// Residual connection and layernorm: a warp per row, or a block where rows are long.
//
// Either is a team, whose threads share a row: EACH adjacent channels for each, the next ones
// size * EACH channels on. So no warp waits for another one. A team takes the row of its number,
// and on by the number of teams.

template <bool BLOCK>
struct Team {
  int size, rank, of_block;  // its threads, the number of this one, and its own in the block
  long long first, teams;    // its number among all, and how many there are

  __device__ Team()
      : size(BLOCK ? (int)blockDim.x : warpSize),
        rank(threadIdx.x % size),
        of_block(threadIdx.x / size) {
    teams = blockDim.x / size;
    first = blockIdx.x * teams + of_block;
    teams *= gridDim.x;
  }

  __device__ static float sum(float v) {
    if constexpr (BLOCK) {
      return block_reduce<Sum>(v);
    } else {
      return warp_reduce<Sum>(v);  // without the shared memory of the other
    }
  }
};

// stream = x + dropout(h + h_b), y = w * (stream - mu) * rstd + b. A null x, b or h_b is 0; a null
// stream is not written. A thread keeps VALUES of a row in registers. mu and rstd are float:
// rounded to 16 bits they would move the whole row.
template <int VALUES, bool BLOCK>
__device__ inline void add_norm(const T* x, const T* h, const T* w, const T* b, const T* h_b,
                                T* __restrict__ stream, T* __restrict__ y, float* __restrict__ mu,
                                float* __restrict__ rstd, long long N, long long C, float eps,
                                long long start, Dropout dropout) {
  const Team<BLOCK> team;
  for (long long row = team.first; row < N; row += team.teams) {
    float v[VALUES], sum = 0.0f, squares = 0.0f;
#pragma unroll
    for (int k = 0; k < VALUES; k += EACH) {
      if (k * team.size >= C) break;
      const long long c = k * team.size + team.rank * EACH, n = C - c, at = row * C + c;
      load_chunk(h + at, n, v + k);
      if (h_b) {
        float bias[EACH];
        load_chunk(h_b + c, n, bias);
        for (int i = 0; i < EACH; ++i) v[k + i] += bias[i];
      }
      dropout.apply(v + k, start + at);
      if (x) {
        float before[EACH];
        load_chunk(x + at, n, before);
        for (int i = 0; i < EACH; ++i) v[k + i] += before[i];
      }
      if (stream) store_chunk(stream + at, n, v + k);
      // The layernorm is that of the stream as it is stored, rounded to T.
      for (int i = 0; i < EACH; ++i) sum += v[k + i] = (float)(T)v[k + i];
    }
    const float mean = team.sum(sum) / C;
#pragma unroll
    for (int k = 0; k < VALUES; k += EACH) {
      if (k * team.size >= C) break;
      const long long n = C - (k * team.size + team.rank * EACH);
      for (int i = 0; i < EACH; ++i)
        squares += i < n ? (v[k + i] - mean) * (v[k + i] - mean) : 0.0f;
    }
    const float r = 1.0f / sqrtf(team.sum(squares) / C + eps);
#pragma unroll
    for (int k = 0; k < VALUES; k += EACH) {
      if (k * team.size >= C) break;
      const long long c = k * team.size + team.rank * EACH, n = C - c;
      float gain[EACH], bias[EACH] = {};
      load_chunk(w + c, n, gain);
      if (b) load_chunk(b + c, n, bias);
      for (int i = 0; i < EACH; ++i) v[k + i] = gain[i] * ((v[k + i] - mean) * r) + bias[i];
      store_chunk(y + row * C + c, n, v + k);
    }
    if (team.rank == 0) mu[row] = mean, rstd[row] = r;
  }
}

// total = dx + layernorm_backward(dy), dh = dropout(total). A null dx is 0; a null total or dh is
// not written. Each block writes its parts of dw, db and dh_b, or of the first width / C of these,
// into a row of part (gridDim.x, width): the sums of its teams, one after the other.
template <bool BLOCK>
__device__ inline void add_norm_back(const T* dx, const T* dy, const T* x, const T* w,
                                     const float* mu, const float* rstd, T* __restrict__ total,
                                     T* __restrict__ dh, float* __restrict__ part, long long N,
                                     long long C, long long width, long long start,
                                     Dropout dropout) {
  // sums[number][teams][room]: dw, db and dh_b of each team, whose threads add to their own
  // channels only. room is C rounded up to EACH; channel c is at c % EACH * chunks + c / EACH, so
  // that what the threads of a warp touch at a time lies side by side.
  extern __shared__ float sums[];
  const Team<BLOCK> team;
  const int chunks = ((int)C + EACH - 1) / EACH, room = chunks * EACH, step = team.size * EACH;
  const int teams = blockDim.x / team.size, number = (int)(width / C);
  float *dw = sums + team.of_block * room, *db = dw + teams * room, *dh_b = db + teams * room;
  for (int i = threadIdx.x; i < number * teams * room; i += blockDim.x) sums[i] = 0.0f;
  __syncthreads();
  for (long long row = team.first; row < N; row += team.teams) {
    const float mean = mu[row], r = rstd[row];
    float xhat[EACH], d[EACH], gain[EACH], sum = 0.0f, along = 0.0f;
#pragma unroll 2
    for (int c = team.rank * EACH; c < C; c += step) {
      load_chunk(x + row * C + c, C - c, xhat);
      load_chunk(dy + row * C + c, C - c, d);
      load_chunk(w + c, C - c, gain);
      for (int i = 0; i < EACH; ++i) {
        d[i] *= gain[i];  // 0 beyond the end of the row, as is d
        sum += d[i];
        along += d[i] * ((xhat[i] - mean) * r);
      }
    }
    sum = team.sum(sum) / C;
    along = team.sum(along) / C;
    // Once more, out of the cache.
#pragma unroll 2
    for (int c = team.rank * EACH; c < C; c += step) {
      const long long n = C - c, at = row * C + c;
      float before[EACH] = {};
      load_chunk(x + at, n, xhat);
      load_chunk(dy + at, n, d);
      load_chunk(w + c, n, gain);
      if (dx) load_chunk(dx + at, n, before);
      for (int i = 0; i < EACH; ++i) {
        xhat[i] = (xhat[i] - mean) * r;
        dw[i * chunks + c / EACH] += d[i] * xhat[i];
        if (number > 1) db[i * chunks + c / EACH] += d[i];
        d[i] = (float)(T)(before[i] + r * (d[i] * gain[i] - sum - xhat[i] * along));
      }
      if (total) store_chunk(total + at, n, d);
      dropout.apply(d, start + at);
      if (dh) store_chunk(dh + at, n, d);
      for (int i = 0; i < EACH && number > 2; ++i) dh_b[i * chunks + c / EACH] += d[i];
    }
  }
  __syncthreads();
  for (int i = threadIdx.x; i < width; i += blockDim.x) {
    const int c = i % (int)C;
    const float* first = sums + i / (int)C * teams * room + c % EACH * chunks + c / EACH;
    float sum = 0.0f;
    for (int t = 0; t < teams; ++t) sum += first[t * room];
    part[blockIdx.x * width + i] = sum;
  }
}

// Kernels for rows of up to so many CHANNELS, of which a thread has VALUES at most in blocks of so
// many THREADS; a warp has 32 of them at least. So many BLOCKS have room for their registers. The
// backward kernels take shared memory for their sums at launch.
#define ADD_NORM(CHANNELS, VALUES, BLOCK, THREADS, BLOCKS)                                        \
  extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void add_norm_forward_##CHANNELS(      \
      const T* x, const T* h, const T* w, const T* b, const T* h_b, T* __restrict__ stream,       \
      T* __restrict__ y, float* __restrict__ mu, float* __restrict__ rstd, long long N,           \
      long long C, double eps, long long start, unsigned long long key, long long limit,          \
      double scale) {                                                                             \
    add_norm<VALUES, BLOCK>(x, h, w, b, h_b, stream, y, mu, rstd, N, C, (float)eps, start,        \
                            Dropout{key, limit, (float)scale});                                   \
  }                                                                                               \
  extern "C" __global__ __launch_bounds__(THREADS, BLOCKS) void add_norm_backward_##CHANNELS(     \
      const T* dx, const T* dy, const T* x, const T* w, const float* mu, const float* rstd,       \
      T* __restrict__ total, T* __restrict__ dh, float* __restrict__ part, long long N,           \
      long long C, long long width, long long start, unsigned long long key, long long limit,     \
      double scale) {                                                                             \
    add_norm_back<BLOCK>(dx, dy, x, w, mu, rstd, total, dh, part, N, C, width, start,             \
                         Dropout{key, limit, (float)scale});                                      \
  }

ADD_NORM(1024, 32, false, 128, 3)
ADD_NORM(4096, 16, true, 256, 2)
