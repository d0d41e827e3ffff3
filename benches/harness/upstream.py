"""The upstream of the request benchmarks: an nginx that answers from memory, on the load core.

It is the fastest responder that a distribution ships, so load generator and upstream together can keep a proxy busy.
"""

from __future__ import annotations

import http.client
import os
import re
from pathlib import Path

from .machine import require_program
from .process import PinnedProcess
from .sockets import accepts_connections

LANES = ("fenced", "open")
SMALL_BODY = "sixteen bytes ok"
KIBIBYTE, MEBIBYTE = 1 << 10, 1 << 20
# Resources of one size, each by the name of its kind.
FILES = {
    "1k": KIBIBYTE,
    "16k": 16 * KIBIBYTE,
    "256k": 256 * KIBIBYTE,
    "large": MEBIBYTE,
    "4m": 4 * MEBIBYTE,
}
BLOB_BYTES = 16 * MEBIBYTE

# Uploads: `mirror` makes nginx read the body to its end, into memory, before it answers; `return` alone would answer at
# the request's head, which to a proxy is a response that came too early.
LANE_LOCATIONS = """
        location /LANE/small/ { return 200 "SMALL_BODY"; }
        location /LANE/upload/ { mirror /body-was-read; error_page 405 =200 @stored; }
        location /LANE/blob/ { client_body_buffer_size 17m; mirror /body-was-read; error_page 405 =200 @stored; }
"""
FILE_LOCATION = """        location /LANE/KIND/ { alias DIRECTORY/KIND/; }
"""

CONFIG = """
daemon off;
worker_processes 1;
worker_rlimit_nofile 65536;
pid DIRECTORY/upstream.pid;
error_log stderr crit;
USER
events { worker_connections 32768; }
http {
    access_log off;
    sendfile on;
    tcp_nopush on;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 128k;
    default_type application/octet-stream;
    client_body_temp_path DIRECTORY/upstream-body;
    proxy_temp_path DIRECTORY/upstream-proxy;
    fastcgi_temp_path DIRECTORY/upstream-fastcgi;
    uwsgi_temp_path DIRECTORY/upstream-uwsgi;
    scgi_temp_path DIRECTORY/upstream-scgi;
    server {
        listen 127.0.0.1:PORT backlog=4096;
        LOCATIONS
        location /more/ { return 200 "SMALL_BODY"; }
        location @stored { return 200 "SMALL_BODY"; }
        location = /body-was-read { internal; return 204; }
        location = /counters { stub_status; }
    }
}
"""


def nginx_user_line() -> str:
    """Started by root, nginx's worker would become a user that can't read the scratch directory."""
    return "user root;" if os.geteuid() == 0 else ""


class Upstream(PinnedProcess):
    """A `with` block's worth of upstream, with the counters of requests and connections it has seen."""

    def __init__(self, directory: Path, port: int, core: int):
        self.port = port
        for kind, size in FILES.items():
            (directory / kind).mkdir()
            (directory / kind / "42").write_bytes(b"x" * size)
        config = directory / "upstream.conf"
        config.write_text(render_config(directory, port))
        command = [require_program("nginx"), "-p", str(directory), "-e", "stderr", "-c", str(config)]
        super().__init__("upstream", command, core, directory / "upstream.log")

    def wait_until_ready(self) -> None:
        self.wait_for(lambda: accepts_connections(self.port), "the listening socket")

    def counters(self) -> tuple[int, int]:
        """Connections accepted and requests handled, this question included."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=5)
        try:
            connection.request("GET", "/counters")
            text = connection.getresponse().read().decode()
        finally:
            connection.close()
        accepted, _handled, requests = re.search(r"^ (\d+) (\d+) (\d+)", text, re.MULTILINE).groups()
        return int(accepted), int(requests)


def render_config(directory: Path, port: int) -> str:
    files = "".join(FILE_LOCATION.replace("KIND", kind) for kind in FILES)
    locations = "".join((LANE_LOCATIONS + files).replace("LANE", lane) for lane in LANES)
    return (
        CONFIG.replace("LOCATIONS", locations)
        .replace("SMALL_BODY", SMALL_BODY)
        .replace("DIRECTORY", str(directory))
        .replace("PORT", str(port))
        .replace("USER", nginx_user_line())
    )
