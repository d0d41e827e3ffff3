#!/usr/bin/env python3
"""The upstream of the bulk transfers: `bulk_server.py PORT FILE`.

GET sends FILE by sendfile; PUT reads the body to its end and answers with the number of bytes. HTTP/1.1, keep-alive,
Content-Length or chunked; one thread for each connection.
"""

import os
import socket
import sys
import threading

BUFFER_BYTES = 1 << 20
MAX_HEAD_BYTES = 64 << 10


class Connection:
    """One client connection: a buffered reader over the socket, and answers."""

    def __init__(self, client: socket.socket, path: str):
        self._socket = client
        self._path = path
        self._reader = client.makefile("rb", buffering=BUFFER_BYTES)
        self._sink = memoryview(bytearray(BUFFER_BYTES))

    def serve(self) -> None:
        with self._socket, self._reader:
            while (head := self._read_head()) is not None:
                method, headers = head
                if method == "GET":
                    self._send_file()
                else:
                    self._answer(str(self._read_body(headers)).encode())

    def _read_head(self) -> tuple[str, dict[str, str]] | None:
        request_line = self._reader.readline(MAX_HEAD_BYTES)
        if not request_line:
            return None
        headers = {}
        while (line := self._reader.readline(MAX_HEAD_BYTES)).strip():
            name, _, value = line.decode("latin-1").partition(":")
            headers[name.lower()] = value.strip()
        return request_line.decode("latin-1").split()[0], headers

    def _read_body(self, headers: dict[str, str]) -> int:
        if headers.get("transfer-encoding", "").lower() != "chunked":
            return self._skip(int(headers.get("content-length", "0")))
        total = 0
        while size := int(self._reader.readline(MAX_HEAD_BYTES).partition(b";")[0], 16):
            total += self._skip(size)
            self._reader.readline(MAX_HEAD_BYTES)
        while self._reader.readline(MAX_HEAD_BYTES).strip():
            pass
        return total

    def _skip(self, size: int) -> int:
        left = size
        while left:
            count = self._reader.readinto1(self._sink[: min(left, BUFFER_BYTES)])
            if not count:
                raise ConnectionError("the body ended early")
            left -= count
        return size

    def _send_file(self) -> None:
        with open(self._path, "rb") as file:
            size = os.fstat(file.fileno()).st_size
            self._send_head(size)
            offset = 0
            while offset < size:
                offset += os.sendfile(self._socket.fileno(), file.fileno(), offset, size - offset)

    def _answer(self, body: bytes) -> None:
        self._send_head(len(body))
        self._socket.sendall(body)

    def _send_head(self, size: int) -> None:
        fields = b"Content-Type: application/octet-stream\r\nContent-Length: %d\r\n" % size
        self._socket.sendall(b"HTTP/1.1 200 OK\r\n" + fields + b"\r\n")


def serve_connection(client: socket.socket, path: str) -> None:
    try:
        Connection(client, path).serve()
    except ConnectionError:
        pass  # the proxy under test went away; its own figures tell


def main() -> None:
    port, path = int(sys.argv[1]), sys.argv[2]
    with socket.create_server(("127.0.0.1", port), backlog=128) as listener:
        while True:
            client, _ = listener.accept()
            threading.Thread(target=serve_connection, args=(client, path), daemon=True).start()


main()
