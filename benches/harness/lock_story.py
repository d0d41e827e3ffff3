"""The story of the holder that stalls, as each lock service has it: real processes, stopped and let go on.

Two holders want one lock, to write to one resource. The first gets it, and stalls (SIGSTOP of all of its processes, as
when its machine stands still) after its last look and before its write. Its lease runs out; the second gets the lock, and
writes. Then the first goes on (SIGCONT), and writes. What does the resource have in the end?

For fencegate the resource is behind its gateway. For the others it is what it is without one: it takes any write, and
knows nothing of locks.
"""

from __future__ import annotations

import os
import select
import signal
import subprocess
import threading
import time
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

from .lock_peers import LockPeer
from .machine import BenchError, require_program

TTL_SECONDS = 2
PATIENCE_SECONDS = 30

# The write that is under way is not called back by a SIGTERM to the shell. Orders come by a pipe with a name, since
# etcdctl gives its command no standard input.
WORK = """
trap '' TERM
echo holds $FENCING_TOKEN
while read order; do
    echo wrote $(curl -s -o /dev/null -w '%{http_code}' -X PUT -H "Fencing-Token: $FENCING_TOKEN" --data-binary NAME URL)
done < ORDERS
"""


class Resource:
    """One object that anybody may write; what was written, in order."""

    def __init__(self):
        self.writes: list[str] = []
        resource = self

        class Handler(BaseHTTPRequestHandler):
            protocol_version = "HTTP/1.1"

            def do_PUT(self):
                body = self.rfile.read(int(self.headers.get("Content-Length", "0")))
                resource.writes.append(body.decode())
                self.send_response(200)
                self.send_header("Content-Length", "0")
                self.end_headers()

            def log_message(self, *_):
                pass

        class Server(ThreadingHTTPServer):
            def handle_error(self, *_):
                pass  # whoever wrote is gone

        self._server = Server(("127.0.0.1", 0), Handler)
        self.port = self._server.server_address[1]
        threading.Thread(target=self._server.serve_forever, daemon=True).start()

    def __enter__(self) -> "Resource":
        return self

    def __exit__(self, *_) -> None:
        self._server.shutdown()
        self._server.server_close()


def holder_command(peer: LockPeer, name: str, orders: Path) -> list[str]:
    """Takes the lock, and runs WORK under it."""
    site = peer.site
    port = site.other_port if peer.name == "fencegate" else site.resource_port
    url = f"http://127.0.0.1:{port}/objects/42"
    work = WORK.replace("NAME", name).replace("URL", url).replace("ORDERS", str(orders))
    if peer.name == "fencegate":
        options = ["--url", f"http://127.0.0.1:{site.port}", "--holder", name, "--ttl", f"{TTL_SECONDS}s"]
        return [str(site.fencegate), "lock", "objects/42", *options, "--", "sh", "-c", work]
    if peer.name == "etcd":
        client = [require_program("etcdctl"), "--endpoints", f"127.0.0.1:{site.port}"]
        return [*client, "lock", "--ttl", str(TTL_SECONDS), "--", "objects/42", "sh", "-c", work]
    take = f"{require_program('redis-cli')} -p {site.port} SET objects/42 {name} NX PX {TTL_SECONDS * 1000}"
    return ["sh", "-c", f'until [ "$({take})" = OK ]; do sleep 0.1; done\n{work}']


class Holder:
    """A holder: its processes are a group of their own."""

    def __init__(self, peer: LockPeer, name: str):
        environment = {**os.environ, "ETCDCTL_API": "3"}
        environment.pop("FENCING_TOKEN", None)
        orders = peer.site.directory / f"orders-{name}"
        os.mkfifo(orders)
        # For reading too, so that neither end waits for the other.
        self._orders = os.open(orders, os.O_RDWR)
        self._process = subprocess.Popen(
            holder_command(peer, name, orders),
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.DEVNULL,
            env=environment,
            start_new_session=True,
        )
        self._name = name
        self._read = b""

    def signal(self, number: int) -> None:
        os.killpg(self._process.pid, number)

    def order(self) -> None:
        os.write(self._orders, b"write\n")

    def says(self) -> str:
        """Its next line."""
        deadline = time.monotonic() + PATIENCE_SECONDS
        while b"\n" not in self._read:
            ready, _, _ = select.select([self._process.stdout], [], [], max(0, deadline - time.monotonic()))
            more = os.read(self._process.stdout.fileno(), 4096) if ready else b""
            if not more:
                raise BenchError(f"holder {self._name} says nothing more")
            self._read += more
        line, self._read = self._read.split(b"\n", 1)
        return line.decode().strip()

    def stop(self) -> None:
        try:
            self.signal(signal.SIGKILL)
        except ProcessLookupError:
            pass
        self._process.wait()
        os.close(self._orders)


def stalled_holder(peer: LockPeer, resource: Resource) -> tuple[list[str], bool]:
    """The timeline, and whether the stalled holder's write landed over that of the next one."""
    resource.writes.clear()
    began, lines, holders = time.monotonic(), [], []

    def note(what: str) -> None:
        lines.append(f"{(time.monotonic() - began) * 1000:6.0f} ms  {what}")

    try:
        holders = [Holder(peer, "A")]
        first = holders[0]
        note(f"A {first.says()}")
        first.signal(signal.SIGSTOP)
        note("A stalls (SIGSTOP)")
        second = Holder(peer, "B")
        holders.append(second)
        note(f"A's lease is over: B {second.says()}")
        second.order()
        note(f"B {second.says()}")
        first.order()
        first.signal(signal.SIGCONT)
        note("A goes on (SIGCONT)")
        note(f"A {first.says()}")
    finally:
        for holder in holders:
            holder.stop()
    note(f"the resource has the writes of {', '.join(resource.writes)}")
    return lines, resource.writes[-1:] == ["A"]


def lock_directory(parent: Path, name: str) -> Path:
    directory = parent / name
    directory.mkdir()
    return directory
