#!/usr/bin/env python3
"""Load of TLS handshakes: `handshake_load.py full|resumed PORT PATH TOKEN CONNECTIONS SECONDS`.

Each of so many threads connects, asks once with `Connection: close`, and begins anew: `resumed` with the session it got
last, `full` without one. (wrk keeps the session of a connection that it closes, so that its handshakes are not full ones.)
Prints one line as wrk.lua does, and with it how many handshakes were resumed: a server may always decline.
"""

import json
import socket
import ssl
import sys
import threading
import time

TIMEOUT_SECONDS = 10


def client_context() -> ssl.SSLContext:
    """The certificate is made for this run by whoever started it, and is not what is measured."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.check_hostname = False
    context.verify_mode = ssl.CERT_NONE
    return context


class Client(threading.Thread):
    """One connection after the other until the deadline."""

    def __init__(self, resumes: bool, port: int, request: bytes, deadline: float):
        super().__init__(daemon=True)
        self._resumes, self._port, self._request, self._deadline = resumes, port, request, deadline
        self._context = client_context()  # sessions belong to a context
        self._session: ssl.SSLSession | None = None
        self.times_us: list[float] = []
        self.resumed = self.received = self.status_errors = self.socket_errors = 0

    def run(self) -> None:
        while (began := time.monotonic()) < self._deadline:
            try:
                self._ask()
            except OSError:
                self.socket_errors += 1
                return
            self.times_us.append((time.monotonic() - began) * 1e6)

    def _ask(self) -> None:
        plain = socket.create_connection(("127.0.0.1", self._port), timeout=TIMEOUT_SECONDS)
        plain.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
        with self._context.wrap_socket(plain, session=self._session) as client:
            self.resumed += client.session_reused
            client.sendall(self._request)
            answer = bytearray()
            while part := client.recv(65536):
                answer += part
            self._session = client.session if self._resumes else None
        self.received += len(answer)
        self.status_errors += not answer.startswith(b"HTTP/1.1 2")


def main() -> None:
    kind, port, path, token, connections, seconds = sys.argv[1:]
    request = f"GET {path} HTTP/1.1\r\nHost: 127.0.0.1\r\nFencing-Token: {token}\r\nConnection: close\r\n\r\n".encode()
    began = time.monotonic()
    clients = [Client(kind == "resumed", int(port), request, began + float(seconds)) for _ in range(int(connections))]
    for client in clients:
        client.start()
    for client in clients:
        client.join()
    times = sorted(each for client in clients for each in client.times_us)
    shares = {"p50_us": 0.5, "p99_us": 0.99, "p999_us": 0.999}
    result = {
        "requests": len(times),
        "refused": 0,
        "duration_us": round((time.monotonic() - began) * 1e6),
        "bytes": sum(client.received for client in clients),
        "status_errors": sum(client.status_errors for client in clients),
        "socket_errors": sum(client.socket_errors for client in clients),
        "resumed": sum(client.resumed for client in clients),
        **{name: times[min(len(times) - 1, int(len(times) * share))] if times else 0 for name, share in shares.items()},
    }
    print("RESULT " + json.dumps(result))


if __name__ == "__main__":
    main()
