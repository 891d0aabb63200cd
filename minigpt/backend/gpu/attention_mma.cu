// Attention on tensor cores, for a T of 16 bits: what its kernels share. The algorithm is that of
// attention.cu; here the products are those of attention_instructions.cu, and scores stay in
// registers.
//
// A block has four warps. Each keeps R * 16 vectors of a head in registers (queries; in the last
// kernel keys), and all move tiles of N vectors of the other kind past them through shared memory,
// where the next tile arrives while one is in use. A warp takes a tile CHUNK vectors at a time.
//
//   scores: c = a @ tile^T     a row of the tile is a column of b: ldmatrix
//   mix:    c += a @ tile      a row of the tile is a row of b: ldmatrix with trans
//
// Two neighbouring c of scores, each pair of numbers rounded to T in one register, are an a of mix:
// what one product leaves needs no exchange between lanes.
//
// ldmatrix reads eight rows of a matrix at once, 16 bytes of each. For these to lie in different
// banks, a tile has the pieces of 16 bytes of a row in an order of its own: see Tile::piece.

#ifdef ATTENTION_MMA
namespace attention_mma {

using attention::Head;
using attention::Problem;
using attention::Steps;

constexpr int PIECE = 8;  // elements of T in 16 bytes

// ---- Vectors of D numbers, padded with zeros where there are fewer ----

// N of them in shared memory.
template <int N, int D>
struct alignas(16) Tile {
  T at[N][D];

  // Where piece number `piece` of a row lies. The 128 bytes of all banks hold LINE rows, and eight
  // rows that are read together differ in this number or in their place in a line.
  static __device__ int piece(int row, int piece) {
    constexpr int PIECES = D / PIECE, LINE = PIECES < 8 ? 8 / PIECES : 1;
    return PIECE * (piece ^ row / LINE % (PIECES < 8 ? PIECES : 8));
  }

  // Begin to fetch vectors `first` and following of x (count, width).
  __device__ void fetch(Copies& copies, const T* x, const Steps& steps, int first, int count,
                        int width) {
    constexpr int PIECES = D / PIECE;
#pragma unroll 1
    for (int n = threadIdx.x; n < N * PIECES; n += THREADS) {
      const int row = n / PIECES, i = n % PIECES;
      const bool inside = first + row < count && PIECE * i < width;
      const T* from = x + (first + row) * steps.row + PIECE * i;
      copies.start<16>(at[row] + piece(row, i), inside ? from : x, inside);
    }
  }

  // The b of 16 vectors from `row` on in numbers d to d + 15: its columns 0 to 7, then 8 to 15.
  __device__ Words columns(int row, int d) const {  // vectors are columns
    row += lane() / 16 * 8 + lane() % 8;
    return load_matrices<false>(at[row] + (d ^ piece(row, lane() / 8 % 2)));
  }
  __device__ Words rows(int row, int d) const {  // vectors are rows
    row += lane() / 8 % 2 * 8 + lane() % 8;
    return load_matrices<true>(at[row] + (d ^ piece(row, lane() / 16)));
  }

  // The a of the same, of which the vectors are rows.
  __device__ Words still(int row, int d) const {
    row += lane() % 16;
    return load_matrices<false>(at[row] + (d ^ piece(row, lane() / 16)));
  }
};

// R * 16 of them, as a: of a tile, which the others wait for too, ...
template <int N, int D>
struct StillInTile {
  const Tile<N, D>& tile;
  const int first;

  __device__ Words get(int r, int d) const { return tile.still(first + 16 * r, d); }
};

// ... or in the registers of a warp.
template <int R, int D>
struct Still {
  Words at[R][D / 16];

  __device__ Words get(int r, int d) const { return at[r][d / 16]; }

  // Vectors `first` and following of x (count, width).
  __device__ Still(const T* x, const Steps& steps, int first, int count, int width) {
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int k = 0; k < D / 16; ++k)
        UNROLL for (int i = 0; i < 4; ++i) {
          const int row = first + 16 * r + g() + i % 2 * 8, d = 16 * k + 2 * t() + i / 2 * 8;
          const T* from = x + row * steps.row + d;
          at[r][k].at[i] = row < count && d < width ? *(const unsigned*)from : 0;
        }
  }
};

// ---- Products ----

// R * 16 rows of N sums, as c.
template <int R, int N>
struct Sums {
  float at[R][N / 8][4] = {};
};

// s += still @ tile^T, with vectors `first` to first + N - 1 of the tile.
template <class Still, int K, int D, int R, int N>
__device__ inline void scores(const Still& still, const Tile<K, D>& tile, int first,
                              Sums<R, N>& s) {
  UNROLL for (int d = 0; d < D; d += 16) {
    Words a[R];
    UNROLL for (int r = 0; r < R; ++r) a[r] = still.get(r, d);
    UNROLL for (int n = 0; n < N; n += 16) {
      const Words b = tile.columns(first + n, d);
      UNROLL for (int r = 0; r < R; ++r) {
        multiply(s.at[r][n / 8], a[r], b.at[0], b.at[1]);
        multiply(s.at[r][n / 8 + 1], a[r], b.at[2], b.at[3]);
      }
    }
  }
}

// sums += s @ tile, with s rounded to T, and the same vectors.
template <int R, int N, int K, int D>
__device__ inline void mix(const Sums<R, N>& s, const Tile<K, D>& tile, int first,
                           Sums<R, D>& sums) {
  UNROLL for (int n = 0; n < N; n += 16) {
    Words a[R];
    UNROLL for (int r = 0; r < R; ++r)
      UNROLL for (int i = 0; i < 4; ++i) {
        const float* c = s.at[r][n / 8 + i / 2] + i % 2 * 2;
        a[r].at[i] = pack(c[0], c[1]);
      }
    UNROLL for (int d = 0; d < D; d += 16) {
      const Words b = tile.rows(first + n, d);
      UNROLL for (int r = 0; r < R; ++r) {
        multiply(sums.at[r][d / 8], a[r], b.at[0], b.at[1]);
        multiply(sums.at[r][d / 8 + 1], a[r], b.at[2], b.at[3]);
      }
    }
  }
}

// Write rows `first` and following of x (count, width): the sums, row 16 r + 8 h + g of them times
// factor[r][h].
template <int R, int D>
__device__ inline void store(const Sums<R, D>& sums, const float (&factor)[R][2], T* x,
                             const Steps& steps, int first, int count, int width) {
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int h = 0; h < 2; ++h) {
      const int row = first + 16 * r + 8 * h + g();
      UNROLL for (int n = 0; n < D / 8; ++n) {
        const float* c = sums.at[r][n] + 2 * h;
        const int d = 8 * n + 2 * t();
        if (row < count && d < width)
          *(unsigned*)(x + row * steps.row + d) = pack(c[0] * factor[r][h], c[1] * factor[r][h]);
      }
    }
}

// The result over the lanes of a row, for all of them.
template <class Op>
__device__ inline float row_reduce(float v) {
  v = Op::combine(v, warp_xor(v, 1));
  return Op::combine(v, warp_xor(v, 2));
}

// ---- Who computes what, where a warp keeps queries ----

// Of a warp the first query, and the ends of the keys that its block and it see.
struct Queries {
  int first, stop, own_stop;
};

template <int R>
__device__ inline Queries queries_of(const Head& at) {
  const Problem& p = at.p;
  // The blocks that see most keys start first, so that the last ones to run are short.
  const int start = (gridDim.y - 1 - blockIdx.y) * THREADS / 2 * R, i = start + warp() * 16 * R;
  const int last = min(start + THREADS / 2 * R, p.queries) - 1;
  const int stop = p.causal ? min(p.keys, last + at.past + 1) : p.keys;
  const int own_stop = i >= p.queries ? 0 : p.causal ? min(stop, i + 16 * R + at.past) : stop;
  return {i, stop, own_stop};
}

// ---- Scores: rows are queries and columns keys, or with DOWN keys go down ----

// Set those to minus infinity that are not to be seen: of rows and columns from these on.
template <bool DOWN, int R, int N>
__device__ inline void hide(const Head& at, int row, int column, Sums<R, N>& s) {
  const Problem& p = at.p;
  const int i = DOWN ? column : row, j = DOWN ? row : column;  // the first query and key
  const int queries = DOWN ? N : 16 * R, keys = DOWN ? 16 * R : N;
  if (!at.seen && i + queries <= p.queries && j + keys <= p.keys &&
      (!p.causal || j + keys <= i + at.past + 1))
    return;
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int n = 0; n < N / 8; ++n)
      UNROLL for (int e = 0; e < 4; ++e) {
        const int down = row + 16 * r + g() + e / 2 * 8, across = column + 8 * n + 2 * t() + e % 2;
        const int query = DOWN ? across : down, key = DOWN ? down : across;
        if (!at.real(key) || !at.sees(query, key)) s.at[r][n][e] = minus_infinity();
      }
}

// The 16 random bits of each of the lane's four weights of a c, two in a word. The first weight is
// that of query i and key j.
template <bool DOWN>
__device__ inline void random_bits(const Head& at, int i, int j, unsigned (&bits)[2]) {
  const Problem& p = at.p;
  const long long heads = (at.sequence + p.first_sequence) * p.heads + at.head;
  const unsigned long long place = (heads * p.queries + i) * p.keys + j;
  const long long below = 8 * (DOWN ? 1 : p.keys), beside = DOWN ? p.keys : 1;  // of the others
  if (p.keys % 4) {  // four keys share a word, but not the same four in each row
    UNROLL for (int e = 0; e < 4; ++e) {
      const unsigned long long at = place + e / 2 * below + e % 2 * beside;
      const unsigned part = random_word(p.key, at / 4) >> at % 4 * 16 & 0xffff;
      bits[e / 2] = e % 2 ? bits[e / 2] | part << 16 : part;
    }
  } else if (DOWN) {  // lanes of four keys make a word each, for one e, and exchange them
    const int e = g() % 4;
    const unsigned long long word =
        random_word(p.key, (place + e / 2 * below + e % 2 * beside) / 4);
    const unsigned low = word, high = word >> 32;
    const unsigned even = (low & 0xffff) | high << 16, odd = low >> 16 | (high & 0xffff0000);
    const unsigned mine = e % 2 ? odd : even;  // of keys e % 2 and e % 2 + 2
    const unsigned other = __shfl_xor_sync(0xffffffffu, e % 2 ? even : odd, 4);
    const unsigned first = e % 2 ? other : mine, second = e % 2 ? mine : other;
    const unsigned near = (first & 0xffff) | second << 16;
    const unsigned far = first >> 16 | (second & 0xffff0000);
    const unsigned got = __shfl_xor_sync(0xffffffffu, e / 2 ? near : far, 8);
    bits[0] = e / 2 ? got : near;
    bits[1] = e / 2 ? far : got;
  } else {  // two lanes make a word each, of row g or g + 8, and exchange halves
    const bool odd = t() % 2;
    const unsigned long long word = random_word(p.key, (place + odd * below) / 4);
    const unsigned low = word, high = word >> 32;
    const unsigned other = __shfl_xor_sync(0xffffffffu, odd ? low : high, 1);
    bits[0] = odd ? other : low;
    bits[1] = odd ? high : other;
  }
}

// Which weights dropout leaves: a bit for each that the lane has, made before there are scores to
// keep in registers.
template <bool DOWN, int R, int N>
__device__ inline unsigned long long keep(const Head& at, int row, int column) {
  unsigned long long kept = 0;
  if (at.p.dropout == 0) return kept;
#pragma unroll 2
  for (int m = 0; m < R * N / 8; ++m) {
    const int down = row + m / (N / 8) * 16 + g(), across = column + m % (N / 8) * 8 + 2 * t();
    unsigned bits[2];
    random_bits<DOWN>(at, DOWN ? across : down, DOWN ? down : across, bits);
    UNROLL for (int e = 0; e < 4; ++e) {
      const bool stays = (int)(bits[e / 2] >> e % 2 * 16 & 0xffff) >= at.p.dropout;
      kept |= (unsigned long long)stays << (4 * m + e);
    }
  }
  return kept;
}

// Set the others to 0, and multiply those by gain.
template <int R, int N>
__device__ inline void drop(const Head& at, unsigned long long kept, float gain, Sums<R, N>& s) {
  if (at.p.dropout == 0) return;
  UNROLL for (int r = 0; r < R; ++r)
    UNROLL for (int n = 0; n < N / 8; ++n)
      UNROLL for (int e = 0; e < 4; ++e) {
        const bool stays = kept >> ((r * N / 8 + n) * 4 + e) & 1;
        s.at[r][n][e] = stays ? s.at[r][n][e] * gain : 0.0f;
      }
}

__device__ inline float gain(const Problem& p) { return 65536.0f / (float)(65536 - p.dropout); }

constexpr float LOG2_E = 1.44269504f;  // exp(x) is exp2(x * LOG2_E), which is an instruction

}  // namespace attention_mma
#endif
