"""Proxies that are wrong on purpose, to see that the oracle finds them out.

Each logs what it believes to have forwarded in the gateway's own form, and is wrong in the way of a published fault.
"""

from __future__ import annotations

import re
import socket
import threading

import reference
from servers import free_port

PATIENCE = 0.2


class Toy:
    """A proxy in threads of this process, over upstream connections that are kept."""

    caught_as: tuple[str, ...] = ()

    def __init__(self, upstream: int) -> None:
        self.upstream, self.port = upstream, free_port()
        self.lines: list[dict] = []
        self.kept: list[socket.socket] = []
        self.lock = threading.Lock()
        self.listener = socket.create_server(("127.0.0.1", self.port))

    def __enter__(self) -> Toy:
        threading.Thread(target=self.accept, daemon=True).start()
        return self

    def __exit__(self, *_: object) -> None:
        # A listener that is only closed does not wake who waits in accept.
        self.listener.shutdown(socket.SHUT_RDWR)
        self.listener.close()
        for connection in self.kept:
            connection.close()

    def alive(self) -> bool:
        return True

    def logged(self) -> list[dict]:
        with self.lock:
            taken, self.lines = self.lines, []
        return taken

    def log(self, method: bytes, target: bytes, lines: dict[bytes, bytes], status: int) -> None:
        path = target.partition(b"?")[0].decode("latin-1")
        token = reference.read_token(lines.get(b"fencing-token", b""))
        key = "objects/" + path.strip("/")
        entry = {"method": method.decode("latin-1"), "path": path, "status": status, "decision": "admitted" if token else "unfenced"}
        entry |= {"token": f"{token[0]}.{token[1]}", "key": key} if token else {}
        with self.lock:
            self.lines.append(entry)

    def accept(self) -> None:
        while True:
            try:
                client, _ = self.listener.accept()
            except OSError:
                return
            threading.Thread(target=self.serve, args=(client,), daemon=True).start()

    def serve(self, client: socket.socket) -> None:
        with client:
            try:
                self.connection(client)
            except (OSError, ValueError, IndexError):
                pass

    def connection(self, client: socket.socket) -> None:
        raise NotImplementedError

    def borrow(self) -> socket.socket:
        with self.lock:
            if self.kept:
                return self.kept.pop()
        return socket.create_connection(("127.0.0.1", self.upstream), PATIENCE)

    def exchange(self, request: bytes) -> bytes:
        """One response for one request, as this proxy thinks, over a connection that is kept."""
        for _ in range(2):
            upstream = self.borrow()
            upstream.settimeout(PATIENCE)
            try:
                upstream.sendall(request)
                data = b""
                while b"\r\n\r\n" not in data or len(data.partition(b"\r\n\r\n")[2]) < 2:
                    more = upstream.recv(4096)
                    if not more:
                        break
                    data += more
                if data:
                    # What comes behind is taken for nothing: the next request's client gets what is left.
                    with self.lock:
                        self.kept.append(upstream)
                    return data
            except OSError:
                pass
            upstream.close()
        return b""


class Pipe(Toy):
    """Reads one head and then forwards bytes as they come: only the first request is ever looked at (Fabio, early Pingora)."""

    caught_as = ("UNLOGGED", "LENIENT")

    def connection(self, client: socket.socket) -> None:
        data = b""
        while b"\r\n\r\n" not in data:
            data += receive(client)
        first, *rest = data.partition(b"\r\n\r\n")[0].split(b"\r\n")
        method, target = first.split(b" ")[:2]
        lines = dict(reversed([(name.strip().lower(), value.strip()) for name, _, value in (one.partition(b":") for one in rest)]))
        with socket.create_connection(("127.0.0.1", self.upstream), PATIENCE) as upstream:
            upstream.sendall(data)
            threading.Thread(target=copy, args=(client, upstream), daemon=True).start()
            answered = False
            while more := receive(upstream):
                if not answered:
                    answered = True
                    self.log(method, target, lines, int(more[9:12]))
                client.sendall(more)


class Careless(Toy):
    """Frames by the first Content-Length alone, or by a coding that only looks like chunked; takes bare line ends, trims names, and
    forwards the head as it came."""

    caught_as = ("UNLOGGED", "LENIENT", "DISAGREE")

    def connection(self, client: socket.socket) -> None:
        data = b""
        while True:
            while not (found := re.search(rb"\r?\n\r?\n", data)):
                data += receive(client)
            head, data = data[: found.end()], data[found.end() :]
            first, *rest = re.split(rb"\r?\n", head.strip(b"\r\n"))
            method, target = first.split()[:2]
            lines: dict[bytes, bytes] = {}
            for one in rest:
                name, _, value = one.partition(b":")
                lines.setdefault(name.strip().lower(), value.strip())
            if b"content-length" in lines:
                length = int(lines[b"content-length"])
                while len(data) < length:
                    data += receive(client)
            elif b"chunked" in lines.get(b"transfer-encoding", b"").lower():
                while not (end := re.search(rb"(?:^|\n)0\r?\n\r?\n", data)):
                    data += receive(client)
                length = end.end()
            else:
                length = 0
            body, data = data[:length], data[length:]
            answer = self.exchange(head + body)
            self.log(method, target, lines, int(answer[9:12] or b"502"))
            if not answer:
                return
            client.sendall(answer)


def receive(connection: socket.socket) -> bytes:
    connection.settimeout(PATIENCE)
    data = connection.recv(65536)
    if not data:
        raise OSError("closed")
    return data


def copy(source: socket.socket, sink: socket.socket) -> None:
    try:
        while True:
            sink.sendall(receive(source))
    except OSError:
        pass


TOYS = {"pipe": Pipe, "careless": Careless}
