#!/usr/bin/env python3
"""Runs slowhttptest in its four modes against fencegate while a good client writes and reads: the good client must see no error.

    python3 tests/smuggling/slow.py                                 5 s for each mode, 300 connections
    python3 tests/smuggling/slow.py --seconds 40 --write            and writes the table into docs/SECURITY-TESTS.md

Slow headers, slow bodies (of writes that are admitted), slow readers of large responses, and many overlapping ranges. Behind the
gateway is nginx over files. A probe of slowhttptest's own has to get an answer within its time, too.
"""

from __future__ import annotations

import argparse
import os
import re
import subprocess
import sys
import threading
import time
from dataclasses import dataclass, field

from client import Connection, Ended
from servers import Gateway, Missing, Server, program

CONNECTIONS = 300
# Slower than that is an error of the good client's; a machine that is busy with other things is slow, too.
PATIENCE = 20.0
LARGE = 4 << 20
# slowhttptest sends what it is told for Content-Type as it is: so a slow write has a token of its own.
TOKEN = "text/plain\r\nFencing-Token: 7"
MODES = {
    "slow headers (-H)": ["-H", "-i", "1", "-x", "24", "-u", "/v/small"],
    "slow bodies (-B)": ["-B", "-i", "1", "-x", "10", "-t", "PUT", "-s", "8192", "-f", TOKEN, "-u", "/v/slow"],
    "slow readers (-X)": ["-X", "-w", "512", "-y", "1024", "-n", "1", "-z", "32", "-k", "3", "-u", "/v/large"],
    "ranges (-R)": ["-R", "-a", "5", "-b", "3000", "-u", "/v/large"],
}


class Files(Server):
    """nginx over a directory, with PUT."""

    def start(self) -> None:
        user = "user root;" if os.getuid() == 0 else ""
        (self.dir / "files" / "v").mkdir(parents=True)
        (self.dir / "files" / "v" / "large").write_bytes(bytes(LARGE))
        (self.dir / "files" / "v" / "small").write_bytes(b"small")
        (self.dir / "nginx.conf").write_text(f"""
            daemon off; master_process off; {user} pid {self.dir}/pid; error_log {self.dir}/error.log;
            events {{ worker_connections 4096; }}
            http {{
              access_log off; client_max_body_size 0;
              client_body_temp_path {self.dir}/body; proxy_temp_path {self.dir}/proxy;
              fastcgi_temp_path {self.dir}/f; uwsgi_temp_path {self.dir}/u; scgi_temp_path {self.dir}/s;
              server {{
                listen 127.0.0.1:{self.port}; root {self.dir}/files;
                location / {{ dav_methods PUT DELETE; }}
              }}
            }}""")
        self.spawn([program("nginx"), "-p", str(self.dir), "-e", f"{self.dir}/error.log", "-c", f"{self.dir}/nginx.conf"])


@dataclass
class GoodClient:
    """Writes and reads a key of its own, over a connection that it keeps and over new ones in turn, until it is told to stop."""

    port: int
    tokens_from: int
    errors: list[str] = field(default_factory=list)
    millis: list[float] = field(default_factory=list)
    stop: threading.Event = field(default_factory=threading.Event)

    def run(self) -> None:
        kept = Connection(self.port, PATIENCE)
        number = 0
        while not self.stop.is_set():
            number += 1
            body = b"good %d" % number
            write = b"PUT /v/good HTTP/1.1\r\nHost: store.test\r\nFencing-Token: %d\r\nContent-Length: %d\r\n\r\n%b" % (self.tokens_from + number // 50, len(body), body)
            read = b"GET /v/good HTTP/1.1\r\nHost: store.test\r\n\r\n"
            connection = kept if number % 2 else Connection(self.port, PATIENCE)
            for request, wanted in ((write, (201, 204)), (read, (200,))):
                began = time.monotonic()
                try:
                    connection.send(request)
                    response = connection.response()
                except Ended as ended:
                    self.errors.append(f"{request[:40]!r}: {ended}")
                    return
                self.millis.append((time.monotonic() - began) * 1000)
                if response.status not in wanted or (wanted == (200,) and response.body != body):
                    self.errors.append(f"{request[:40]!r}: {response}")
            if connection is not kept:
                connection.socket.close()
            time.sleep(0.005)
        kept.socket.close()

    def percentile(self, share: float) -> float:
        ordered = sorted(self.millis)
        return ordered[min(len(ordered) - 1, int(len(ordered) * share))]


def attack(mode: str, gateway: Gateway, seconds: int) -> tuple[GoodClient, str]:
    """The good client while the attack lasts, and what slowhttptest says at its end."""
    arguments = list(MODES[mode])
    arguments[-1] = f"http://127.0.0.1:{gateway.port}{arguments[-1]}"
    good = GoodClient(gateway.port, 1_000_000)
    thread = threading.Thread(target=good.run)
    command = [program("slowhttptest"), "-c", str(CONNECTIONS), "-r", str(CONNECTIONS), "-l", str(seconds), "-p", "3", "-v", "1", *arguments]
    thread.start()
    try:
        told = subprocess.run(command, capture_output=True, text=True, timeout=seconds + 60, check=False, cwd=gateway.dir)
    finally:
        good.stop.set()
        thread.join()
    text = re.sub(r"\x1b\[[0-9;]*[A-Za-z]", "", told.stdout + told.stderr)
    return good, text


def last(pattern: str, text: str) -> str:
    found = re.findall(pattern, text)
    return found[-1] if found else "?"


def main() -> int:
    arguments = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    arguments.add_argument("--seconds", type=int, default=5)
    arguments.add_argument("--mode", choices=[options[0] for options in MODES.values()])
    arguments.add_argument("--write", action="store_true")
    options = arguments.parse_args()
    lines = [
        "| attack | what became of its connections | available to its probe | good client: requests | errors | p50 | p99 | most memory |",
        "| --- | --- | --- | --- | --- | --- | --- | --- |",
    ]
    failed = 0
    for mode, flags in MODES.items():
        if options.mode and options.mode != flags[0]:
            continue
        with Files("files") as files, Gateway(files.port) as gateway:
            calm = GoodClient(gateway.port, 1)
            thread = threading.Thread(target=calm.run)
            thread.start()
            time.sleep(0.5)
            calm.stop.set()
            thread.join()
            good, text = attack(mode, gateway, options.seconds)
            memory = int(last(r"VmHWM:\s+(\d+)", (gateway.dir.parent / f"/proc/{gateway.processes[0].pid}/status").read_text())) // 1024
            available = last(r"service available:\s+(\w+)", text)
            errors = [*calm.errors, *good.errors]
            if not gateway.alive():
                errors.append("the gateway ended")
            failed += bool(errors) or available != "YES" or not good.millis
            ended = last(r"Test ended on (\d+)", text)
            connected = last(r"connected:\s+(\d+)", text)
            fate = "all closed" if "No open connections left" in text else f"{connected} open"
            numbers = f"{len(good.millis)} | {len(errors)} | {good.percentile(0.5):.1f} ms (calm {calm.percentile(0.5):.1f}) | {good.percentile(0.99):.1f} ms (calm {calm.percentile(0.99):.1f})"
            lines.append(f"| {mode} | {fate} after {ended} s | {available} | {numbers} | {memory} MiB |")
            print(lines[-1], flush=True)
            for error in errors[:5]:
                print(f"  {error}")
            if available != "YES":
                print(text[-2000:])
    ran = len(lines) - 2
    if options.write and not options.mode:
        import marked

        version = last(r"version ([\d.]+)", subprocess.run([program("slowhttptest"), "-h"], capture_output=True, text=True, check=False).stdout)
        told = f"slowhttptest {version}, {CONNECTIONS} connections for {options.seconds} s in each mode; the rest of the machine was at work too."
        marked.write("slowhttptest", [told, "", *lines], "python3 tests/smuggling/slow.py --seconds 40 --write")
    print(f"{ran - failed} passed, {failed} failed")
    return 1 if failed else 0


if __name__ == "__main__":
    try:
        sys.exit(main())
    except Missing as missing:
        print(missing, file=sys.stderr)
        sys.exit(2)
