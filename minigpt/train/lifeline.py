"""A connection between the first of several processes and each other one, to notice an end.

A process that is killed cannot say so, and those that wait for it in a sum would wait for ever.
But its connections are closed by the system: each process has a thread that reads from them. A
machine that is lost is noticed by TCP's keepalive.

One that fails says why. The others have a while to come to where they learn it in order, and can
save; then they end, too. Where there is no MPI, the same connections bring small values together:
see `exchange`. All of it is lines of JSON: what a stranger sends is data, never code.
"""

import collections
import contextlib
import json
import os
import platform
import secrets
import socket
import threading
import time

from minigpt import cli
from minigpt.errors import UserError

GRACE_S = 5.0  # for all processes to meet after a failure, at least
PATIENCE = 3  # ... or this multiple of the longest time between RECENT meetings
RECENT = 20
CONNECT_S = 30.0  # for the connection to the first process
TOGETHER_S = 120.0  # for all processes to be there, where nothing else has brought them together
RETRY_S, NOTE_S = 0.2, 10.0
HELLO_BYTES, WELCOME = 1000, b'{"welcome": true}\n'
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # a lost machine: 11 s
HERE = "127.0.0.1"
LOST = "is gone: killed, or its machine is lost; resume from the last checkpoint by --resume"
EARLY = "has ended, and this process waits for it; start all processes again, by the same command"
UNSAVED = "the others were not there in time, and what was trained since the last save is lost"


def connect(rank, size, exchange, nodes):
    """Return the Lifeline of a process among others that `exchange` brings together.

    A process without a connection has none: what started them has to notice its end.

    Parameters
    ----------
    rank, size : int
    exchange : callable
        exchange(x) -> [x of each rank].
    nodes : list of str
        The machine of each rank.
    """
    server = address = None
    if rank == 0:
        near = all(node == nodes[0] for node in nodes)
        with contextlib.suppress(OSError):  # told to the others as None
            server = socket.create_server((HERE if near else "", 0), backlog=size)
            address = [nodes[0], server.getsockname()[1], secrets.token_hex(16)]
    address = exchange(address)[0]
    line = Lifeline(rank, size, address and address[2], server)
    if rank and address is not None:
        with contextlib.suppress(OSError):
            host = HERE if address[0] == platform.node() else address[0]
            line.call(socket.create_connection((host, address[1]), CONNECT_S))
    connected = sum(exchange(line.connected))
    if rank == 0:
        line.wait(connected, CONNECT_S)
    return line


def meet(rank, size, host, port, name):
    """Return the Lifeline of a process that nothing but an address brings together with others.

    Parameters
    ----------
    rank, size : int
    host, port : str, int
        Where the first process listens.
    name : str
        Of the run: a process of another one is refused.

    Raises
    ------
    UserError
        If they are not together in TOGETHER_S.
    """
    line, end_s, key = None, time.monotonic() + TOGETHER_S, f"{name} of {size}"
    waiting = f"{size} processes are to meet at {host}:{port}, of MASTER_ADDR and MASTER_PORT"
    note = threading.Timer(NOTE_S, cli.note, [f"{waiting}; this one waits"])
    note.start()
    try:
        if rank == 0:
            near = host in ("localhost", HERE)
            line = Lifeline(rank, size, key, socket.create_server((HERE if near else "", port)))
            line.wait(size - 1, TOGETHER_S)
            if len(line.peers) < size - 1:
                missing = sorted({*range(1, size)} - {*line.peers})
                raise TimeoutError(f"rank {missing[0]} of {size} did not come")
            return line
        line = Lifeline(rank, size, key)
        line.call(keep_calling(host, port, end_s))
        return line
    except OSError as error:
        why = (
            f"{waiting}: {error.strerror or error}; give the first process's machine, a free port, "
            "and all processes the same"
        )
        if line is not None:
            line.close(why)
        raise UserError(why) from None
    finally:
        note.cancel()


def keep_calling(host, port, end_s):
    """Return a connection to a process that may not listen yet, until time.monotonic() is end_s."""
    while True:
        try:
            return socket.create_connection((host, port), CONNECT_S)
        except socket.gaierror:
            raise
        except OSError:
            if time.monotonic() > end_s:
                raise
            time.sleep(RETRY_S)


class Lifeline:
    """The connections of one process.

    Parameters
    ----------
    rank, size : int
    password : str
        What all of these processes know.
    server : socket, optional
        At rank 0: it listens until all others are there.

    Attributes
    ----------
    heard : bool
        To be set once the failure has been reported through `Ranks.gather`: this process ends by
        itself then.
    peers : {rank: socket}
    on_signal : callable
        on_signal(number) is called at rank 0 with signals that others have received.
    """

    def __init__(self, rank, size, password, server=None):
        self.rank, self.size, self.server, self.heard = rank, size, server, False
        self.peers, self.on_signal = {}, lambda number: None
        self._password, self._ended = password, {}
        self._lock, self._sending = threading.Condition(), threading.Lock()
        self._values = {i: collections.deque() for i in range(size)}
        self._met, self._open = collections.deque(maxlen=RECENT), True
        if server is not None:
            self._start(self._accept)

    def call(self, peer):
        """Take a connection to the first process: say who this one is, and wait for its welcome."""
        hello = {"rank": self.rank, "password": self._password}
        peer.sendall(json.dumps(hello).encode() + b"\n")
        file = peer.makefile("rb")
        if not file.readline(HELLO_BYTES):
            raise ConnectionError(
                f"the first process refuses rank {self.rank} of {self.size}: it has one, or is of "
                "another run or number of processes"
            )
        self._add(0, peer, file)

    def wait(self, n, seconds):
        """Wait until n connections are there, or so long."""
        with self._lock:
            self._lock.wait_for(lambda: len(self.peers) >= n, seconds)

    @property
    def connected(self):
        """Whether this process has a connection to the first."""
        return 0 in self.peers

    def exchange(self, x):
        """Return [x of each rank]: numbers, texts, None, and lists and dicts of them.

        Raises
        ------
        UserError
            If a process that this one waits for has closed its connections: it sends nothing more.
        """
        if self.rank:
            self._send(0, {"x": x})
            return self._take_values([0])[0]
        others = range(1, self.size)
        # With nothing taken before all are there, an interrupt leaves them for the next try.
        x = json.loads(json.dumps(x, default=plain))
        found = [x, *self._take_values(others)]
        self._send_all({"x": found})
        return found

    def _take_values(self, ranks):
        with self._lock:
            self._lock.wait_for(
                lambda: all(self._values[rank] or rank in self._ended for rank in ranks)
            )
            missing = [rank for rank in ranks if not self._values[rank]]
            if not missing:
                return [self._values[rank].popleft() for rank in ranks]
        why, self.heard = self._ended[missing[0]], True
        self._send_all({"end": why})
        raise UserError(why)

    def met(self):
        """Note that all processes are at one place."""
        self._met.append(time.monotonic())

    @property
    def grace_s(self):
        """Seconds that processes have to meet after a failure."""
        times = list(self._met)
        laps = [b - a for a, b in zip(times, times[1:], strict=False)]
        return max([GRACE_S, *(PATIENCE * lap for lap in laps)])

    def _start(self, work, *args):
        threading.Thread(target=work, args=args, name="lifeline", daemon=True).start()

    def _accept(self):
        """Take the connections of the other processes as they come, until all are there."""
        while True:
            try:
                peer, _ = self.server.accept()
            except OSError:
                return  # closed
            self._start(self._greet, peer)

    def _greet(self, peer):
        """Take a connection if it is of one of these processes that has none yet."""
        peer.settimeout(CONNECT_S)
        file = peer.makefile("rb")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError, AttributeError):
            hello = json.loads(file.readline(HELLO_BYTES))
            rank, password = hello["rank"], hello["password"].encode()
            if rank in range(1, self.size) and (
                secrets.compare_digest(password, self._password.encode())
                and self._add(rank, peer, file)
            ):
                return
        file.close()
        peer.close()

    def _add(self, rank, peer, file):
        """Take a connection; return whether there was none to that process."""
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        peer.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            if rank in self.peers:
                return False
            if self.server is not None:
                peer.sendall(WELCOME)
            self.peers[rank] = peer
            if len(self.peers) == self.size - 1:
                self._stop_listening()
            self._lock.notify_all()
        self._start(self._read, rank, file)
        return True

    def _stop_listening(self):
        if self.server is not None:
            with contextlib.suppress(OSError):
                self.server.shutdown(socket.SHUT_RDWR)  # wakes the thread that waits
            self.server.close()

    def _send(self, rank, message):
        line = json.dumps(message, default=plain).encode() + b"\n"
        with self._sending, contextlib.suppress(OSError, KeyError):
            self.peers[rank].sendall(line)

    def _send_all(self, message, but=None):
        for rank in list(self.peers):
            if rank != but:
                self._send(rank, message)

    def _read(self, rank, file):
        """Take what another process says until it ends."""
        with contextlib.suppress(OSError, ValueError), file, self.peers[rank]:
            for line in file:
                self._take(rank, json.loads(line))
        if self._open and rank not in self._ended:
            self._lose(rank)

    def _take(self, rank, message):
        if "x" in message:
            with self._lock:
                self._values[rank].append(message["x"])
                self._lock.notify_all()
        elif "end" in message:
            with self._lock:
                why = message["end"] or f"rank {rank} of {self.size} {EARLY}"
                self._ended.setdefault(rank, why)
                self._lock.notify_all()
        elif "signal" in message:
            self.on_signal(message["signal"])
        elif "lost" in message:
            os._exit(2)  # the first process has said it
        elif "failed" in message:
            self._send_all(message, but=rank)
            self._wait(*message["failed"])

    def _lose(self, rank):
        """End at once, since another process has."""
        self._send_all({"lost": rank})
        if self.rank == (0 if rank else 1):  # one of those that are left says so
            self._say(rank, LOST)
        os._exit(2)

    def _say(self, rank, text):
        with contextlib.suppress(OSError):
            os.write(2, f"error: rank {rank} of {self.size} {text}\n".encode())

    def signal(self, number):
        """Tell the first process of a signal that this one has received, amid whatever it does."""
        self._start(self._send, 0, {"signal": number})

    def fail(self, text):
        """Tell the others that this process cannot go on."""
        self._send_all({"failed": [self.rank, text]})
        self._wait(self.rank, text)

    def _wait(self, rank, text):
        """End after a while, unless this process has heard of the failure by then."""

        def end():
            if self._open and not self.heard:
                if self.rank == 0:
                    self._say(rank, f"has failed: {text}; {UNSAVED}")
                os._exit(2)

        timer = threading.Timer(self.grace_s, end)
        timer.daemon = True
        timer.start()

    def close(self, why=None):
        """End the connections in order: all processes are done, or hear why this one is alone."""
        self._open = False
        self._send_all({"end": why})
        for peer in list(self.peers.values()):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        self._stop_listening()


def plain(x):
    """Return a NumPy number as one of Python, and anything else as a text."""
    return x.item() if hasattr(x, "item") else str(x)
