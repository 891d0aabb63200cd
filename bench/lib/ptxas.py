"""Registers, shared memory and spills of every kernel, as NVIDIA's compiler reports them: no GPU.

NVRTC, the compiler that CuPy calls, comes in a wheel for CUDA 12 (folder nvidia/cuda_nvrtc) and in
one for CUDA 13 (nvidia/cu13). Given --ptxas-options=-v, it puts ptxas's report into its log.
"""

import ctypes
import importlib
import importlib.util
import re
from pathlib import Path
from typing import NamedTuple

from minigpt.errors import UserError

WHEELS = {12: ("cuda_nvrtc", "cuda_runtime"), 13: ("cu13", "cu13")}  # folders of nvidia
INSTALL = {
    12: "pip install 'nvidia-cuda-nvrtc-cu12==12.9.*' 'nvidia-cuda-runtime-cu12==12.9.*'",
    13: "pip install 'nvidia-cuda-nvrtc==13.5.*' 'nvidia-cuda-runtime==13.5.*'",
}
OLDEST, NEWEST = 75, 120  # architectures, as in sm_75
REPORT = ("--ptxas-options=-v",)
ENTRY = re.compile(r"Compiling entry function '(\w+)' for 'sm_(\d+)'")
SPILLS = re.compile(r"(\d+) bytes stack frame, (\d+) bytes spill stores, (\d+) bytes spill loads")
USED = re.compile(r"Used (\d+) registers(?:.*?(\d+) bytes smem)?")
THREADS = re.compile(r"\.entry (\w+)\([^)]*\)\s*(?:\.maxntid (\d+))?")
# Those of the attention kernels for any dtype spill, outside of their loops over tiles.
SPILLING = re.compile(r"attention_(forward|decode|backward_queries|backward_keys)_(32|64|128)")
SPILLED, SPILLED_ELSEWHERE = {90: 64}, 140  # bytes of a thread, at most, by architecture
# A kernel, and a macro that defines some.
BOUND = r"(?:__launch_bounds__\([^)]*\)\s+)?"
KERNEL = re.compile(rf"__global__\s+{BOUND}void\s+{BOUND}(\w+)\s*\(")
MACRO = re.compile(r"^#define (\w+)\(([^)]*)\)(.*__global__.*)$", re.MULTILINE)


class Usage(NamedTuple):
    """What a kernel takes: per thread, but for static shared memory (bytes of a block)."""

    registers: int
    shared: int
    stack: int
    spill_stores: int
    spill_loads: int


def package(name):
    """Return the folder of a package, which may be a namespace, or None."""
    try:
        spec = importlib.util.find_spec(name)
    except ModuleNotFoundError:
        return None
    return Path(next(iter(spec.submodule_search_locations))) if spec else None


class Compiler:
    """NVRTC of one version of CUDA.

    Parameters
    ----------
    cuda : int
        12 or 13.

    Attributes
    ----------
    version : (int, int)
    architectures : list of int
        Those that it knows, from `OLDEST` to `NEWEST`.

    Raises
    ------
    UserError
        If its wheels are not installed.
    """

    def __init__(self, cuda):
        folders = [package(f"nvidia.{name}") for name in WHEELS[cuda]]
        found = sorted(folders[0].glob(f"lib/libnvrtc.so.{cuda}")) if folders[0] else []
        if not found or not folders[1] or not (folders[1] / "include" / "cuda_fp16.h").exists():
            raise UserError(f"NVRTC of CUDA {cuda} is not installed: {INSTALL[cuda]}")
        for builtins in folders[0].glob(f"lib/libnvrtc-builtins.so.{cuda}.*"):
            ctypes.CDLL(str(builtins))  # 13.0 does not look for them beside itself
        self.library, self.headers = ctypes.CDLL(str(found[0])), folders[1] / "include"
        major, minor = ctypes.c_int(), ctypes.c_int()
        self.call("nvrtcVersion", ctypes.byref(major), ctypes.byref(minor))
        self.version = major.value, minor.value
        count = ctypes.c_int()
        self.call("nvrtcGetNumSupportedArchs", ctypes.byref(count))
        known = (ctypes.c_int * count.value)()
        self.call("nvrtcGetSupportedArchs", known)
        self.architectures = [arch for arch in sorted(known) if OLDEST <= arch <= NEWEST]

    def call(self, name, *args):
        status = getattr(self.library, name)(*args)
        if status:
            raise RuntimeError(f"{name} of NVRTC gives status {status}")

    def compile(self, source, options, what="CUBIN"):
        """Return (status, log, code); the code is empty where the status is not 0."""
        program = ctypes.c_void_p()
        names = ctypes.byref(program), source.encode(), b"kernels.cu", 0, None, None
        self.call("nvrtcCreateProgram", *names)
        array = (ctypes.c_char_p * len(options))(*(option.encode() for option in options))
        status = self.library.nvrtcCompileProgram(program, len(options), array)
        log = self.text(program, "ProgramLog").rstrip(b"\0\n").decode()
        code = b"" if status else self.text(program, what)
        self.call("nvrtcDestroyProgram", ctypes.byref(program))
        return status, log, code

    def text(self, program, what):
        """Return the program's log or code, as bytes."""
        size = ctypes.c_size_t()
        self.call(f"nvrtcGet{what}Size", program, ctypes.byref(size))
        buffer = ctypes.create_string_buffer(size.value)
        self.call(f"nvrtcGet{what}", program, buffer)
        return buffer.raw

    def options(self, own, arch):
        """Return what CuPy passes to NVRTC: cupy/_core/core.pyx, cupy/cuda/compiler.py.

        The sources include headers of CUDA alone.
        """
        others = (f"-I{self.headers}", "-ftz=true", f"-arch={arch}")
        return [*own, *others, "--device-as-default-execution-space"]


def launch_module():
    """Return minigpt.backend.gpu.launch, which has the source and its options.

    Raises
    ------
    UserError
        If CuPy is not there or does not load; a GPU is not needed.
    """
    try:
        return importlib.import_module("minigpt.backend.gpu.launch")
    except ImportError as error:
        raise UserError(
            f"the kernels' options need a CuPy that loads, with or without a GPU ({error}): "
            "pip install cupy-cuda13x"
        ) from None


def compile_kernels(compiler, char, arch):
    """Compile all kernels for the dtype of that char; return (status, log, code)."""
    kernels = launch_module()
    options = compiler.options((*kernels.OPTIONS[char], *REPORT), f"sm_{arch}")
    return compiler.compile(kernels.source(), options)


def kernel_names(source):
    """Return the names of all kernels in a source text, and of those that a macro makes of it."""
    text = re.sub(r"//[^\n]*|/\*.*?\*/", "", source, flags=re.DOTALL).replace("\\\n", " ")
    found = KERNEL.findall(text)
    for macro, parameters, body in MACRO.findall(text):
        for given in re.findall(rf"^{macro}\(([^)]*)\)", text, re.MULTILINE):
            made, split = body, re.compile(r"\s*,\s*").split
            for name, value in zip(split(parameters), split(given.strip()), strict=True):
                made = re.sub(rf"\b{name.strip()}\b", value, made)
            found += KERNEL.findall(re.sub(r"\s*##\s*", "", made))
    return list(dict.fromkeys(found))


def largest_blocks(compiler, char):
    """Return {kernel: threads of a block at most, by __launch_bounds__; 0 where it has none}."""
    kernels = launch_module()
    options = compiler.options(kernels.OPTIONS[char], "compute_90")
    _, _, code = compiler.compile(kernels.source(), options, "PTX")
    return {name: int(threads or 0) for name, threads in THREADS.findall(code.decode())}


def usage(log):
    """Return {kernel: Usage} of ptxas's report, and the lines that are not of it."""
    found, others, name, frame = {}, [], None, (0, 0, 0)
    for line in log.splitlines():
        entry, spills, used = (pattern.search(line) for pattern in (ENTRY, SPILLS, USED))
        if entry:
            name, frame = entry[1], (0, 0, 0)
        elif spills:
            frame = tuple(map(int, spills.groups()))
        elif used and name:
            found[name] = Usage(int(used[1]), int(used[2] or 0), *frame)
        elif not line.startswith("ptxas info"):
            others.append(line)
    return found, others


def allowed_spill(kernel, arch):
    """Return how many bytes of a thread's registers a kernel may spill."""
    return SPILLED.get(arch, SPILLED_ELSEWHERE) if SPILLING.fullmatch(kernel) else 0


def registers_of_block(registers, threads):
    """Return the registers of a block: a warp gets them in units of 256, 8 for each thread."""
    return -(-registers // 8) * 8 * -(-threads // 32) * 32


def records(versions, architectures, chars):
    """Yield a record per kernel, compiler, architecture and dtype."""
    for cuda in versions:
        compiler = Compiler(cuda)
        for char in chars:
            blocks = largest_blocks(compiler, char)
            for arch in sorted({*architectures} & {*compiler.architectures}):
                status, log, _ = compile_kernels(compiler, char, arch)
                if status:
                    raise RuntimeError(f"for sm_{arch} the kernels do not compile: {log}")
                for name, used in sorted(usage(log)[0].items()):
                    record = {"nvrtc": "{}.{}".format(*compiler.version), "sm": arch}
                    record |= {"dtype": char, "kernel": name, "threads": blocks[name]}
                    yield record | used._asdict()
