"""Bugs in matrix products on CuPy."""

PRODUCT = "backend/test_product_cupy.py::"
VALUES = f"{PRODUCT}test_values"
FLAGS = f"{PRODUCT}test_axes_in_front_are_rows_and_a_flag_transposes"
HEAD = "backend/test_vocabulary_cupy.py::test_errors_are_those_of_rounding"
PLACES = "train/test_places.py::"
GATHERED = f"{PLACES}test_gradients_are_those_that_are_gathered"

MUTANTS = {
    "minigpt/backend/gpu/product.py::layout": [
        ("gaps between rows are not seen", "return 0, down // item", "return 0, columns", VALUES),
        (
            "transposed, but not said so",
            "return 1, right // item",
            "return 0, right // item",
            VALUES,
        ),
        (
            "rows that overlap are taken for rows",
            " and down >= columns * item",
            "",
            f"{PRODUCT}test_what_cublas_does_not_take_is_left_to_cupy",
        ),
    ],
    "minigpt/backend/gpu/product.py::product": [
        (
            "each factor has the row length of the other",
            "at_b, factor, ld_b, at_a, factor, ld_a",
            "at_b, factor, ld_a, at_a, factor, ld_b",
            VALUES,
        ),
        (
            "each factor is transposed as the other",
            "handle, turn_b, turn_a, n, m, k",
            "handle, turn_a, turn_b, n, m, k",
            VALUES,
        ),
        ("a transposed factor is read as it lies", "1 - turn_b", "turn_b", FLAGS),
        ("the first factor is read as it lies", "1 - turn_a", "turn_a", FLAGS),
        ("rows for columns", "turn_a, n, m, k", "turn_a, m, n, k", VALUES),
        ("nothing is added to", "ONE if add else ZERO", "ZERO", VALUES),
        ("what is there is always added to", "ONE if add else ZERO", "ONE", VALUES),
        (
            "a new array is added to",
            "dtype or a.dtype), False",
            "dtype or a.dtype), add",
            f"{PRODUCT}test_nothing_is_added_to_a_new_array",
        ),
        (
            "the stream is the first one",
            "pointer(get_current_stream().ptr)",
            "None",
            f"{PRODUCT}test_it_is_cupys_handle_and_stream",
        ),
        (
            "shapes are not looked at",
            "if k != also_k or rows != m or columns != n or out.ndim > 2 and not out._c_contiguous",
            "if False",
            f"{PRODUCT}test_shapes_that_do_not_fit_are_refused",
        ),
    ],
    "minigpt/backend/gpu/product.py::with_cupy": [
        (
            "sums of float16 are rounded before they are added",
            '(add or out.dtype.char != "e" or out.size == 1)',
            "False",
            VALUES,
        ),
    ],
    "minigpt/backend/gpu/product.py::check": [
        (
            "an error of cuBLAS is not looked at",
            "if status:",
            "if False:",
            f"{PRODUCT}test_a_failure_is_cupys_error",
        ),
    ],
    "minigpt/backend/gpu/product.py::compute_type": [
        (
            "TF32 is never asked for",
            "COMPUTE_32F_FAST_TF32 if tf32 else COMPUTE_32F",
            "COMPUTE_32F",
            f"{PRODUCT}test_tf32_is_asked_for_where_it_is_on",
        ),
        (
            "TF32 is asked for with 16-bit factors",
            'tf32 = char == "f" and',
            "tf32 =",
            f"{PRODUCT}test_tf32_is_asked_for_where_it_is_on",
        ),
    ],
    "minigpt/backend/gpu/product.py::batched": [
        (
            "all matrices of a stack are multiplied by the first one",
            "far(step_b)",
            "far(0)",
            f"{PRODUCT}test_stacks_of_matrices",
        ),
        (
            "a stack of transposed matrices is taken as it lies",
            "handle, flip_b, flip_a, n, m, k, ONE, at_b, FLOAT32, ld_b, far(step_b)",
            "handle, flip_b, 0, n, m, k, ONE, at_b, FLOAT32, ld_b, far(step_b)",
            f"{PRODUCT}test_stacks_of_matrices",
        ),
    ],
    "minigpt/backend/gpu/product.py::cublas": [
        (
            "a cuBLAS without the function is a traceback",
            "RuntimeError, AttributeError)",
            "RuntimeError)",
            f"{PRODUCT}test_a_cublas_that_does_not_load_is_one_line",
        ),
    ],
    "minigpt/backend/gpu/cross_entropy.cu::cross_entropy": [
        ("rows of logits without gaps", "logits + row * length", "logits + row * V", HEAD),
    ],
    "minigpt/backend/gpu/cross_entropy.py::compute": [
        (
            "dw of the last chunk of rows only",
            'if "w" in sums:',
            'if "w" in sums and rows.stop == len(x2):',
            HEAD,
        ),
        (
            "rows of logits are as long as the vocabulary",
            "length = ALIGNED * -(-V // ALIGNED)",
            "length = V",
            "backend/test_vocabulary_cupy.py::test_rows_of_logits_begin_at_multiples_of_64",
        ),
    ],
    "minigpt/backend/gpu/cross_entropy.py::Total.plus": [
        ("each chunk of dw replaces the one before", "self.add = True", "pass", HEAD),
    ],
    "minigpt/backend/gpu/cross_entropy.py::Total.__init__": [
        ("chunks of dw are summed in 16 bits", "np.float32", "parameter.dtype", HEAD),
    ],
    "minigpt/backend/gpu/cross_entropy.py::most_logits": [
        (
            "the memory of a logit does not count",
            "/ size)",
            "/ 4)",
            "backend/test_vocabulary_cupy.py::test_logits_take_a_sixteenth_of_the_memory_at_most",
        ),
    ],
    "minigpt/backend/gpu/embedding.cu::embedding_backward": [
        (
            "positions of further batches replace the first",
            "wide_wpe, position * C + c, sum, add",
            "wide_wpe, position * C + c, sum, false",
            GATHERED,
        ),
    ],
    "minigpt/backend/gpu/embedding.py::embedding_backward": [
        ("further batches of a table replace the first", "if not add:", "if True:", GATHERED),
        ("the first batch is added to the last step", "if not add:", "if False:", GATHERED),
    ],
    "minigpt/backend/gpu/lora.py::lora_backward": [
        (
            "lora_b's gradient without the scale",
            "times(scale, u)",
            "u",
            "backend/test_kernels_cupy.py::test_values",
        ),
    ],
}
