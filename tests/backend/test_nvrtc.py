"""All kernels compile for NVIDIA's architectures, without a GPU and without a warning.

With NVRTC of CUDA 12 and of CUDA 13, each of which may be installed or not: pip install -e
'.[kernels]'. The compiler's report says what a kernel takes of a multiprocessor.
"""

import functools

import pytest

from bench.lib import ptxas
from minigpt.errors import UserError

DTYPES = {"f": "float32", "e": "float16", "E": "bfloat16"}
# One of each generation, from the RTX 20 series to the RTX 50; then what else is sold today.
ARCHITECTURES, OTHERS = (75, 80, 90, 120), (86, 89, 100)
ALWAYS = [(arch, "f") for arch in ARCHITECTURES] + [(75, "e"), (80, "e"), (90, "E"), (120, "E")]
TENSOR_CORES = 80  # the first with what attention_instructions.cu has
REGISTERS, SHARED = 65536, 49152  # of a block, at most


@functools.cache
def compiler(cuda):
    """The compiler, or why there is none."""
    try:
        found = ptxas.Compiler(cuda)
        ptxas.launch_module()
        return found, None
    except UserError as error:
        return None, str(error)


@functools.cache
def blocks(cuda, dtype):
    return ptxas.largest_blocks(compiler(cuda)[0], dtype)


def needed(cuda, dtype, arch=ARCHITECTURES[-1]):
    """Return the compiler; skip the test where it, or the dtype, is not there."""
    found, why = compiler(cuda)
    if found is None:
        pytest.skip(why)
    if arch not in found.architectures:
        pytest.skip(f"NVRTC {found.version} does not know sm_{arch}")
    return found


def cases():
    for cuda in ptxas.WHEELS:
        for arch in (*ARCHITECTURES, *OTHERS):
            for dtype in DTYPES:
                marks = [] if (arch, dtype) in ALWAYS else [pytest.mark.slow]
                name = f"CUDA {cuda}, sm_{arch}, {DTYPES[dtype]}"
                yield pytest.param(cuda, arch, dtype, marks=marks, id=name)


@pytest.mark.parametrize("cuda, arch, dtype", list(cases()))
def test_all_kernels_compile_without_a_word_and_within_their_limits(cuda, arch, dtype):
    nvrtc = needed(cuda, dtype, arch)
    status, log, code = ptxas.compile_kernels(nvrtc, dtype, arch)
    used, others = ptxas.usage(log)
    assert (others, status) == ([], 0)
    threads = blocks(cuda, dtype)
    expected = {name for name in threads if arch >= TENSOR_CORES or "_mma_" not in name}
    assert used.keys() == expected and [n for n in used if n.encode() not in code] == []
    assert used.keys() <= {*ptxas.kernel_names(ptxas.launch_module().source())}
    for name, kernel in used.items():
        spilled = max(kernel.spill_stores, kernel.spill_loads)
        assert spilled <= ptxas.allowed_spill(name, arch), (name, kernel)
        assert ptxas.registers_of_block(kernel.registers, threads[name]) <= REGISTERS, name
        assert kernel.shared <= SHARED, name


@pytest.mark.parametrize("cuda", ptxas.WHEELS)
def test_every_kernel_says_how_large_its_blocks_are(cuda):
    needed(cuda, "f")
    assert [name for name, threads in blocks(cuda, "f").items() if not 64 <= threads <= 1024] == []


def test_the_names_of_kernels_are_found_in_their_source():
    source = """
extern "C" __global__ void __launch_bounds__(256)
one(const float* x) {}  // __global__ void none(int x)
#define TWO(D, name)                                             \\
  extern "C" __global__ __launch_bounds__(a::B, a::C) void       \\
      two_##name##_##D(float* y) {                               \\
    a::two<D>(y);                                                \\
  }
TWO(32, in)
TWO(64, out)
extern "C" __global__ void three() {}
"""
    assert ptxas.kernel_names(source) == ["one", "three", "two_in_32", "two_out_64"]


def test_a_report_of_ptxas_is_read():
    log = """ptxas info    : 36 bytes gmem
ptxas info    : Compiling entry function 'one' for 'sm_90'
ptxas info    : Function properties for one
ptxas         .     48 bytes stack frame, 44 bytes spill stores, 40 bytes spill loads
ptxas info    : Used 168 registers, used 1 barriers, 47360 bytes smem
ptxas info    : Compiling entry function 'two' for 'sm_90'
ptxas info    : Used 22 registers
kernels.cu(3): warning #177-D: variable "x" was declared but never referenced"""
    used, others = ptxas.usage(log)
    assert used == {
        "one": ptxas.Usage(168, 47360, 48, 44, 40),
        "two": ptxas.Usage(22, 0, 0, 0, 0),
    }
    assert others == log.splitlines()[-1:]
    assert ptxas.registers_of_block(41, 1000) == 48 * 1024


def test_a_compiler_that_is_not_installed_is_one_line(monkeypatch):
    monkeypatch.setattr(ptxas, "package", lambda name: None)
    with pytest.raises(UserError, match=r"^NVRTC of CUDA 13 is not installed: pip install '.*13"):
        ptxas.Compiler(13)
