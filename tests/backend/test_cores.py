"""Limits that others set to the cores of this process."""

import os
from pathlib import Path

import pytest

from minigpt.backend import cores
from minigpt.backend.__main__ import own_rows
from minigpt.backend.blas import blas_threads
from minigpt.backend.cores import (
    VARIABLES,
    core_limit,
    cpu_quota,
    note_on_threads,
    processor_name,
    usable_cores,
)
from minigpt.train.config import TrainConfig
from tests.backend.test_blas import sizes_of_blas
from tests.tools import training


@pytest.fixture(autouse=True)
def free(monkeypatch, tmp_path):
    """A machine of 8 cores on which nothing else is a limit."""
    for name in VARIABLES:
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setattr(os, "cpu_count", lambda: 8)
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: set(range(8)), raising=False)
    monkeypatch.setattr(cores, "cpu_quota", lambda: cpu_quota(tmp_path))


def write(root, files):
    for name, text in files.items():
        path = Path(root, name)
        path.parent.mkdir(parents=True, exist_ok=True)
        path.write_text(text)


V2, V1 = "sys/fs/cgroup", "sys/fs/cgroup/cpu,cpuacct"
PERIOD = "cpu.cfs_period_us"
QUOTA = "cpu.cfs_quota_us"


@pytest.mark.report("15")
@pytest.mark.parametrize(
    "groups, files, expected",
    [
        ("0::/", {f"{V2}/cpu.max": "150000 100000\n"}, 1.5),
        ("0::/", {f"{V2}/cpu.max": "max 100000\n"}, None),
        ("0::/", {}, None),
        ("0::/a/b", {f"{V2}/a/b/cpu.max": "max 100000", f"{V2}/a/cpu.max": "300000 100000"}, 3),
        ("0::/a/b", {f"{V2}/a/b/cpu.max": "50000 100000", f"{V2}/a/cpu.max": "300000 100000"}, 0.5),
        ("0::/elsewhere/a", {f"{V2}/cpu.max": "200000 100000"}, 2),  # the host's path
        ("0::/../a", {f"{V2}/a/cpu.max": "200000 100000"}, 2),
        ("0::/", {f"{V2}/cpu.max": "nonsense"}, None),
        ("0::/", {f"{V2}/cpu.max": "100000 0"}, None),
        (
            "5:memory:/m\n4:cpu,cpuacct:/docker/x\n0::/",
            {f"{V1}/docker/x/{QUOTA}": "250000\n", f"{V1}/docker/x/{PERIOD}": "100000\n"},
            2.5,
        ),
        (  # within a container, whose root is that of its group
            "4:cpu,cpuacct:/docker/x",
            {f"{V1}/{QUOTA}": "100000\n", f"{V1}/{PERIOD}": "100000\n"},
            1,
        ),
        ("4:cpu,cpuacct:/", {f"{V1}/{QUOTA}": "-1\n", f"{V1}/{PERIOD}": "100000\n"}, None),
        ("4:cpu:/", {f"{V2}/cpu/{QUOTA}": "100000", f"{V2}/cpu/{PERIOD}": "50000"}, 2),
        ("3:cpuset:/\n0::/x", {f"{V2}/unified/x/cpu.max": "100000 100000"}, 1),
        ("3:cpuset:/a", {f"{V2}/cpuset/a/cpu.max": "100000 100000"}, None),
    ],
)
def test_the_quota_of_a_container(tmp_path, groups, files, expected):
    write(tmp_path, {"proc/self/cgroup": groups, **files})
    assert cpu_quota(tmp_path) == expected


def test_where_there_are_no_control_groups_there_is_no_quota(tmp_path):
    assert cpu_quota(tmp_path) is None


@pytest.mark.report("15")
@pytest.mark.parametrize("quota, expected", [("150000", 2), ("5000", 1), ("900000", 8)])
def test_a_quota_is_rounded_up(tmp_path, quota, expected):
    write(tmp_path, {"proc/self/cgroup": "0::/", f"{V2}/cpu.max": f"{quota} 100000"})
    assert usable_cores() == expected


@pytest.mark.report("15")
@pytest.mark.parametrize("name", VARIABLES)
def test_the_environment_is_a_limit(monkeypatch, name):
    assert TrainConfig().threads == 8
    monkeypatch.setenv(name, "3")
    assert TrainConfig().threads == 3
    assert core_limit().name == f"{name}=3"
    assert TrainConfig(threads=6).threads == 6


@pytest.mark.report("15")
@pytest.mark.parametrize(
    "value, expected",
    [("4,2", 4), (" 2 ", 2), ("64", 8), ("0", 8), ("-1", 8), ("", 8), ("all", 8), ("²", 8)],
)
def test_values_of_a_variable(monkeypatch, value, expected):
    monkeypatch.setenv("OMP_NUM_THREADS", value)
    assert usable_cores() == expected


@pytest.mark.report("15")
def test_the_lowest_limit_decides_and_doctor_says_which(monkeypatch):
    monkeypatch.setattr(os, "sched_getaffinity", lambda pid: {0, 1, 2}, raising=False)
    assert core_limit() == (3, "the CPU affinity of the process")
    assert dict(own_rows())["cores"] == "3 usable of 8, by the CPU affinity of the process"
    monkeypatch.setenv("SLURM_CPUS_PER_TASK", "2")
    monkeypatch.setenv("OMP_NUM_THREADS", "1,4")
    assert dict(own_rows())["cores"] == "1 usable of 8, by OMP_NUM_THREADS=1,4"


def test_a_system_without_affinity(monkeypatch):
    monkeypatch.delattr(os, "sched_getaffinity")
    assert core_limit() == (8, "")
    assert dict(own_rows())["cores"] == "8 usable of 8"


@pytest.mark.report("15")
def test_a_run_says_how_many_threads_it_has(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")
    flags = [flag for flag in training.FLAGS if not flag.startswith("--threads")]
    monkeypatch.setattr(training, "FLAGS", flags)
    training.begin(tmp_path / "a", "--max-iters=1")
    out, err = capsys.readouterr()
    assert ", on 1 thread, into" in out and "note: " not in err
    training.begin(tmp_path / "a", "--dry-run")
    assert " on 1 thread\n" in capsys.readouterr().out


@pytest.mark.report("15")
def test_more_threads_than_cores_are_noted(tmp_path, capsys, monkeypatch):
    monkeypatch.setenv("OMP_NUM_THREADS", "1")  # --threads is a wish of its own
    write(tmp_path, {"proc/self/cgroup": "0::/", f"{V2}/cpu.max": "150000 100000"})
    assert note_on_threads(2) == [] and note_on_threads(3) != []
    training.begin(tmp_path / "a", "--dry-run", "--threads=3")
    out, err = capsys.readouterr()
    assert " on 3 threads\n" in out
    assert err == (
        "note: 3 threads on 2 cores, by a CPU quota of 1.5 (cgroup): more threads than cores are "
        "slower\n"
    )


@pytest.mark.report("15")
def test_blas_is_not_lifted_above_what_the_environment_allows(monkeypatch):
    monkeypatch.setenv("OPENBLAS_NUM_THREADS", "1")
    with blas_threads(TrainConfig().threads):
        assert set(sizes_of_blas()) <= {1}


def test_a_note_names_what_is_not_the_machine():
    assert note_on_threads(9) == ["9 threads on 8 cores: more threads than cores are slower"]


@pytest.mark.parametrize(
    "name, numbers, expected",
    [
        ("AMD EPYC", (23, 1), "AMD EPYC (family 23, model 1)"),
        ("AMD EPYC 7763 64-Core", (25, 1), "AMD EPYC 7763 64-Core"),
        ("AMD EPYC", (), "AMD EPYC"),
        (None, (23, 1), None),
    ],
)
def test_a_processor_has_a_name_or_numbers(name, numbers, expected):
    lines = [f"{key}\t: {x}" for key, x in zip(("cpu family", "model"), numbers, strict=False)]
    lines += [f"model name\t: {name}"] if name else []
    other = "\n\nprocessor\t: 1\nmodel name\t: other\n"
    assert processor_name("processor\t: 0\n" + "\n".join(lines) + other) == expected
