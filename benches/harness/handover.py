"""One newer token at a time: when it is sent, and when the upstream gets it.

Client and upstream are one thread, so that both read one clock and neither waits for the other.
"""

from __future__ import annotations

import re
import select
import socket
import time
from contextlib import ExitStack
from dataclasses import dataclass, field

from .machine import BenchError

TIMEOUT_SECONDS = 10.0
BODY = b"x"
ANSWER = b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\n\r\nok"
CONTENT_LENGTH = re.compile(rb"^content-length: *(\d+)", re.IGNORECASE | re.MULTILINE)


def now_us() -> float:
    return time.perf_counter_ns() / 1e3


@dataclass
class Connection:
    """A socket and what came over it."""

    socket: socket.socket
    received: bytearray = field(default_factory=bytearray)

    def take_message(self) -> bytes | None:
        """The first message that is whole, which has no body or one with a length."""
        head, separator, rest = bytes(self.received).partition(b"\r\n\r\n")
        if not separator:
            return None
        length = CONTENT_LENGTH.search(head)
        size = int(length[1]) if length else 0
        if len(rest) < size:
            return None
        del self.received[: len(head) + 4 + size]
        return head

    def read(self) -> bool:
        part = self.socket.recv(65536)
        self.received += part
        return bool(part)


class OpenUpstream:
    """An upstream that answers when it is told to. Use it in a `with` block."""

    def __init__(self) -> None:
        self._stack = ExitStack()
        self._listener = socket.create_server(("127.0.0.1", 0), backlog=64)
        self._connections: dict[int, Connection] = {}
        self.port: int = self._listener.getsockname()[1]

    def __enter__(self) -> "OpenUpstream":
        self._stack.enter_context(self._listener)
        return self

    def __exit__(self, *_) -> None:
        for connection in self._connections.values():
            connection.socket.close()
        self._stack.close()

    def next_request(self) -> tuple[Connection, float]:
        """The next request that comes, and when its first byte did."""
        began: dict[int, float] = {}
        deadline = time.monotonic() + TIMEOUT_SECONDS
        while time.monotonic() < deadline:
            ready = self._ready_within(TIMEOUT_SECONDS)
            arrived = now_us()
            for each in ready:
                if each == self._listener.fileno():
                    self._accept()
                elif not self._connections[each].read():
                    self._connections.pop(each).socket.close()
                elif self._connections[each].take_message() is not None:
                    return self._connections[each], began.get(each, arrived)
                else:
                    began.setdefault(each, arrived)
        raise BenchError(f"no request reached the upstream within {TIMEOUT_SECONDS:.0f} s")

    def has_request_within(self, seconds: float) -> bool:
        """Whether anything comes on a connection that is open."""
        return bool(self._ready_within(seconds))

    def _ready_within(self, seconds: float) -> list[int]:
        ready, _, _ = select.select([self._listener.fileno(), *self._connections], [], [], seconds)
        return ready

    def _accept(self) -> None:
        accepted, _ = self._listener.accept()
        accepted.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self._connections[accepted.fileno()] = Connection(accepted)


class Client:
    """A keep-alive connection to the gateway. Use it in a `with` block."""

    def __init__(self, port: int):
        self._connection = Connection(socket.create_connection(("127.0.0.1", port), timeout=TIMEOUT_SECONDS))
        self._connection.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)

    def __enter__(self) -> "Client":
        return self

    def __exit__(self, *_) -> None:
        self._connection.socket.close()

    def send(self, path: str, token: int) -> float:
        """Sends a write; returns when."""
        head = f"PUT {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nFencing-Token: {token}\r\nContent-Length: {len(BODY)}\r\n\r\n"
        message = head.encode() + BODY
        sent = now_us()
        self._connection.socket.sendall(message)
        return sent

    def await_answer(self) -> float:
        """When the answer was whole; it must be 200."""
        while (head := self._connection.take_message()) is None:
            if not self._connection.read():
                raise BenchError("the gateway closed the connection instead of answering")
        if not head.startswith(b"HTTP/1.1 200"):
            raise BenchError(f"the gateway answered {head[:200]!r}")
        return now_us()


class Story:
    """The cases, on one key whose token rises from one to the next."""

    # So long an advance is given to arrive, in the gateway, behind the older write.
    SETTLED_SECONDS = 0.002

    def __init__(self, upstream: OpenUpstream, port: int, lane: str):
        self._upstream, self._path = upstream, f"/{lane}/upload/handover"
        self._old, self._new = Client(port), Client(port)
        self._token = 1

    def __enter__(self) -> "Story":
        return self

    def __exit__(self, *_) -> None:
        self._old.__exit__()
        self._new.__exit__()

    def equal(self) -> float:
        """From a write's sending to its arrival at the upstream; its token is the mark."""
        sent = self._new.send(self._path, self._token)
        connection, arrived = self._upstream.next_request()
        connection.socket.sendall(ANSWER)
        self._new.await_answer()
        return arrived - sent

    def advance(self) -> float:
        """The same with a token above the mark, and nothing to drain."""
        self._token += 1
        return self.equal()

    def handover(self) -> tuple[float, float]:
        """An older write is at the upstream when the newer token comes.

        Returns how long after the older write's end the newer one arrives, and how long the end takes to the older's client.
        """
        self._old.send(self._path, self._token)
        older, _ = self._upstream.next_request()
        self._token += 1
        self._new.send(self._path, self._token)
        if self._upstream.has_request_within(self.SETTLED_SECONDS):
            raise BenchError("a newer token reached the upstream while an older write was under way")
        ended = now_us()
        older.socket.sendall(ANSWER)
        newer, arrived = self._upstream.next_request()
        newer.socket.sendall(ANSWER)
        told = self._old.await_answer()
        self._new.await_answer()
        return arrived - ended, told - ended
