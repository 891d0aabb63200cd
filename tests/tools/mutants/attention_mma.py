"""Bugs in attention on tensor cores, each caught by a test that runs on CuPy."""

MMA = "backend/test_attention_mma_cupy.py::"
VALUES = f"{MMA}test_values"
HEADS = f"{MMA}test_values_of_other_heads"
DROPOUT = f"{MMA}test_dropout_takes_the_weights_of_the_mask"
ALIGNED = f"{MMA}test_rows_that_are_not_aligned_go_to_the_portable_kernels"
BACKWARD = "minigpt/backend/gpu/attention_mma_backward.cu::"

MUTANTS = {
    "minigpt/backend/gpu/attention.py::kernels": [
        ("arrays may begin anywhere", "x.data.ptr % PIECE == 0 and", "", ALIGNED),
        ("rows may begin anywhere", "not any(s % PIECE for s in x.strides[:3])", "True", ALIGNED),
        ("heads may end anywhere", "and first.shape[3] * 2 % PIECE == 0", "", ALIGNED),
    ],
    "minigpt/backend/gpu/attention_mma.cu::fetch": [
        ("a tile is filled up with the next head", "&& PIECE * i < width", "", HEADS),
    ],
    "minigpt/backend/gpu/attention_mma.cu::columns": [
        (
            "the registers of b change places",
            "row += lane() / 16 * 8 + lane() % 8;",
            "row += lane() / 8 % 2 * 8 + lane() % 8;",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/attention_mma.cu::rows": [
        ("the order of pieces is another for trans", "piece(row, lane() / 16)", "8", VALUES),
    ],
    "minigpt/backend/gpu/attention_mma.cu::mix": [
        (
            "the registers of a change places",
            "s.at[r][n / 8 + i / 2] + i % 2 * 2",
            "s.at[r][n / 8 + i % 2] + i / 2 * 2",
            VALUES,
        ),
        ("the weights of a pair change places", "pack(c[0], c[1])", "pack(c[1], c[0])", VALUES),
    ],
    "minigpt/backend/gpu/attention_mma.cu::hide": [
        ("mask off by one", "j + keys <= i + at.past + 1", "j + keys <= i + at.past + 2", VALUES),
    ],
    "minigpt/backend/gpu/attention_mma.cu::random_bits": [
        ("two queries' words change places", "odd ? low : high", "odd ? high : low", DROPOUT),
        ("bits of four keys change places", "e / 2 ? near : far", "e / 2 ? far : near", DROPOUT),
        ("every row begins a word", "at / 4) >> at % 4 * 16", "at / 4) >> e * 16", DROPOUT),
    ],
    "minigpt/backend/gpu/attention_mma.cu::queries_of": [
        ("the diagonal is left out", "i + 16 * R + at.past", "i + at.past", VALUES),
    ],
    "minigpt/backend/gpu/attention_mma_forward.cu::online_softmax": [
        ("sums are not scaled down", "sums.at[r][n][e] *= fade;", "sums.at[r][n][e] *= 1;", VALUES),
        ("every lane has its own maximum", "most = row_reduce<Max>(most);", "", VALUES),
    ],
    "minigpt/backend/gpu/attention_mma_forward.cu::forward": [
        ("a tile is not waited for", "copies.wait(); __syncthreads();", "__syncthreads();", VALUES),
        ("the others' part is not waited for", "__syncthreads();", "", VALUES),
        ("a tile comes where one is in use", "values[!now].fetch", "values[now].fetch", VALUES),
        ("what stays is not scaled", "gain(p) / total[r][h]", "1.0f / total[r][h]", VALUES),
    ],
    f"{BACKWARD}row_dots": [
        ("delta of a quarter of the row", "sum[r][h] = row_reduce<Sum>(sum[r][h]);", "", VALUES),
    ],
    f"{BACKWARD}backward_queries": [
        ("a tile is not waited for", "copies.wait(); __syncthreads();", "__syncthreads();", VALUES),
        ("the others' part is not waited for", "__syncthreads();", "", VALUES),
        ("dropout is left out of ds", "drop(at, kept, gain(p), ds);", "", VALUES),
    ],
    f"{BACKWARD}backward_keys": [
        ("a tile is not waited for", "copies.wait(); __syncthreads();", "__syncthreads();", VALUES),
        ("the others' part is not waited for", "__syncthreads();", "", VALUES),
        ("dropout is left out of dv", "drop(at, kept, 1.0f, s);", "", VALUES),
        (
            "queries that see a key are left out",
            "max(0, j - at.past - tile)",
            "max(0, j + CHUNK - at.past - tile)",
            VALUES,
        ),
        ("lse is taken for delta", "norms[now][N + column]", "norms[now][column]", VALUES),
    ],
}
