"""A client that sends bytes as they are, and reads the responses one by one."""

from __future__ import annotations

import socket
from dataclasses import dataclass


@dataclass
class Response:
    status: int
    lines: list[tuple[str, str]]
    body: bytes

    def value(self, name: str) -> str | None:
        found = [value for known, value in self.lines if known == name]
        return ", ".join(found) if found else None

    @property
    def by_gateway(self) -> bool:
        return self.value("fencing-outcome") is not None

    @property
    def closes(self) -> bool:
        return (self.value("connection") or "").lower() == "close"


class Ended(Exception):
    """There is no further response: "closed", "reset", "silent" or "garbage"."""


class Connection:
    def __init__(self, port: int, patience: float = 5.0) -> None:
        self.socket = socket.create_connection(("127.0.0.1", port), patience)
        self.socket.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        self.buffer = b""
        self.eof = ""

    def __enter__(self) -> Connection:
        return self

    def __exit__(self, *_: object) -> None:
        self.socket.close()

    def send(self, data: bytes, cuts: tuple[int, ...] = ()) -> None:
        """In pieces that end at `cuts`. A peer that is gone already is no error: it may have answered."""
        try:
            for start, end in zip((0, *cuts), (*cuts, len(data)), strict=True):
                self.socket.sendall(data[start:end])
        except OSError:
            pass

    def finish(self) -> None:
        try:
            self.socket.shutdown(socket.SHUT_WR)
        except OSError:
            pass

    def response(self, *, head: bool = False) -> Response:
        """The next final response; informational ones are passed over."""
        while True:
            while b"\r\n\r\n" not in self.buffer:
                self.fill()
            raw, _, self.buffer = self.buffer.partition(b"\r\n\r\n")
            first, *rest = raw.decode("latin-1").split("\r\n")
            words = first.split(" ")
            if len(words) < 2 or not words[0].startswith("HTTP/1.") or not words[1].isdigit():
                raise Ended(f"garbage: {raw[:200]!r}")
            lines = [(name.lower(), value.strip(" \t")) for name, _, value in (line.partition(":") for line in rest)]
            response = Response(int(words[1]), lines, b"")
            if response.status >= 200 or response.status == 101:
                break
        if head or response.status in (101, 204, 304):
            return response
        if (response.value("transfer-encoding") or "").lower() == "chunked":
            response.body = self.chunks()
        elif (length := response.value("content-length")) is not None:
            response.body = self.take(int(length))
        else:
            response.body = self.rest()
        return response

    def chunks(self) -> bytes:
        body = b""
        while size := int(self.line().partition(b";")[0], 16):
            body += self.take(size)
            self.line()
        while self.line():
            pass
        return body

    def line(self) -> bytes:
        while b"\r\n" not in self.buffer:
            self.fill()
        line, _, self.buffer = self.buffer.partition(b"\r\n")
        return line

    def take(self, length: int) -> bytes:
        while len(self.buffer) < length:
            self.fill()
        taken, self.buffer = self.buffer[:length], self.buffer[length:]
        return taken

    def rest(self) -> bytes:
        try:
            while True:
                self.fill()
        except Ended:
            rest, self.buffer = self.buffer, b""
            return rest

    def fill(self) -> None:
        if self.eof:
            raise Ended(self.eof)
        try:
            data = self.socket.recv(65536)
        except TimeoutError:
            self.eof = "silent"
        except OSError:
            self.eof = "reset"
        else:
            if data:
                self.buffer += data
                return
            self.eof = "closed"
        raise Ended(self.eof)
