"""An upstream in threads of this process that keeps the bytes it was sent, takes nearly everything for a request, and answers 200."""

from __future__ import annotations

import re
import socket
import threading
from dataclasses import dataclass

import reference

EXPECTS = re.compile(rb"(?i)\nexpect: ?100-continue\r\n.*\r\n\r\n", re.DOTALL)
HEAD_END = re.compile(rb"\r?\n\r?\n")


@dataclass
class Received:
    """What came on one connection, and how many whole requests a plain, strict reading finds in it."""

    raw: bytes = b""
    over: bool = False

    @property
    def reading(self) -> reference.Reading:
        return reference.read(self.raw)


class Recorder:
    def __init__(self) -> None:
        self.listener = socket.create_server(("127.0.0.1", 0))
        self.port = self.listener.getsockname()[1]
        self.lock = threading.Lock()
        self.connections: list[Received] = []

    def __enter__(self) -> Recorder:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()

    def take(self) -> list[Received]:
        """What came since the last call, to be asked for when nothing is under way."""
        with self.lock:
            taken = [Received(one.raw, one.over) for one in self.connections if one.raw]
            for one in self.connections:
                one.raw = b""
            self.connections = [one for one in self.connections if not one.over]
            return taken

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            received = Received()
            with self.lock:
                self.connections.append(received)
            threading.Thread(target=self.serve, args=(client, received), daemon=True).start()

    def serve(self, client: socket.socket, received: Received) -> None:
        pending, waited = b"", False
        with client:
            try:
                while data := client.recv(65536):
                    with self.lock:
                        received.raw += data
                    pending += data
                    if not waited and (waited := bool(EXPECTS.search(pending))):
                        client.sendall(b"HTTP/1.1 100 Continue\r\n\r\n")
                    while (end := self.request_end(pending)) is not None:
                        pending, waited = pending[end:], False
                        client.sendall(b"HTTP/1.1 200 OK\r\nContent-Length: 2\r\nX-Recorder: yes\r\n\r\nok")
            except OSError:
                pass
        with self.lock:
            received.over = True

    def request_end(self, pending: bytes) -> int | None:
        """Where the request at the front ends, read as leniently as can be."""
        head = HEAD_END.search(pending)
        if not head:
            return None
        if re.search(rb"(?im)^transfer-encoding[^\r\n]*chunked", pending[: head.start()]):
            last = re.search(rb"(?:^|\n)0+[^\n]*\n(?:[^\r\n]+\r?\n)*\r?\n", pending[head.end() :])
            return head.end() + last.end() if last else None
        length = re.search(rb"(?im)^content-length:[ \t]*([0-9]{1,9})", pending[: head.start()])
        end = head.end() + (int(length[1]) if length else 0)
        return end if len(pending) >= end else None
