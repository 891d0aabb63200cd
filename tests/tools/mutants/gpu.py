"""Bugs in the kernels and overrides on CuPy, each caught by a test that runs on CuPy."""

VALUES = "backend/test_kernels_cupy.py::test_values"
ATTENTION = "backend/test_attention_cupy.py::test_values"
HEAD = "backend/test_vocabulary_cupy.py::test_errors_are_those_of_rounding"
BITS = "backend/test_kernels_cupy.py::test_dropout_has_the_bits_of_numpy"
EMBEDDING = "backend/test_kernels_cupy.py::test_embedding_backward_with_repeated_and_unused_ids"
WINDOWS = "data/test_batches.py::test_batches_of_small_ids_are_int32_on_every_backend"
ROWS = "backend/test_kernels_cupy.py::test_a_warp_normalizes_one_row_after_the_other"
GATHER = "backend/test_optimizer_cupy.py::test_gather"

LAYERNORM = "backend/test_low_precision.py::test_layernorm_in_all_pairings_of_kernel_and_definition"

MUTANTS = {
    "minigpt/backend/gpu/adamw.cu::adamw_step": [
        (
            "no bias correction of the first moment",
            "float(lr) * root / debias(log_beta1, *step)",
            "float(lr) * root",
            "backend/test_optimizer_cupy.py::test_adamw_is_near_its_definition_in_float64",
        ),
        (
            "the weights are rounded to those that the passes see",
            "p[i] = pi;",
            "p[i] = p_half ? float(T(pi)) : pi;",
            "train/test_precision.py::test_bfloat16_has_weights_in_float32_and_no_loss_scale",
        ),
        (
            "a step that overflowed is taken",
            "if (!isfinite(s)) return;",
            "",
            "backend/test_optimizer_cupy.py::test_an_overflow_leaves_every_bit",
        ),
    ],
    "minigpt/backend/gpu/add_norm.cu::add_norm_back": [
        ("layernorm: no gain in dx", "d[i] *= gain[i];", "", VALUES),
        (
            "layernorm: the mean does not move with x",
            "(d[i] * gain[i] - sum - xhat[i] * along)",
            "(d[i] * gain[i] - xhat[i] * along)",
            VALUES,
        ),
        ("a team's sums begin anew with each row", "+= d[i] * xhat[i]", "= d[i] * xhat[i]", ROWS),
        ("the sums of the first team alone", "t < teams", "t < 1", ROWS),
        (
            "teams share their sums",
            "*dw = sums + team.of_block * room",
            "*dw = sums",
            "backend/test_kernels_cupy.py::test_the_same_bits_in_any_order_of_blocks_and_threads",
        ),
        (
            "the pending bias and b share their sums",
            "*dh_b = db + teams * room",
            "*dh_b = db",
            ROWS,
        ),
        (
            "the pending bias has the gradient of a team's last row",
            "dh_b[i * chunks + c / EACH] += d[i]",
            "dh_b[i * chunks + c / EACH] = d[i]",
            ROWS,
        ),
        (
            "shared memory is not cleared",
            "for (int i = threadIdx.x; i < number * teams * room; i += blockDim.x) sums[i] = 0.0f;",
            "",
            ROWS,
        ),
    ],
    "minigpt/backend/gpu/add_norm.cu::add_norm": [
        ("the pending bias is not added", "v[k + i] += bias[i];", ";", VALUES),
        (
            "the mean is kept in 16 bits",
            "mu[row] = mean,",
            "mu[row] = (float)(T)mean,",
            LAYERNORM,
        ),
        (
            "the deviation is kept in 16 bits",
            "rstd[row] = r;",
            "rstd[row] = (float)(T)r;",
            LAYERNORM,
        ),
        (
            "the layernorm is not that of the stream as it is kept",
            "sum += v[k + i] = (float)(T)v[k + i];",
            "sum += v[k + i];",
            "train/test_precision.py::test_the_layernorm_is_that_of_the_stream_as_it_is_kept",
        ),
        ("layernorm: no eps", "/ C + eps)", "/ C)", VALUES),
        (
            "the variance counts what lies beyond the row",
            "squares += i < n ? (v[k + i] - mean) * (v[k + i] - mean) : 0.0f;",
            "squares += (v[k + i] - mean) * (v[k + i] - mean);",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/attention.cu::forward": [
        (
            "no barrier between keys and values",
            "__syncthreads(); put<ACROSS>",
            "put<ACROSS>",
            ATTENTION,
        ),
        (
            "tiles on the diagonal are left out",
            "last + at.past + 1",
            "max(start + at.past, 1)",
            "backend/test_attention_cupy.py::test_values_where_tiles_end",
        ),
    ],
    "minigpt/backend/gpu/attention.cu::sees": [
        (
            "mask off by one",
            "j <= i + past",
            "j <= i + past + 1",
            "backend/test_attention_cupy.py::test_the_future_changes_no_bit_of_the_past",
        ),
    ],
    "minigpt/backend/gpu/clipping.cu::clip": [
        (
            "clipping makes short gradients longer",
            "fminf(1.0f, float(max_norm) / (norm + 1e-6f))",
            "(float(max_norm) / (norm + 1e-6f))",
            "optim/test_adamw.py::test_clipping_brings_the_norm_to_its_limit_and_never_up",
        ),
        (
            "a step whose loss is not finite is taken",
            "+ (loss ? 0.0f * *loss : 0.0f)",
            "",
            "optim/test_adamw.py::test_a_step_whose_loss_is_not_finite_is_skipped",
        ),
    ],
    "minigpt/backend/gpu/common.cu::upper_half": [
        (
            "bfloat16 is rounded to zero",
            "(u + 0x7fff + (u >> 16 & 1)) >> 16",
            "u >> 16",
            BITS,
        ),
        (
            "bfloat16: a tie is rounded up",
            "(u + 0x7fff + (u >> 16 & 1)) >> 16",
            "(u + 0x8000) >> 16",
            "backend/test_low_precision.py::test_rounding_to_bfloat16",
        ),
        (
            "bfloat16: a NaN becomes a zero",
            "v == v ? (u + 0x7fff + (u >> 16 & 1)) >> 16 : 0x7fff",
            "(u + 0x7fff + (u >> 16 & 1)) >> 16",
            "backend/test_low_precision.py::test_rounding_to_bfloat16",
        ),
    ],
    "minigpt/backend/gpu/common.cu::store_sums": [
        (
            "the sums of a block's first rows alone",
            "y < (int)blockDim.y",
            "y < (int)blockDim.y / 2",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/common.cu::Dropout": [
        (
            "what stays is not scaled",
            ">= limit ? v[i] * scale : 0.0f",
            ">= limit ? v[i] : 0.0f",
            BITS,
        ),
    ],
    "minigpt/backend/gpu/embedding.cu::embedding_backward": [
        (
            "positions begin at 0 in the backward pass",
            "t = position - start;",
            "t = position;",
            EMBEDDING,
        ),
        (
            "every token with an id adds all of them",
            "if (!by_id && stands_before(ids, blockIdx.x)) return;",
            "",
            EMBEDDING,
        ),
    ],
    "minigpt/backend/gpu/embedding.cu::put_sum": [
        (
            "a gradient that is given is overwritten",
            "if (add) sum += low ? (float)low[i] : wide[i];",
            "",
            EMBEDDING,
        ),
    ],
    "minigpt/backend/gpu/embedding.cu::embedding_forward": [
        (
            "positions begin at 0 in the forward pass",
            "if (wpe) wpe += (start + row % length) * C;",
            "if (wpe) wpe += (row % length) * C;",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/batches.cu::windows": [
        ("a window begins at its own number", "starts[i / length]", "i / length", WINDOWS),
        ("targets are the tokens themselves", "k < 2; ++k", "k < 1; ++k", WINDOWS),
        ("ids of two bytes are taken for four", "bytes == 2", "bytes == 3", WINDOWS),
    ],
    "minigpt/backend/gpu/gradients.py::gather": [
        (
            "a table is for sizes, wherever the arrays are",
            "x.data.ptr for",
            "arrays[0].data.ptr for",
            GATHER,
        ),
    ],
    "minigpt/backend/gpu/gradients.py::tables": [
        ("later launches begin at the first element", 'table["start"] -= start', "pass", GATHER),
    ],
    "minigpt/backend/gpu/gradients.cu::gather": [
        ("what was accumulated is overwritten", "flat[i] + g : g", "g : g", GATHER),
    ],
    "minigpt/backend/gpu/launch.py::supported": [
        (
            "kernels take views with gaps",
            "and x.size and x._c_contiguous",
            "and x.size",
            "backend/test_kernels_cupy.py::test_views_with_gaps_go_to_the_definition",
        ),
    ],
    "minigpt/backend/gpu/linear.cu::add_bias": [
        ("every row gets the bias of the first channels", "b + at.c, at.n", "b, at.n", VALUES),
        ("the last rows have no bias", "row += at.rows", "row += N", VALUES),
    ],
    "minigpt/backend/gpu/linear.cu::column_sums": [
        (
            "column sums: every part's second half is lost",
            "for (int i = 1; i < 16; ++i) sum += sums",
            "for (int i = 1; i < 8; ++i) sum += sums",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/softmax.cu::softmax_backward": [
        (
            "softmax: its denominator is taken for a constant",
            "((float)dy[c] - along)",
            "((float)dy[c])",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu::Head": [
        ("no 1/sqrt(D)", "scale(1.0f / sqrtf((float)p.width))", "scale(1.0f)", ATTENTION),
    ],
    "minigpt/backend/gpu::OPTIONS": [
        (
            "bfloat16 is read as float32",
            '"E": ("-std=c++17", "-DBFLOAT16")',
            '"E": ("-std=c++17",)',
            VALUES,
        ),
        (
            "float16 is read as float32",
            '"e": ("-std=c++17", "-DHALF")',
            '"e": ("-std=c++17",)',
            VALUES,
        ),
    ],
    "minigpt/backend/gpu::activation": [
        (
            "GELU by tanh: derivative of the cube without its 3",
            "(1.0f + 3.0f * cubic * x * x)",
            "(1.0f + cubic * x * x)",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/attention_backward.cu::backward_keys": [
        (
            "the first queries that see a key are left out",
            "max(0, start - at.past)",
            "max(0, start - at.past + 1)",
            "backend/test_attention_cupy.py::test_values_where_tiles_end",
        ),
    ],
    "minigpt/backend/gpu::block_reduce": [
        (
            "a block's result is that of its first warp",
            "i < (int)blockDim.x / warpSize; ++i) v = Op",
            "i < 1; ++i) v = Op",
            VALUES,
        ),
        (
            "no barrier between two reductions",
            "__syncthreads();\n  if",
            "if",
            "backend/test_kernels_cupy.py::test_rows_too_wide_for_a_block",
        ),
    ],
    "minigpt/backend/gpu::cross_entropy": [
        (
            "the bias is not in the gradient",
            "const float p = expf(v[i] + bias[i] - all);",
            "const float p = expf(v[i] - all);",
            HEAD,
        ),
        (
            "ignored targets have a gradient",
            "const float factor = target < 0 ? 0.0f : (",
            "const float factor = (",
            HEAD,
        ),
        (
            "a larger maximum does not shrink the sum so far",
            "total *= expf(top - highest);",
            "",
            HEAD,
        ),
    ],
    "minigpt/backend/gpu::mask_of": [
        (
            "a shard drops what the first rows drop",
            "rng.row and rng.row * math.prod(shape[1:])",
            "0",
            BITS,
        ),
    ],
    "minigpt/backend/gpu/attention.cu::online_softmax": [
        (
            "a finite mask",
            "? s[c] * at.scale : minus_infinity();",
            "? s[c] * at.scale : -1e4f;",
            "backend/test_attention_cupy.py::test_queries_that_see_nothing_give_and_get_nothing",
        ),
        ("a larger maximum does not shrink the sum", "total *= fade;", "", ATTENTION),
    ],
    "minigpt/backend/gpu::problem": [
        (
            "a shard drops what the first rows drop",
            "words[KEY], words[FIRST_SEQUENCE] = rng",
            "words[KEY] = rng[0]",
            ATTENTION,
        ),
    ],
    "minigpt/backend/gpu::random_word": [
        (
            "words of random bits off by one",
            "(word + 1) * 0x9E3779B97F4A7C15ull",
            "word * 0x9E3779B97F4A7C15ull",
            BITS,
        ),
    ],
    "minigpt/backend/gpu::rotary": [
        ("values are turned, too", "i < EACH && c + i < 2 * C; i += 2", "i < EACH; i += 2", VALUES),
        (
            "the backward pass turns forward",
            "(float)sign * (float)sin[angle]",
            "(float)sin[angle]",
            VALUES,
        ),
        (
            "a position is the number of the sequence",
            "blockIdx.x % length * (D / 2)",
            "blockIdx.x / length % length * (D / 2)",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/softmax.py::softmax_backward": [
        (
            "float64 goes on to the kernel",
            "return NotImplemented",
            "pass",
            "backend/test_kernels_cupy.py::test_float64_goes_to_the_definition",
        ),
    ],
    "minigpt/backend/gpu/attention_backward.cu::weigh": [
        (
            "softmax's denominator is taken for a constant",
            "ds = w * (ds * factor - delta);",
            "ds = w * ds * factor;",
            ATTENTION,
        ),
        ("dropout is not in dv", "s = w * factor;", "s = w;", ATTENTION),
    ],
    "minigpt/backend/devices.py::PRECISIONS": [
        (
            "bfloat16 has a loss scale",
            'Precision("bfloat16", loss_scaling=False',
            'Precision("bfloat16", loss_scaling=True',
            "train/test_precision.py::test_bfloat16_has_weights_in_float32_and_no_loss_scale",
        ),
    ],
    "minigpt/backend/devices.py::tf32_products": [
        (
            "CUPY_TF32=1 turns TF32 on where float32 is asked for",
            "if on else products.COMPUTE_TYPE_DEFAULT",
            "if on else before",
            "train/test_precision.py::test_what_a_run_asks_for_wins_over_cupys_variable",
        ),
    ],
    "minigpt/optim::orthogonalize": [
        (
            "in TF32 the Gram matrix is not made anew",
            "if coarse and i == 1:",
            "if False:",
            "backend/test_product_cupy.py::test_muon_in_tf32",
        ),
    ],
    "minigpt/train::make_optimizer": [
        (
            "Muon is not told of TF32",
            '"tf32": precision.tf32',
            '"tf32": False',
            "train/test_precision.py::test_bfloat16_has_weights_in_float32_and_no_loss_scale",
        ),
    ],
    "minigpt/train::Trainer.evaluate": [
        (
            "an evaluation is of the copy in half precision",
            "self.task, self.tree, self.config",
            "self.task, self.compute_tree, self.config",
            "train/test_precision.py::test_an_evaluation_is_in_single_precision",
        ),
    ],
    "minigpt/backend/low_precision.py::in_float32": [
        (
            "wide heads are summed in 16 bits",
            'y = x.astype("float32")',
            "y = x",
            "backend/test_low_precision.py::test_heads_wider_than_a_tile",
        ),
        (
            "results in 16 bits stay wide",
            'x.dtype.char == "f" and x.ndim',
            "False",
            "backend/test_low_precision.py::test_heads_wider_than_a_tile",
        ),
    ],
}
