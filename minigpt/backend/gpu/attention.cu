// Attention by tiles: what both passes share, and the forward pass. After FlashAttention-2,
// Dao 2023, arXiv:2307.08691, algorithms 1 and 2: scores exist one tile at a time, in registers,
// and never beyond the tiles of the diagonal. The backward pass recomputes the weights from one
// number per query, lse = log sum exp s. Departures:
//
// - the backward pass has one kernel over queries, which computes dq and delta = sum(dy * y), and
//   one over keys, which computes dk and dv: two more products per tile, and no atomics;
// - all arithmetic is in float, whatever T is.
//
// A block keeps R * DOWN vectors of a head in place (queries; in the last kernel keys) and moves
// C * ACROSS of the other kind past them, tile by tile. Its threads are a grid of DOWN x ACROSS;
// each has R x C scores of a tile, of adjacent rows and columns, so that neighbouring keys share
// the word of random bits that drops them. In shared memory the vectors of a tile lie in the
// order in which threads read them: thread t's vector i at i * threads + t. Each is PAD floats
// longer than its contents, so that adjacent ones begin in different banks. While a tile is
// processed, the next one is loaded from global memory into registers.

#define UNROLL _Pragma("unroll")

namespace attention {

constexpr int ACROSS = 8, DOWN = 16;  // threads side by side, and one above the other
constexpr int THREADS = ACROSS * DOWN;
constexpr int BLOCKS = 3;  // at least, on a multiprocessor: bounds the registers of a thread
constexpr int PAD = 4;     // as many floats as are read at a time

struct Steps {  // of an array (B, H, T, D), in elements; D's is 1
  long long sequence, head, row;
};

struct Problem {
  int heads, queries, keys, width, causal, dropout;  // dropout: in units of 2^-16
  long long first_sequence;                          // its place in the whole batch
  unsigned long long key;                            // of the random bits
  Steps q, k, v, y, dy, dq, dk, dv;
};

__device__ inline int across() { return threadIdx.x % ACROSS; }
__device__ inline int down() { return threadIdx.x / ACROSS; }

// The head of a sequence that a block works on.
struct Head {
  const Problem& p;
  const int sequence, head, past;
  const float scale;
  const bool* seen;

  __device__ inline Head(const Problem& p, const bool* seen)
      : p(p),
        sequence(blockIdx.x / p.heads),
        head(blockIdx.x % p.heads),
        past(p.keys - p.queries),
        scale(1.0f / sqrtf((float)p.width)),
        seen(seen ? seen + (long long)sequence * p.keys : seen) {}

  // Its part of an array (B, H, T, D).
  template <class A>
  __device__ inline A* of(A* x, const Steps& steps) const {
    return x + sequence * steps.sequence + head * steps.head;
  }

  // The place of query i in an array (B, H, Tq).
  __device__ inline long long query(int i) const { return (long long)blockIdx.x * p.queries + i; }

  // Whether key j exists and is not padding.
  __device__ inline bool real(int j) const { return j < p.keys && (!seen || seen[j]); }

  __device__ inline bool sees(int i, int j) const {
    return i < p.queries && (!p.causal || j <= i + past);
  }

  // The factors of dropout for the weights of query i and keys j .. j + N - 1: 0 or 1 / (1 - p).
  template <int N>
  __device__ inline void drop(int i, int j, float (&factor)[N]) const {
    UNROLL for (int n = 0; n < N; ++n) factor[n] = 1.0f;
    if (p.dropout == 0) return;
    const long long row = ((sequence + p.first_sequence) * p.heads + head) * p.queries + i;
    const unsigned long long first = row * p.keys + j;
    unsigned long long word = random_word(p.key, first / 4);
    UNROLL for (int n = 0; n < N; ++n) {
      const unsigned long long place = first + n;
      if (n > 0 && place % 4 == 0) word = random_word(p.key, place / 4);
      const int bits = word >> place % 4 * 16 & 0xffff;
      factor[n] = bits >= p.dropout ? 65536.0f / (float)(65536 - p.dropout) : 0.0f;
    }
  }
};

// ---- Tiles: N vectors of D numbers, padded with zeros where there are fewer. ----

template <int N, int D>
struct alignas(16) Tile {
  float at[N][D + PAD];
};

struct alignas(16) Four {
  float at[4];
};

__device__ inline Four four(const float& x) { return reinterpret_cast<const Four&>(x); }

// A thread's share of a tile, on its way from global to shared memory.
template <int N, int D>
struct Share {
  float at[N * D / THREADS];
};

// Read vectors `first` and following of x (count, width).
template <int N, int D>
__device__ inline void fetch(Share<N, D>& share, const T* x, const Steps& steps, int first,
                             int count, int width) {
  const int d = threadIdx.x % D;
  first += threadIdx.x / D;
  const T* from = x + first * steps.row + d;
  UNROLL for (int n = 0; n < N * D / THREADS; ++n) {
    const bool inside = first + n * (THREADS / D) < count && d < width;
    share.at[n] = inside ? (float)*from : 0.0f;
    from += (THREADS / D) * steps.row;
  }
}

// Write them to shared memory in the order in which SIDE threads will read them.
template <int SIDE, int N, int D>
__device__ inline void put(const Share<N, D>& share, Tile<N, D>& tile) {
  UNROLL for (int n = 0; n < N * D / THREADS; ++n) {
    const int row = threadIdx.x / D + n * (THREADS / D);
    tile.at[row % (N / SIDE) * SIDE + row / (N / SIDE)][threadIdx.x % D] = share.at[n];
  }
}

// Fetch and put a tile that stays.
template <int N, int D>
__device__ inline void load(Tile<N, D>& tile, const T* x, const Steps& steps, int first,
                            int count, int width) {
  Share<N, D> share;
  fetch(share, x, steps, first, count, width);
  put<DOWN>(share, tile);
}

// s = a @ b^T: the thread's R x C of it.
template <int R, int C, int D>
__device__ inline void dots(const Tile<R * DOWN, D>& a, const Tile<C * ACROSS, D>& b,
                            float (&s)[R][C]) {
  UNROLL for (int i = 0; i < R; ++i) UNROLL for (int j = 0; j < C; ++j) s[i][j] = 0.0f;
#pragma unroll 2
  for (int d = 0; d < D; d += 4) {
    Four x[R];
    UNROLL for (int i = 0; i < R; ++i) x[i] = four(a.at[i * DOWN + down()][d]);
    UNROLL for (int j = 0; j < C; ++j) {
      const Four y = four(b.at[j * ACROSS + across()][d]);
      UNROLL for (int n = 0; n < 4; ++n)
        UNROLL for (int i = 0; i < R; ++i) s[i][j] += x[i].at[n] * y.at[n];
    }
  }
}

// A thread's part of R rows of D sums: of every 32 columns the four from 4 * across() on.
template <int R, int D>
struct Sums {
  Four at[R][D / 32];
};

// sums += s @ b, where s is spread over the threads. Tiles that were put before the call are
// visible to all threads within it, and when it returns, all have read them.
template <int R, int C, int D>
__device__ inline void gather(const float (&s)[R][C], Tile<R * DOWN, C * ACROSS>& exchange,
                              const Tile<C * ACROSS, D>& b, Sums<R, D>& sums) {
  UNROLL for (int i = 0; i < R; ++i)
    UNROLL for (int j = 0; j < C; ++j)
      exchange.at[i * DOWN + down()][j * ACROSS + across()] = s[i][j];
  __syncthreads();
#pragma unroll 1
  for (int n = 0; n < C * ACROSS; n += 4) {
    Four x[R];
    UNROLL for (int i = 0; i < R; ++i) x[i] = four(exchange.at[i * DOWN + down()][n]);
    UNROLL for (int m = 0; m < 4; ++m)
      UNROLL for (int g = 0; g < D / 32; ++g) {
        const Four y = four(b.at[n + m][32 * g + 4 * across()]);
        UNROLL for (int i = 0; i < R; ++i)
          UNROLL for (int l = 0; l < 4; ++l) sums.at[i][g].at[l] += x[i].at[m] * y.at[l];
      }
  }
  __syncthreads();
}

// Write vectors `first` and following of x (count, width), the i-th of a thread times factor[i].
template <int R, int D>
__device__ inline void store(const Sums<R, D>& sums, const float (&factor)[R], T* x,
                             const Steps& steps, int first, int count, int width) {
  UNROLL for (int i = 0; i < R; ++i) {
    const int row = first + down() * R + i;
    UNROLL for (int g = 0; g < D / 32; ++g)
      UNROLL for (int l = 0; l < 4; ++l) {
        const int d = 32 * g + 4 * across() + l;
        if (row < count && d < width) x[row * steps.row + d] = (T)(sums.at[i][g].at[l] * factor[i]);
      }
  }
}

// The result over the threads of a row, for all of them.
template <class Op>
__device__ inline float across_reduce(float v) {
  UNROLL for (int mask = ACROSS / 2; mask > 0; mask /= 2) v = Op::combine(v, warp_xor(v, mask));
  return v;
}

// ---- The forward pass. ----

// Turn one row of a tile of scores into weights, still to be divided by their total; lines 9
// and 10 of algorithm 1. Returns the factor that scales down the sums so far.
template <int C>
__device__ inline float online_softmax(const Head& at, int i, int j, const bool (&real)[C],
                                       float (&s)[C], float& top, float& total) {
  const float before = top;
  UNROLL for (int c = 0; c < C; ++c) {
    s[c] = real[c] && at.sees(i, j + c) ? s[c] * at.scale : minus_infinity();
    top = fmaxf(top, s[c]);
  }
  top = across_reduce<Max>(top);
  const float shift = top == minus_infinity() ? 0.0f : top;  // the query has seen nothing yet
  const float fade = expf(before - shift);
  float factor[C];
  at.drop(i, j, factor);
  total *= fade;
  UNROLL for (int c = 0; c < C; ++c) {
    const float w = expf(s[c] - shift);
    total += w;
    s[c] = w * factor[c];
  }
  return fade;
}

template <int D, int R, int C>
__device__ inline void forward(const T* q, const T* k, const T* v, const bool* seen, T* y,
                               float* lse, const Problem& p) {
  __shared__ Tile<R * DOWN, D> queries;
  __shared__ Tile<C * ACROSS, D> moving;  // keys, then their values
  __shared__ Tile<R * DOWN, C * ACROSS> exchange;
  const Head at(p, seen);
  // The blocks that see most keys start first, so that the last ones to run are short.
  const int start = (gridDim.y - 1 - blockIdx.y) * R * DOWN, i = start + down() * R;
  const int last = min(start + R * DOWN, p.queries) - 1;
  const int stop = p.causal ? min(p.keys, last + at.past + 1) : p.keys;
  k = at.of(k, p.k);
  v = at.of(v, p.v);
  load(queries, at.of(q, p.q), p.q, start, p.queries, p.width);
  float top[R], total[R], s[R][C];
  UNROLL for (int r = 0; r < R; ++r) top[r] = minus_infinity(), total[r] = 0.0f;
  Sums<R, D> sums = {};
  Share<C * ACROSS, D> share;
  fetch(share, k, p.k, 0, p.keys, p.width);
  for (int tile = 0; tile < stop; tile += C * ACROSS) {
    put<ACROSS>(share, moving);
    __syncthreads();
    fetch(share, v, p.v, tile, p.keys, p.width);
    dots(queries, moving, s);
    const int j = tile + across() * C;
    bool real[C];
    UNROLL for (int c = 0; c < C; ++c) real[c] = at.real(j + c);
    UNROLL for (int r = 0; r < R; ++r) {
      const float fade = online_softmax(at, i + r, j, real, s[r], top[r], total[r]);
      UNROLL for (int g = 0; g < D / 32; ++g)
        UNROLL for (int l = 0; l < 4; ++l) sums.at[r][g].at[l] *= fade;
    }
    __syncthreads();  // the keys have been read
    put<ACROSS>(share, moving);
    fetch(share, k, p.k, tile + C * ACROSS, p.keys, p.width);
    gather(s, exchange, moving, sums);
  }
  UNROLL for (int r = 0; r < R; ++r) {
    total[r] = across_reduce<Sum>(total[r]);
    const bool nothing = total[r] == 0.0f;
    if (across() == 0 && i + r < p.queries)
      lse[at.query(i + r)] = nothing ? 0.0f : top[r] + logf(total[r]);
    total[r] = nothing ? 0.0f : 1.0f / total[r];
  }
  store(sums, total, at.of(y, p.y), p.y, start, p.queries, p.width);
}

}  // namespace attention

// Kernels for heads of up to D numbers; the tiles fit 48 KB of shared memory. The second is for
// few queries, as in decoding.
#define ATTENTION_FORWARD(D, C)                                                                   \
  extern "C" __global__ __launch_bounds__(attention::THREADS, attention::BLOCKS) void             \
      attention_forward_##D(const T* q, const T* k, const T* v, const bool* seen, T* y,           \
                            float* lse, attention::Problem p) {                                   \
    attention::forward<D, 4, C>(q, k, v, seen, y, lse, p);                                        \
  }                                                                                               \
  extern "C" __global__ __launch_bounds__(attention::THREADS, attention::BLOCKS) void             \
      attention_decode_##D(const T* q, const T* k, const T* v, const bool* seen, T* y,            \
                           float* lse, attention::Problem p) {                                    \
    attention::forward<D, 1, 4>(q, k, v, seen, y, lse, p);                                        \
  }

ATTENTION_FORWARD(32, 4)
ATTENTION_FORWARD(64, 4)
ATTENTION_FORWARD(128, 2)
