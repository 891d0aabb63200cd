"""minigpt doctor: what it says of each machine, and that it needs no package but NumPy."""

import subprocess
import sys

import pytest

from minigpt import backend
from minigpt.backend import __main__ as doctor
from minigpt.errors import UserError


def told(capsys, *argv):
    """Return (exit code, {name: text}) of what the doctor prints."""
    code = doctor.main(list(argv))
    rows, name = {}, None
    for line in capsys.readouterr().out.splitlines():
        assert len(line) <= doctor.WIDTH
        name = line[: doctor.INDENT].strip() or name
        rows[name] = f"{rows.get(name, '')} {line[doctor.INDENT :]}".strip()
    return code, rows


def test_without_cupy_it_says_what_to_install(capsys, monkeypatch):
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [])
    monkeypatch.setattr(doctor, "called", lambda names, f: 12040 if names is doctor.NVIDIA else 0)
    monkeypatch.setattr(doctor, "version", lambda name: None if name == "matplotlib" else "1.2.3")
    code, rows = told(capsys)
    assert code == 0 and rows["--backend numpy"] == "works"
    assert rows["driver"] == "NVIDIA, for CUDA 12.4"
    end = "does not work: CuPy is not installed; run pip install 'cupy-cuda12x[ctk]'"
    assert rows["--backend cupy"] == end
    assert rows["matplotlib"].endswith("pip install matplotlib") and rows["tqdm"] == "1.2.3"
    assert {"python", "numpy", "BLAS", "cores"} <= rows.keys()


@pytest.mark.parametrize(
    "cuda, hip, driver, install",
    [
        (13000, None, "NVIDIA, for CUDA 13.0", "pip install 'cupy-cuda13x[ctk]'"),
        (15020, None, "NVIDIA, for CUDA 15.2", "pip install 'cupy-cuda13x[ctk]'"),
        (11080, None, "NVIDIA, for CUDA 11.8: too old, CuPy needs CUDA 12", doctor.INSTALL),
        (None, 70051831, "AMD, with the ROCm libraries", "pip install cupy-rocm-7-0"),
        (None, None, "none found, neither NVIDIA nor AMD", doctor.INSTALL),
        (0, None, "none found, neither NVIDIA nor AMD", doctor.INSTALL),
    ],
)
def test_the_wheel_fits_the_driver(monkeypatch, cuda, hip, driver, install):
    monkeypatch.setattr(doctor, "called", lambda names, f: cuda if names is doctor.NVIDIA else hip)
    text, command = doctor.driver()
    assert text.startswith(driver) and command == install


class FakeDriver:
    """Answers as NVIDIA's driver, with GPUs of these compute capabilities, or with an error."""

    def __init__(self, gpus, status=0):
        self.gpus, self.status = gpus, status

    def cuInit(self, flags):
        return self.status

    def cuDeviceGetCount(self, to):
        to._obj.value = len(self.gpus)
        return 0

    def cuDeviceGetAttribute(self, to, attribute, gpu):
        to._obj.value = divmod(self.gpus[gpu], 10)[attribute - 75]
        return 0


@pytest.mark.parametrize(
    "gpus, status, cuda, wheel, told",
    [
        ([60], 0, 13000, 12, "; a GPU of compute capability 6.0 needs CuPy for CUDA 12"),
        ([90, 70], 0, 13000, 12, "; a GPU of compute capability 7.0 needs CuPy for CUDA 12"),
        ([75, 120], 0, 13000, 13, ""),
        ([60], 0, 12000, 12, ""),
        ([60], 100, 13000, 13, ""),
        ([], 0, 13000, 13, ""),
    ],
)
def test_the_wheel_fits_the_gpu(monkeypatch, gpus, status, cuda, wheel, told):
    monkeypatch.setattr(doctor.ctypes, "CDLL", lambda name: FakeDriver(gpus, status))
    monkeypatch.setattr(doctor, "called", lambda names, f: cuda)
    install = f"pip install 'cupy-cuda{wheel}x[ctk]'"
    assert doctor.driver() == (f"NVIDIA, for CUDA {cuda // 1000}.0{told}", install)


def test_a_driver_is_asked_without_cupy():
    assert doctor.called(("no-such-library.so",), "f") is None
    assert doctor.called((None,), "no_such_function") is None


def test_a_cupy_that_cannot_be_used(capsys, monkeypatch):
    class Wheel:
        metadata = {"Name": "cupy-cuda12x"}

    def refuse(name):
        raise UserError("--backend cupy: no NVIDIA driver is running here")

    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [Wheel, Wheel])
    version = doctor.metadata.version
    monkeypatch.setattr(
        doctor.metadata, "version", lambda name: "13.0" if "cupy" in name else version(name)
    )
    monkeypatch.setattr(doctor, "load_backend", refuse)
    code, rows = told(capsys)
    assert code == 0 and rows["CuPy"] == "cupy-cuda12x 13.0"
    assert rows["--backend cupy"].startswith("does not work: no NVIDIA driver is running here")
    Other = type("Other", (), {"metadata": {"Name": "cupy-rocm-7-0"}})
    monkeypatch.setattr(doctor.metadata, "distributions", lambda: [Wheel, Other])
    _, rows = told(capsys)
    assert (
        "only one can be installed: pip uninstall cupy-cuda12x cupy-rocm-7-0, then" in rows["CuPy"]
    )


def test_a_numpy_that_does_not_work_is_the_exit_code(capsys, monkeypatch):
    monkeypatch.setattr(doctor, "numpy_works", lambda: False)
    code, rows = told(capsys)
    assert code == 1 and rows["--backend numpy"].startswith("does not work: pip install")


@pytest.mark.parametrize("names", [("threadpoolctl",), ("safetensors", "tqdm")])
def test_required_packages_that_are_missing_are_named_with_the_command(tmp_path, names):
    """In a process of its own, where they cannot be imported by anything."""
    hide = f"import sys; sys.modules.update(dict.fromkeys({names}))\n"
    code = f"{hide}from minigpt.backend.__main__ import main\nsys.exit(main([]))"
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True)
    assert done.returncode == 1 and done.stderr == ""
    text = " ".join(done.stdout.split())
    for name in names:
        assert f"{name} missing: pip install {name}" in text
    verdict = f"does not work: {', '.join(names)} missing; run pip install {' '.join(names)}"
    assert f"--backend numpy {verdict}" in text
    assert ("BLAS unknown without threadpoolctl" in text) == ("threadpoolctl" in names)


def test_it_says_what_the_environment_changes(capsys, monkeypatch):
    for name in doctor.OPENBLAS:
        monkeypatch.delenv(name, raising=False)
    _, rows = told(capsys)
    assert rows["plain mode"] == "off" and not {*doctor.OPENBLAS} & rows.keys()
    monkeypatch.setenv("OPENBLAS_CORETYPE", "Haswell")
    with backend.plain():
        _, rows = told(capsys)
    assert rows["OPENBLAS_CORETYPE"].startswith("Haswell: overrides OpenBLAS's own choice")
    assert rows["plain mode"].startswith("on, by MINIGPT_PLAIN")


def test_it_runs_as_a_command():
    command = [sys.executable, "-m", "minigpt.backend"]
    done = subprocess.run(command, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
    assert ["--backend", "numpy", "works"] in [line.split() for line in done.stdout.splitlines()]
    done = subprocess.run([*command, "--flag"], capture_output=True, text=True)
    assert done.returncode == 2 and done.stderr.count("\n") == 1


@pytest.mark.cupy
def test_on_a_gpu_the_kernels_are_compiled(capsys, xp):
    if xp.__name__ != "cupy":
        pytest.skip("needs CuPy")
    code, rows = told(capsys)
    assert code == 0 and rows["--backend cupy"] == "works"
    assert "GiB free" in rows["GPU 0"]
    assert "--dtype float32|" in rows["GPU 0"]
    assert "for float32 ready in" in rows["kernels"] and "for float16 ready" in rows["kernels"]


@pytest.mark.cupy
def test_kernels_that_do_not_compile_are_told(capsys, monkeypatch, xp):
    if xp.__name__ != "cupy":
        pytest.skip("needs CuPy")
    kernels = doctor.importlib.import_module("minigpt.backend.gpu.launch")
    monkeypatch.setattr(kernels, "source", lambda: "this is no C++")
    _, rows = told(capsys)
    assert "for float32 do not compile: " in rows["kernels"]
    assert rows["--backend cupy"] == "does not work: see the lines on kernels"
