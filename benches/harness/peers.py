"""The proxies that are compared, each with the plainest configuration that its users would call fast."""

from __future__ import annotations

import hashlib
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .machine import REPOSITORY, BenchError, find_program, first_line_of, require_program
from .process import PinnedProcess
from .sockets import accepts_connections
from .upstream import nginx_user_line

CONFIGS = REPOSITORY / "benches/peers"
TOOLS = REPOSITORY / "target/bench-tools"

READY_SECONDS = 120.0
SECURE_BIND = "bind 127.0.0.1:SECUREPORT backlog 4096 ssl crt DIRECTORY/server.both.pem alpn h2,http/1.1"
# What those set who pass on large bodies, beside what each has by default (nginx: what a small upload is collected in).
NGINX_BUFFERS = "client_body_buffer_size 128k;"
NGINX_LARGE_BUFFERS = "client_body_buffer_size 1m; proxy_buffer_size 64k; proxy_buffers 16 64k; proxy_busy_buffers_size 512k;"
HAPROXY_LARGE_BUFFERS = "tune.bufsize 262144"
HAPROXY_OPTIONS = "http-reuse always"
LUA_MODULES = "load_module MODULES/ndk_http_module.so;\nload_module MODULES/ngx_http_lua_module.so;"
LUA_SETTINGS = "lua_shared_dict marks 256m;"
# On one line each: fencegate reads no file above 1 MiB, and 10,000 of them are to fit.
FENCEGATE_ROUTE = """  - {name: more-NUMBER, path: "/more/NUMBER/{id}", upstream: backend, fence: {require: all, key: "{id}"}}
"""
LUA_CHECK = "access_by_lua_file DIRECTORY/fence.lua;"


@dataclass(frozen=True)
class Site:
    """Where a peer is to run, whether bodies are too large to be collected, and how many routes it has more than it needs."""

    directory: Path
    port: int
    tls_port: int
    admin_port: int
    upstream_port: int
    core: int
    fencegate: Path
    plain: Path
    large_bodies: bool = False
    more_routes: int = 0

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

    def routes(self, template: str) -> str:
        """So many copies of the template, each with its NUMBER."""
        return "".join(template.replace("NUMBER", str(number)) for number in range(self.more_routes))


class PeerMissing(Exception):
    """The program of a peer is not there; the others can be compared without it."""


@dataclass(frozen=True)
class Row:
    """One line of a table: a peer, and the lane its requests take: fencegate has a fenced route and one that is not."""

    label: str
    peer: str
    lane: str = "fenced"


ROWS = (
    Row("raw TCP relay (HAProxy, tcp mode)", "relay"),
    Row("nginx proxy_pass, no fence", "nginx"),
    Row("nginx + Lua, marks in memory, no drain", "nginx-lua"),
    Row("HAProxy http mode, no fence", "haproxy"),
    Row("nginx, buffers of 1 MiB", "nginx-large"),
    Row("HAProxy, buffers of 256 KiB, splice", "haproxy-large"),
    Row("Envoy, no fence", "envoy"),
    Row("Caddy, no fence", "caddy"),
    Row("fencegate, no fence", "fencegate", "open"),
    Row("fencegate, fenced", "fencegate"),
    Row("fencegate, fenced, plain release", "plain"),
)

# Set up for large bodies, and compared by them alone.
FOR_LARGE_BODIES = ("nginx-large", "haproxy-large")

# Those that compare tokens.
FENCING = ("nginx-lua", "fencegate")


def template(name: str, **parts: str) -> str:
    """A configuration of benches/peers with its larger parts put in; what is left is filled by the site."""
    text = (CONFIGS / name).read_text()
    for part, content in parts.items():
        text = text.replace(part, content)
    return text


def nginx_command(site: Site, buffers: str = NGINX_BUFFERS) -> list[str]:
    routes = site.routes("location /more/NUMBER/ { proxy_pass http://backend; }\n        ")
    parts = {"MODULES": "", "LUA_SETTINGS": "", "LUA_CHECK": "", "ROUTES": routes, "BUFFERS": buffers}
    return start_nginx(site, template("nginx.conf", **parts))


def nginx_large_command(site: Site) -> list[str]:
    return nginx_command(site, NGINX_LARGE_BUFFERS)


def nginx_lua_command(site: Site) -> list[str]:
    modules = lua_modules()
    (site.directory / "fence.lua").write_text((CONFIGS / "fence.lua").read_text())
    load = LUA_MODULES.replace("MODULES", str(modules))
    parts = {"MODULES": load, "LUA_SETTINGS": LUA_SETTINGS, "LUA_CHECK": LUA_CHECK, "ROUTES": "", "BUFFERS": NGINX_BUFFERS}
    return start_nginx(site, template("nginx.conf", **parts))


def start_nginx(site: Site, config: str) -> list[str]:
    return [installed("nginx"), "-p", str(site.directory), "-e", "stderr", "-c", site.write("nginx.conf", config)]


def lua_modules() -> Path:
    """Where the distribution puts nginx's modules."""
    for directory in (Path("/usr/lib/nginx/modules"), Path("/usr/lib64/nginx/modules")):
        if (directory / "ngx_http_lua_module.so").exists():
            return directory
    raise PeerMissing("nginx's Lua module is not installed: run benches/setup.sh")


def nginx_with_lua() -> str:
    lua_modules()
    return installed("nginx")


def haproxy_command(site: Site, options: str = HAPROXY_OPTIONS, buffers: str = "") -> list[str]:
    config = template("haproxy.cfg", MODE="http", HTTP_OPTIONS=options, SECURE_BIND=SECURE_BIND, BUFFERS=buffers)
    return [installed("haproxy"), "-db", "-f", site.write("haproxy.cfg", config)]


def haproxy_large_command(site: Site) -> list[str]:
    return haproxy_command(site, HAPROXY_OPTIONS + "\n    option splice-auto", HAPROXY_LARGE_BUFFERS)


def relay_command(site: Site) -> list[str]:
    config = template("haproxy.cfg", MODE="tcp", HTTP_OPTIONS="", SECURE_BIND="", BUFFERS="")
    return [installed("haproxy"), "-db", "-f", site.write("relay.cfg", config)]


def envoy_command(site: Site) -> list[str]:
    config = site.write("envoy.yaml", template("envoy.yaml"))
    # Without a restart epoch of its own, one Envoy would take over from another on this machine.
    alone = ["--concurrency", "1", "--disable-hot-restart", "--log-level", "error"]
    return [envoy_program(), "-c", config, *alone]


def envoy_program() -> str:
    """The program itself; what the wheel puts into bin/ is a wrapper in Python."""
    for path in TOOLS.glob("lib/python*/site-packages/envoy/_bin/envoy"):
        return str(path)
    return installed("envoy")


def caddy_command(site: Site) -> list[str]:
    config = site.write("Caddyfile", template("caddy.txt"))
    return [installed("caddy"), "run", "--adapter", "caddyfile", "--config", config]


def fencegate_command(site: Site) -> list[str]:
    return start_fencegate(site, site.fencegate)


def plain_command(site: Site) -> list[str]:
    return start_fencegate(site, site.plain)


def start_fencegate(site: Site, program: Path) -> list[str]:
    config = template("fencegate.yaml", ROUTES=site.routes(FENCEGATE_ROUTE))
    return [built(program), "serve", "--config", site.write("fencegate.yaml", config)]


def built(fencegate: Path) -> str:
    if not fencegate.exists():
        raise PeerMissing(f"{fencegate} is not there: build it with `cargo build --release`")
    return str(fencegate)


def installed(program: str) -> str:
    tool = TOOLS / "bin" / program
    path = str(tool) if tool.exists() else find_program(program)
    if path is None:
        raise PeerMissing(f"{program} is not installed: run benches/setup.sh")
    return path


COMMANDS: dict[str, Callable[[Site], list[str]]] = {
    "relay": relay_command,
    "nginx": nginx_command,
    "nginx-lua": nginx_lua_command,
    "haproxy": haproxy_command,
    "nginx-large": nginx_large_command,
    "haproxy-large": haproxy_large_command,
    "envoy": envoy_command,
    "caddy": caddy_command,
    "fencegate": fencegate_command,
    # What `cargo build --release` makes, where that is not what is measured.
    "plain": plain_command,
}


PROGRAMS: dict[str, Callable[[], str]] = {
    "relay": lambda: installed("haproxy"),
    "nginx": lambda: installed("nginx"),
    "nginx-lua": nginx_with_lua,
    "haproxy": lambda: installed("haproxy"),
    "nginx-large": lambda: installed("nginx"),
    "haproxy-large": lambda: installed("haproxy"),
    "envoy": envoy_program,
    "caddy": lambda: installed("caddy"),
}


def versions_of(names: list[str], fencegate: Path, plain: Path) -> tuple[dict[str, str], dict[str, str]]:
    """What the programs of these peers call themselves, and why the others are absent."""
    versions, absent = {}, {}
    own = {"fencegate": fencegate, "plain": plain}
    for name in names:
        try:
            versions[name] = build_of(own[name]) if name in own else version_of(name, PROGRAMS[name]())
        except PeerMissing as missing:
            absent[name] = str(missing)
    return versions, absent


def build_of(fencegate: Path) -> str:
    """Which build it is: its version, where it was made, and its digest."""
    digest = hashlib.sha256(Path(built(fencegate)).read_bytes()).hexdigest()
    place = fencegate.relative_to(REPOSITORY) if fencegate.is_relative_to(REPOSITORY) else fencegate.name
    return f"{first_line_of(str(fencegate), '--version')} ({place}, sha256 {digest[:16]})"


def version_of(name: str, program: str) -> str:
    """What the program calls itself."""
    if name == "caddy":
        return "Caddy " + first_line_of(program, "version").partition(" ")[0]
    line = first_line_of(program, "--version" if name == "envoy" else "-v")
    return "Envoy " + line.split("/")[-4] if name == "envoy" and line.count("/") > 3 else line


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
        super().__init__(name, command, site.core, site.directory / f"{name}.log")

    def wait_until_ready(self) -> None:
        if self.name in ("fencegate", "plain"):
            # Its first start with a route makes the route's namespace durable, one after the other.
            self.wait_for(lambda: "ready" in self.log.read_text(errors="replace"), "the ready line", READY_SECONDS)
        self.wait_for(lambda: accepts_connections(self.port), "the listening socket")


def check_names(names: list[str]) -> None:
    unknown = sorted(set(names) - set(COMMANDS))
    if unknown:
        raise BenchError(f"no such peer: {', '.join(unknown)}; there are {', '.join(COMMANDS)}")
