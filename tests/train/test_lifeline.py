"""Connections between processes, of threads of one; and processes that have nothing else."""

import contextlib
import json
import queue
import socket
import threading
import time

import numpy as np
import pytest

from minigpt.errors import UserError
from minigpt.train import lifeline
from minigpt.train.lifeline import Lifeline, connect, meet
from minigpt.train.ranks import Ranks
from tests.tools.mpirun import end, start_alone
from tests.tools.together import in_ranks

HERE = "127.0.0.1"


def free_port():
    """A port where nothing listens."""
    with socket.create_server((HERE, 0)) as server:
        return server.getsockname()[1]


PATIENCE_S = 3.0  # for threads


@pytest.fixture(autouse=True)
def ended(monkeypatch):
    """What a Lifeline would end this process with."""
    codes = queue.SimpleQueue()
    monkeypatch.setattr("os._exit", codes.put)
    return codes


def at_once(size, work):
    """Return [work(rank)] of threads."""
    results = [None] * size

    def run(rank):
        results[rank] = work(rank)

    threads = [threading.Thread(target=run, args=(rank,), daemon=True) for rank in range(size)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(PATIENCE_S)
    return results


def test_processes_that_know_an_address_exchange_values():
    port = free_port()

    def work(rank):
        time.sleep(0.1 * (rank == 0))  # the others call before anyone listens
        line = meet(rank, 3, HERE, port, "a run")
        found = [line.exchange([rank, x]) for x in (None, "text", 0.1, np.float64(7), {"a": [1]})]
        line.exchange(None)
        line.close()
        return found

    values = (None, "text", 0.1, 7.0, {"a": [1]})
    assert at_once(3, work) == [[[[rank, x] for rank in range(3)] for x in values]] * 3


def test_those_that_do_not_come_are_missed(monkeypatch, capsys):
    monkeypatch.setattr(lifeline, "TOGETHER_S", 0.2)
    monkeypatch.setattr(lifeline, "NOTE_S", 0.1)
    with pytest.raises(UserError, match="MASTER_PORT: rank 1 of 3 did not come; give the first"):
        meet(0, 3, HERE, free_port(), "a run")
    with pytest.raises(UserError, match="MASTER_PORT: Connection refused; give the first"):
        meet(1, 3, HERE, free_port(), "a run")
    assert capsys.readouterr().err.count("MASTER_PORT; this one waits") == 2


def test_those_that_have_come_are_told_who_did_not(monkeypatch, ended):
    monkeypatch.setattr(lifeline, "TOGETHER_S", 1.0)
    port = free_port()

    def work(rank):
        with pytest.raises(UserError) as error:
            meet(rank, 3, HERE, port, "a run").exchange(rank)
        return str(error.value)

    first, second = at_once(2, work)
    assert first == second and "rank 2 of 3 did not come; give the first" in first
    assert ended.empty()


@pytest.mark.parametrize("gone", range(3))
def test_nobody_waits_for_one_that_has_ended(gone, ended):
    port = free_port()

    def work(rank):
        line = meet(rank, 3, HERE, port, "a run")
        found = [line.exchange(rank)]
        if rank != gone:
            with pytest.raises(UserError) as error:
                line.exchange(rank)
            found.append(str(error.value))
        line.close()
        return found

    told = [f"rank {gone} of 3 {lifeline.EARLY}"]
    expected = [[[0, 1, 2], *told * (rank != gone)] for rank in range(3)]
    assert at_once(3, work) == expected
    assert ended.empty()


@pytest.mark.parametrize("amid", [False, True])
def test_ranks_of_which_one_has_ended_end_in_order(amid, ended):
    port = free_port()

    def work(rank):
        line = meet(rank, 2, HERE, port, "a run")
        ranks = Ranks(rank, 2, line.exchange, None, line)
        if rank == 0:
            with pytest.raises(UserError, match=f"rank 1 of 2 {lifeline.EARLY}"), ranks:
                if amid:
                    ranks.gather()
        still_open = line._open
        line.close()
        return still_open

    assert at_once(2, work) == [False, True]
    assert ended.empty()


@pytest.mark.parametrize("rank, name", [(1, "a run"), (2, "another")])
def test_one_of_another_run_or_of_a_rank_that_is_there_is_told(rank, name):
    port = free_port()
    there = threading.Event()

    def work(this):
        if this == 2:
            there.wait(PATIENCE_S)
            match = f"the first process refuses rank {rank} of 3: it has one"
            with pytest.raises(UserError, match=match):
                meet(rank, 3, HERE, port, name)
        line = meet(this, 3, HERE, port, "a run")
        if this == 1:
            there.set()
        found = line.exchange(this)
        line.exchange(None)
        line.close()
        return found

    assert at_once(3, work) == [[0, 1, 2]] * 3


def send(port, line):
    """Send a line to a Lifeline; return the connection."""
    peer = socket.create_connection((HERE, port), 5)
    peer.sendall(line + b"\n")
    return peer


@pytest.mark.parametrize("stranger", [
    b"GET / HTTP/1.1", b"[]", b'{"rank": 1}', b'{"rank": 1, "password": 5}',
    b'{"rank": 1, "password": "wrong"}', b'{"rank": 0, "password": "right"}',
    b'{"rank": 3, "password": "right"}', b'{"rank": [], "password": "right"}',
])  # fmt: skip
def test_a_stranger_is_refused(stranger):
    server = socket.create_server((HERE, 0))
    line = Lifeline(0, 3, "right", server)
    peer = send(server.getsockname()[1], stranger)
    told, taken = peer.recv(1), dict(line.peers)
    line.close()  # before an end would be noticed
    peer.close()
    assert (told, taken) == (b"", {})


def test_a_process_is_taken_once_and_nobody_is_once_all_are_there():
    server = socket.create_server((HERE, 0))
    port, line = server.getsockname()[1], Lifeline(0, 3, "right", server)
    hello = [json.dumps({"rank": rank, "password": "right"}).encode() for rank in range(3)]
    # It is closed before its peers are: those that are lost would end pytest.
    with send(port, hello[1]) as one, contextlib.closing(line):
        line.wait(1, 5)
        with send(port, hello[1]) as again:
            assert again.recv(1) == b""
        with send(port, hello[2]) as two:
            line.wait(2, 5)
            assert sorted(line.peers) == [1, 2]
            with pytest.raises(OSError):
                socket.create_connection((HERE, port), 5)
            line.close()
            both = one.makefile("rb").read(), two.makefile("rb").read()
            assert both == (lifeline.WELCOME + b'{"end": null}\n',) * 2


@pytest.mark.parametrize("nodes, host", [(["a", "a"], HERE), (["a", "b"], "0.0.0.0")])
def test_one_machine_listens_to_itself_alone(nodes, host, monkeypatch):
    found, before = [], socket.create_server

    def create_server(address, **options):
        server = before(address, **options)
        found.append(server.getsockname()[0])
        return server

    monkeypatch.setattr(socket, "create_server", create_server)
    monkeypatch.setattr("platform.node", lambda: "a")

    def work(ranks):
        line = connect(ranks.rank, 2, ranks.gather, nodes)
        ranks.gather()
        line.close()

    in_ranks(2, work)
    assert found == [HERE, host]  # the first is that of the ranks themselves


def test_a_machine_that_cannot_listen_trains_without(monkeypatch):
    def fail(*args, **kwargs):
        raise OSError("no sockets")

    monkeypatch.setattr(socket, "create_server", fail)
    assert in_ranks(2, lambda ranks: ranks.gather(ranks.rank)) == [[0, 1]] * 2


def test_processes_have_as_long_to_meet_as_their_steps_take(monkeypatch):
    now = iter([0.0, 1.0, 21.0, 22.0])
    monkeypatch.setattr(time, "monotonic", lambda: next(now))
    line = Lifeline(1, 2, "")
    assert line.grace_s == lifeline.GRACE_S
    for _ in range(4):
        line.met()
    assert line.grace_s == 3 * 20
    monkeypatch.setattr(time, "monotonic", lambda: 22.0)
    for _ in range(lifeline.RECENT):
        line.met()
    assert line.grace_s == lifeline.GRACE_S


@pytest.mark.parametrize("heard", [False, True])
def test_a_failure_that_a_process_does_not_hear_of_in_time_ends_it(
    heard, ended, monkeypatch, capfd
):
    monkeypatch.setattr(lifeline, "GRACE_S", 0.05)
    line = Lifeline(0, 2, "")
    line.heard = heard
    line._take(1, {"failed": [1, "a bug"]})
    if heard:
        with pytest.raises(queue.Empty):
            ended.get(timeout=0.2)
    else:
        assert ended.get(timeout=PATIENCE_S) == 2
    said = capfd.readouterr().err
    assert said == ("" if heard else f"error: rank 1 of 2 has failed: a bug; {lifeline.UNSAVED}\n")


def ends(processes):
    """Return (exit code, our lines of standard error) of each process."""
    return [(code, said) for code, _, said, _ in map(end, processes)]


def test_processes_without_mpi_have_no_sums_on_cpus(tmp_path):
    (code, said), other = ends(start_alone(2, f"--out-dir={tmp_path / 'run'}"))
    assert code == 2 and len(said) == 1 and "sums on CPUs need MPI" in said[0]
    assert other == (2, [])


def test_a_dry_run_of_processes_without_mpi_shows_what_is_one_s_share(tmp_path):
    (code, out, _, err), other = map(end, start_alone(2, "--dry-run", "--batch-size=5"))
    assert code == other[0] == 0, err
    assert "5 x 64 = 320 tokens" in out and other[1] == ""
    assert "each of the processes      3 sequences at most, and:" in out
