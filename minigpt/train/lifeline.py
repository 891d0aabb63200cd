"""A connection between the first of several processes and each other one, to notice an end.

A process that is killed cannot say so, and those that wait for it in a sum would wait for ever.
But its connections are closed by the system: each process has a thread that reads from them. A
machine that is lost is noticed by TCP's keepalive.

One that fails says why. The others have GRACE_S to come to where they learn it in order, and can
save; then they end, too.
"""

import contextlib
import json
import os
import platform
import secrets
import socket
import threading

GRACE_S = 5.0  # for all processes to meet after a failure
CONNECT_S = 30.0  # for the connection to the first process
KEEPALIVE = {"TCP_KEEPIDLE": 5, "TCP_KEEPINTVL": 2, "TCP_KEEPCNT": 3}  # a lost machine: 11 s
LOST = "is gone: killed, or its machine is lost; resume from the last checkpoint by --resume"


def listen():
    """Return (socket, [name of this machine, port, password]) for the first process."""
    server = socket.create_server(("", 0))
    return server, [platform.node(), server.getsockname()[1], secrets.token_hex(16)]


class Lifeline:
    """The connections of one process.

    Parameters
    ----------
    rank, size : int
    address : list
        As from `listen`.
    server : socket, optional
        At rank 0.

    Attributes
    ----------
    heard : bool
        To be set once this process knows of a failure by other means: it ends by itself then.
    """

    def __init__(self, rank, size, address, server=None):
        self.rank, self.size, self.server, self.heard = rank, size, server, False
        self._peers, self._ended, self._lock = {}, set(), threading.Condition()
        self._open = True
        if server is not None:
            self._start(self._accept, address[2])
            return
        host = "127.0.0.1" if address[0] == platform.node() else address[0]
        # Without a connection, what started the processes has to notice what becomes of them.
        with contextlib.suppress(OSError):
            peer = socket.create_connection((host, address[1]), CONNECT_S)
            self._add(0, peer, peer.makefile("rb"))
            self._send(0, {"rank": rank, "password": address[2]})

    def wait(self, n):
        """Wait until n connections are there, or for CONNECT_S."""
        with self._lock:
            self._lock.wait_for(lambda: len(self._peers) >= n, CONNECT_S)

    @property
    def connected(self):
        """Whether this process has a connection to the first."""
        return 0 in self._peers

    def _start(self, work, *args):
        threading.Thread(target=work, args=args, name="lifeline", daemon=True).start()

    def _accept(self, password):
        """Take the connections of the other processes as they come."""
        while self._open and len(self._peers) < self.size - 1:
            try:
                peer, _ = self.server.accept()
            except OSError:
                return  # closed
            self._start(self._greet, peer, password)

    def _greet(self, peer, password):
        """Take a connection if it is of one of these processes."""
        peer.settimeout(CONNECT_S)
        file = peer.makefile("rb")
        with contextlib.suppress(OSError, ValueError, KeyError, TypeError):
            hello = json.loads(file.readline(1000))
            if secrets.compare_digest(hello["password"], password):
                self._add(int(hello["rank"]), peer, file)
                return
        peer.close()

    def _add(self, rank, peer, file):
        peer.settimeout(None)
        peer.setsockopt(socket.SOL_SOCKET, socket.SO_KEEPALIVE, 1)
        for name, value in KEEPALIVE.items():
            if hasattr(socket, name):
                peer.setsockopt(socket.IPPROTO_TCP, getattr(socket, name), value)
        with self._lock:
            self._peers[rank] = peer
            self._lock.notify_all()
        self._start(self._read, rank, file)

    def _send(self, rank, message):
        with self._lock, contextlib.suppress(OSError, KeyError):
            self._peers[rank].sendall(json.dumps(message).encode() + b"\n")

    def _send_all(self, message, but=None):
        for rank in list(self._peers):
            if rank != but:
                self._send(rank, message)

    def _read(self, rank, file):
        """Take what another process says until it ends."""
        with contextlib.suppress(OSError, ValueError), file, self._peers[rank]:
            for line in file:
                self._take(rank, json.loads(line))
        if self._open and rank not in self._ended:
            self._lose(rank)

    def _take(self, rank, message):
        if "end" in message:
            self._ended.add(rank)
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

    def fail(self, text):
        """Tell the others that this process cannot go on."""
        self._send_all({"failed": [self.rank, text]})
        self._wait(self.rank, text)

    def _wait(self, rank, text):
        """End after a while, unless this process has heard of the failure by then."""

        def end():
            if self._open and not self.heard:
                if self.rank == 0:
                    self._say(rank, f"has failed: {text}")
                os._exit(2)

        timer = threading.Timer(GRACE_S, end)
        timer.daemon = True
        timer.start()

    def close(self):
        """End the connections in order: all processes are done."""
        self._open = False
        self._send_all({"end": True})
        for peer in list(self._peers.values()):
            with contextlib.suppress(OSError):
                peer.shutdown(socket.SHUT_WR)
        if self.server is not None:
            self.server.close()
