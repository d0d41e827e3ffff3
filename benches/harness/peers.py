"""The proxies that are compared, each with the plainest configuration that its users would call fast."""

from __future__ import annotations

import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .machine import BenchError, find_program, first_line_of, require_program
from .process import PinnedProcess
from .sockets import accepts_connections
from .upstream import nginx_user_line

NGINX_CONFIG = """
daemon off;
worker_processes 1;
pid DIRECTORY/nginx.pid;
error_log stderr crit;
USER
events { worker_connections 4096; }
http {
    access_log off;
    keepalive_timeout 600s;
    keepalive_requests 1000000000;
    client_max_body_size 0;
    client_body_buffer_size 128k;
    client_body_temp_path DIRECTORY/nginx-body;
    proxy_temp_path DIRECTORY/nginx-proxy;
    fastcgi_temp_path DIRECTORY/nginx-fastcgi;
    uwsgi_temp_path DIRECTORY/nginx-uwsgi;
    scgi_temp_path DIRECTORY/nginx-scgi;
    upstream backend {
        server 127.0.0.1:UPSTREAM;
        keepalive 128;
        keepalive_requests 1000000000;
        keepalive_timeout 60s;
    }
    server {
        listen 127.0.0.1:PORT backlog=1024;
        listen 127.0.0.1:SECUREPORT backlog=1024 ssl http2;
        ssl_certificate DIRECTORY/server.pem;
        ssl_certificate_key DIRECTORY/server.key;
        ssl_protocols TLSv1.2 TLSv1.3;
        location / {
            proxy_pass http://backend;
            proxy_http_version 1.1;
            proxy_set_header Connection "";
            proxy_request_buffering BUFFERING;
            proxy_max_temp_file_size 0;
        }
    }
}
"""

HAPROXY_CONFIG = """
global
    maxconn 4096
    nbthread 1
defaults
    mode MODE
    maxconn 4096
    timeout connect 5s
    timeout client 600s
    timeout server 600s
    HTTP_OPTIONS
listen bench
    bind 127.0.0.1:PORT backlog 1024
    SECURE_BIND
    server backend 127.0.0.1:UPSTREAM
"""

HAPROXY_SECURE_BIND = "bind 127.0.0.1:SECUREPORT backlog 1024 ssl crt DIRECTORY/server.both.pem alpn h2,http/1.1"

FENCEGATE_CONFIG = """
listeners:
  - address: 127.0.0.1:PORT
  - address: 127.0.0.1:SECUREPORT
    tls: { cert: DIRECTORY/server.pem, key: DIRECTORY/server.key }
admin:
  address: 127.0.0.1:ADMIN
store:
  path: DIRECTORY/marks
upstreams:
  backend:
    urls: ["http://127.0.0.1:UPSTREAM"]
    settle: 5s  # wrk leaves uploads half sent at its end; a stop waits this long for their outcomes
    pool: { max_idle: 128, idle_timeout: 60s }
routes:
  - name: fenced
    path: /fenced/{kind}/{id}
    upstream: backend
    fence: { require: all, key: "{id}" }
  - name: open
    path: /open/{kind}/{id}
    upstream: backend
    fence: { require: never }
log: { access: false }
"""


@dataclass(frozen=True)
class Site:
    """Where a peer is to run, and whether bodies are too large for nginx to collect before it forwards them.

    Collecting costs nginx less CPU as long as a body fits its buffer; beyond that it would write to disk.
    """

    directory: Path
    port: int
    tls_port: int
    admin_port: int
    upstream_port: int
    core: int
    fencegate: Path
    large_bodies: bool

    def fill(self, template: str) -> str:
        return (
            template.replace("DIRECTORY", str(self.directory))
            .replace("UPSTREAM", str(self.upstream_port))
            .replace("ADMIN", str(self.admin_port))
            .replace("SECUREPORT", str(self.tls_port))
            .replace("PORT", str(self.port))
            .replace("USER", nginx_user_line())
            .replace("BUFFERING", "off" if self.large_bodies else "on")
        )

    def write(self, name: str, template: str) -> str:
        path = self.directory / name
        path.write_text(self.fill(template))
        return str(path)


class PeerMissing(Exception):
    """The program of a peer is not there; the others can be compared without it."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a peer, and the lane its requests take (fencegate has two routes, one fenced, one not)."""

    label: str
    peer: str
    lane: str = "fenced"


ROWS = (
    Row("raw TCP relay (HAProxy, tcp mode)", "relay"),
    Row("nginx proxy_pass, no fence", "nginx"),
    Row("HAProxy http mode, no fence", "haproxy"),
    Row("fencegate, no fence", "fencegate", "open"),
    Row("fencegate, fenced, one hot key", "fencegate"),
)


def nginx_command(site: Site) -> list[str]:
    config = site.write("nginx.conf", NGINX_CONFIG)
    return [installed("nginx"), "-p", str(site.directory), "-e", "stderr", "-c", config]


def haproxy_command(site: Site) -> list[str]:
    template = HAPROXY_CONFIG.replace("MODE", "http").replace("HTTP_OPTIONS", "http-reuse always")
    template = template.replace("SECURE_BIND", HAPROXY_SECURE_BIND)
    return [installed("haproxy"), "-db", "-f", site.write("haproxy.cfg", template)]


def relay_command(site: Site) -> list[str]:
    template = HAPROXY_CONFIG.replace("MODE", "tcp").replace("HTTP_OPTIONS", "").replace("SECURE_BIND", "")
    return [installed("haproxy"), "-db", "-f", site.write("relay.cfg", template)]


def fencegate_command(site: Site) -> list[str]:
    if not site.fencegate.exists():
        raise PeerMissing(f"{site.fencegate} is not there: build it with `cargo build --release`")
    return [str(site.fencegate), "serve", "--config", site.write("fencegate.yaml", FENCEGATE_CONFIG)]


def installed(program: str) -> str:
    path = find_program(program)
    if path is None:
        raise PeerMissing(f"{program} is not installed: run benches/setup.sh")
    return path


COMMANDS: dict[str, Callable[[Site], list[str]]] = {
    "relay": relay_command,
    "nginx": nginx_command,
    "haproxy": haproxy_command,
    "fencegate": fencegate_command,
}


VERSION_FLAGS = {"nginx": "-v", "haproxy": "-v", "relay": "-v", "fencegate": "--version"}


def make_certificate(directory: Path) -> None:
    """A self-signed certificate for 127.0.0.1 with a P-256 key: the same type for every peer."""
    key, certificate = directory / "server.key", directory / "server.pem"
    request = "req -x509 -newkey ec -pkeyopt ec_paramgen_curve:P-256 -nodes -days 2 -subj /CN=localhost"
    command = [require_program("openssl"), *request.split(), "-addext", "subjectAltName=IP:127.0.0.1"]
    subprocess.run([*command, "-keyout", key, "-out", certificate], check=True, stderr=subprocess.DEVNULL)
    (directory / "server.both.pem").write_bytes(certificate.read_bytes() + key.read_bytes())


class Peer(PinnedProcess):
    """A running proxy, with one listener in plain text and, but for the relay, one with TLS."""

    def __init__(self, name: str, site: Site):
        self.port = site.port
        self.tls_port = site.tls_port
        make_certificate(site.directory)
        command = COMMANDS[name](site)
        self._program = command[0]
        super().__init__(name, command, site.core, site.directory / f"{name}.log")

    def version(self) -> str:
        """What the program calls itself."""
        return first_line_of(self._program, VERSION_FLAGS[self.name])

    def wait_until_ready(self) -> None:
        if self.name == "fencegate":
            self.wait_for(lambda: "ready" in self.log.read_text(errors="replace"), "the ready line")
        self.wait_for(lambda: accepts_connections(self.port), "the listening socket")


def check_names(names: list[str]) -> None:
    unknown = sorted(set(names) - set(COMMANDS))
    if unknown:
        raise BenchError(f"no such peer: {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
