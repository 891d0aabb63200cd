"""All kernels compile for every NVIDIA architecture, without a GPU and without a warning."""

import ctypes
import importlib.util
import re
from pathlib import Path

import pytest

FOLDER = Path(importlib.util.find_spec("minigpt.backend").origin).parent
KERNELS = FOLDER / "kernels_cupy.py"
ARCHITECTURES = (70, 75, 80, 86, 89, 90, 100, 120)  # of NVRTC 12.9, which has them all
# Of sm_70, and of what is not ours to mend.
DEPRECATED = "nvrtc: warning: Architectures prior to '<compute/sm>_75' are deprecated"


def package(name):
    """Return the folder of a package, which may be a namespace, or None."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec else None


@pytest.fixture(scope="module")
def nvrtc():
    folder = package("nvidia.cuda_nvrtc")
    found = sorted(folder.glob("lib/libnvrtc.so.*")) if folder else []
    if not found:
        pytest.skip("libnvrtc is not installed: pip install nvidia-cuda-nvrtc-cu12==12.9.*")
    return ctypes.CDLL(str(found[0]))


def architectures(nvrtc):
    n = ctypes.c_int()
    assert nvrtc.nvrtcGetNumSupportedArchs(ctypes.byref(n)) == 0
    supported = (ctypes.c_int * n.value)()
    assert nvrtc.nvrtcGetSupportedArchs(supported) == 0
    return set(supported)


def text(nvrtc, program, what):
    """Return the program's log or code, as bytes."""
    size = ctypes.c_size_t()
    assert getattr(nvrtc, f"nvrtcGet{what}Size")(program, ctypes.byref(size)) == 0
    buffer = ctypes.create_string_buffer(size.value)
    assert getattr(nvrtc, f"nvrtcGet{what}")(program, buffer) == 0
    return buffer.raw


def compile_source(nvrtc, source, options):
    """Return (status, log, code) of NVRTC."""
    program = ctypes.c_void_p()
    created = nvrtc.nvrtcCreateProgram(
        ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
    )
    assert created == 0
    array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
    status = nvrtc.nvrtcCompileProgram(program, len(options), array)
    log = text(nvrtc, program, "ProgramLog").rstrip(b"\0\n").decode()
    code = b"" if status else text(nvrtc, program, "CUBIN")
    assert nvrtc.nvrtcDestroyProgram(ctypes.byref(program)) == 0
    return status, log, code


def cupy_options(kernels, dtype, arch):
    """Return what CuPy passes to NVRTC: cupy/_core/core.pyx and cupy/cuda/compiler.py."""
    include = package("cupy") / "_core" / "include"
    folders = [include, *(include / "cupy" / "_cccl").iterdir()]
    headers = package("nvidia.cuda_runtime")
    if headers:
        folders.append(headers / "include")
    own = kernels.OPTIONS[dtype]
    found = [f"-I{folder}" for folder in folders if folder.is_dir()]
    return [*own, *found, "-ftz=true", f"-arch=sm_{arch}", "--device-as-default-execution-space"]


@pytest.mark.parametrize("dtype", ["f", "e", "E"], ids=["float32", "float16", "bfloat16"])
@pytest.mark.parametrize("arch", ARCHITECTURES)
def test_all_kernels_compile_without_a_word(nvrtc, arch, dtype):
    if package("cupy") is None:
        pytest.skip("CuPy is not installed: pip install 'cupy-cuda12x[ctk]'")
    if dtype != "f" and package("nvidia.cuda_runtime") is None:
        pytest.skip("no headers of CUDA: pip install nvidia-cuda-runtime-cu12==12.9.*")
    if arch not in architectures(nvrtc):
        pytest.skip(f"this NVRTC does not know sm_{arch}")
    try:
        kernels = importlib.import_module("minigpt.backend.gpu.launch")
    except ImportError as error:
        pytest.skip(f"CuPy does not load: {error}")
    status, log, code = compile_source(nvrtc, kernels.source(), cupy_options(kernels, dtype, arch))
    lines = [line for line in log.splitlines() if not line.startswith(DEPRECATED)]
    assert (lines, status) == ([], 0)
    plain = r"__global__ void (?:__launch_bounds__\([^)]*\)\s+)?(\w+)\("
    names = re.findall(plain, kernels.source())
    assert names and [name for name in names if name.encode() not in code] == []
