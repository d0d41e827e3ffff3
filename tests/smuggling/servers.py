"""Starts and stops the programs of these tests, each in a directory of its own on ports that were free."""

from __future__ import annotations

import json
import os
import re
import shutil
import signal
import socket
import subprocess
import sys
import tempfile
import time
from dataclasses import dataclass, field
from pathlib import Path

HERE = Path(__file__).resolve().parent
ROOT = HERE.parent.parent
PACKAGES = ROOT / "target" / "python"
PATIENCE = 10.0


class Missing(Exception):
    """A program that is not installed."""


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return probe.getsockname()[1]


def program(name: str) -> str:
    found = shutil.which(name, path=os.environ.get("PATH", "") + ":/usr/sbin:/sbin")
    if not found:
        raise Missing(f"{name} is not installed: see tests/setup.sh")
    return found


class Server:
    """A process with a directory of its own; leaving the context ends it."""

    def __init__(self, name: str) -> None:
        self.name = name
        self.port = free_port()
        self.dir = Path(tempfile.mkdtemp(prefix=f"fencegate-{name}-"))
        self.processes: list[subprocess.Popen] = []

    def __enter__(self) -> Server:
        try:
            self.start()
            self.wait_for(self.port)
        except BaseException:
            self.__exit__()
            raise
        return self

    def __exit__(self, *_: object) -> None:
        for process in reversed(self.processes):
            process.terminate()
            try:
                process.wait(PATIENCE)
            except subprocess.TimeoutExpired:
                process.kill()
                process.wait()
        shutil.rmtree(self.dir, ignore_errors=True)

    def start(self) -> None:
        raise NotImplementedError

    def spawn(self, command: list[str], **environment: str) -> subprocess.Popen:
        with (self.dir / "stderr").open("ab") as errors:
            process = subprocess.Popen(
                command, cwd=self.dir, env={**os.environ, **environment}, stdin=subprocess.DEVNULL, stdout=errors, stderr=errors
            )
        self.processes.append(process)
        return process

    def wait_for(self, port: int) -> None:
        deadline = time.monotonic() + PATIENCE
        while time.monotonic() < deadline:
            if any(process.poll() is not None for process in self.processes):
                break
            with socket.socket() as probe:
                probe.settimeout(1)
                if probe.connect_ex(("127.0.0.1", port)) == 0:
                    return
            time.sleep(0.02)
        raise RuntimeError(f"{self.name} does not listen: {(self.dir / 'stderr').read_text(errors='replace')[-2000:]}")

    def alive(self) -> bool:
        return all(process.poll() is None for process in self.processes)


class Tail:
    """Reads a file to which another process appends whole lines."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self.at = 0

    def lines(self) -> list[bytes]:
        if not self.path.exists() or self.path.stat().st_size == self.at:
            return []
        with self.path.open("rb") as file:
            file.seek(self.at)
            data = file.read()
        whole = data[: data.rfind(b"\n") + 1]
        self.at += len(whole)
        return whole.splitlines()


@dataclass
class Seen:
    """A request as an upstream parsed it. `lines` is None where the server's log has only some of them."""

    method: str
    target: str
    path: str | None
    host: str
    tokens: list[str]
    probe: str
    length: int
    hash: str
    complete: bool
    lines: list[tuple[str, str]] | None = None
    trailers: list = field(default_factory=list)
    malformed: str = ""


def from_lines(entry: dict) -> Seen:
    if "malformed" in entry:
        return Seen("", "", None, "", [], "", 0, "", False, malformed=f"{entry['malformed']}: {entry['raw']!r}")
    lines = [(name, value) for name, value in entry["lines"]]

    def values(*names: str) -> list[str]:
        return [value for name, value in lines if name.lower() in names]

    return Seen(
        entry["method"], entry["target"], entry["path"], ",".join(values("host")), values("fencing-token", "x-fencing-token"),
        ",".join(values("x-probe")), entry["length"], entry["hash"], entry["complete"], lines, entry["trailers"],
    )  # fmt: skip


class Upstream(Server):
    log_name = "seen"

    def __enter__(self) -> Upstream:
        super().__enter__()
        self.tail = Tail(self.dir / self.log_name)
        return self

    def seen(self) -> list[Seen]:
        return [self.parse(line) for line in self.tail.lines()]

    def parse(self, line: bytes) -> Seen:
        return from_lines(json.loads(line.decode("latin-1")))


class H11(Upstream):
    def start(self) -> None:
        self.spawn([sys.executable, str(HERE / "h11_server.py"), str(self.port), str(self.dir / "seen")], PYTHONPATH=str(PACKAGES))


class Node(Upstream):
    def start(self) -> None:
        self.spawn([program("node"), str(HERE / "node_server.js"), str(self.port), str(self.dir / "seen")])

    def parse(self, line: bytes) -> Seen:
        return from_lines(json.loads(line.decode("utf-8", "surrogateescape")))


class Behind(Upstream):
    """A server that hands requests on to a simple one, so that their bodies are read and hashed."""

    def __enter__(self) -> Upstream:
        self.behind = free_port()
        self.spawn([sys.executable, str(HERE / "h11_server.py"), str(self.behind)], PYTHONPATH=str(PACKAGES))
        self.wait_for(self.behind)
        return super().__enter__()


class Nginx(Behind):
    """As lenient as nginx can be told to be."""

    def start(self) -> None:
        user = "user root;" if os.getuid() == 0 else ""
        fields = {
            "method": "request_method", "target": "request_uri", "path": "uri", "host": "http_host", "token": "http_fencing_token",
            "xtoken": "http_x_fencing_token", "probe": "http_x_probe", "line": "request", "status": "status", "body": "upstream_http_x_body",
        }  # fmt: skip
        form = ",".join(f'"{name}":"${variable}"' for name, variable in fields.items())
        (self.dir / "nginx.conf").write_text(f"""
            daemon off; master_process off; {user} pid {self.dir}/pid; error_log {self.dir}/error.log;
            events {{ worker_connections 256; }}
            http {{
              client_body_temp_path {self.dir}/body; proxy_temp_path {self.dir}/proxy;
              fastcgi_temp_path {self.dir}/f; uwsgi_temp_path {self.dir}/u; scgi_temp_path {self.dir}/s;
              log_format seen escape=json '{{{form}}}';
              keepalive_timeout 60s; keepalive_requests 1000000; lingering_close off;
              underscores_in_headers on; ignore_invalid_headers off;
              client_max_body_size 0; client_body_buffer_size 1m; large_client_header_buffers 8 128k;
              server {{
                listen 127.0.0.1:{self.port}; access_log {self.dir}/seen seen;
                location / {{
                  proxy_pass http://127.0.0.1:{self.behind}; proxy_set_header Host x; proxy_set_header X-Probe "";
                  proxy_pass_request_headers off; proxy_hide_header X-Saw; proxy_hide_header X-Saw-Probe; proxy_hide_header X-Body;
                  add_header X-Saw-Probe $probe always; add_header X-Saw "$request_method $request_uri" always;
                }}
              }}
              map $http_x_probe $probe {{ "" "-"; default $http_x_probe; }}
            }}""")
        self.spawn([program("nginx"), "-p", str(self.dir), "-e", f"{self.dir}/error.log", "-c", f"{self.dir}/nginx.conf"])

    def parse(self, line: bytes) -> Seen:
        entry = json.loads(line.decode("latin-1"))
        length, _, hashed = entry["body"].partition(":")
        status = int(entry["status"])
        if status == 400 and not hashed and not entry["method"]:
            return Seen("", "", None, "", [], "", 0, "", False, malformed=f"400: {entry['line']!r}")
        tokens = [entry[name] for name in ("token", "xtoken") if entry[name]]
        path = entry["path"].encode("latin-1").decode("utf-8", "replace")
        return Seen(entry["method"], entry["target"], path, entry["host"], tokens, entry["probe"], int(length or 0), hashed, status == 200)


class Apache(Behind):
    """As lenient as Apache can be told to be."""

    MODULES = "/usr/lib/apache2/modules"

    def start(self) -> None:
        user = "User nobody\nGroup nogroup" if os.getuid() == 0 else ""
        self.dir.chmod(0o755)
        modules = ["mpm_event", "authz_core", "proxy", "proxy_http", "headers"]
        loads = "\n".join(f"LoadModule {name}_module {self.MODULES}/mod_{name}.so" for name in modules)
        fields = r"%m\t%r\t%U\t%{Host}i\t%{Fencing-Token}i\t%{X-Fencing-Token}i\t%{X-Probe}i\t%>s\t%{X-Body}o"
        (self.dir / "apache.conf").write_text(f"""
            {loads}
            ServerRoot {self.dir}
            ServerName x
            {user}
            PidFile {self.dir}/pid
            Listen 127.0.0.1:{self.port}
            ErrorLog {self.dir}/error.log
            LogFormat "{fields}" seen
            CustomLog {self.dir}/seen seen
            StartServers 1
            ServerLimit 1
            ThreadsPerChild 16
            MaxRequestWorkers 16
            MinSpareThreads 1
            KeepAliveTimeout 60
            MaxKeepAliveRequests 0
            LimitRequestFieldSize 100000
            LimitRequestLine 100000
            LimitRequestFields 200
            HttpProtocolOptions Unsafe LenientMethods Allow0.9
            AllowEncodedSlashes NoDecode
            Header onsuccess unset X-Saw-Probe
            Header onsuccess unset X-Saw
            Header always set X-Saw-Probe "expr=%{{req:X-Probe}}"
            Header always set X-Saw "expr=%{{THE_REQUEST}}"
            <Location "/">
              ProxyPass "http://127.0.0.1:{self.behind}/" nocanon
            </Location>
            """)
        self.spawn([program("apache2"), "-D", "FOREGROUND", "-d", str(self.dir), "-f", f"{self.dir}/apache.conf"])

    def parse(self, line: bytes) -> Seen:
        method, first, path, host, token, xtoken, probe, status, body = [unescape(part) for part in line.split(b"\t")]
        length, _, hashed = body.partition(":")
        words = first.split(" ")
        if status in ("400", "408") and not hashed and len(words) < 2:
            return Seen("", "", None, "", [], "", 0, "", False, malformed=f"{status}: {first!r}")
        tokens = [value for value in (token, xtoken) if value != "-"]
        probe = "" if probe == "-" else probe
        path = path.encode("latin-1").decode("utf-8", "replace")
        return Seen(method, " ".join(words[1:-1]), path, host, tokens, probe, int(length) if length.isdigit() else 0, hashed, status == "200")


def unescape(text: bytes) -> str:
    """What Apache's log escapes."""
    names = {"n": "\n", "t": "\t", "r": "\r", "b": "\b", "f": "\f", "v": "\v"}

    def one(found: re.Match[str]) -> str:
        word = found[1]
        return chr(int(word[1:], 16)) if word[0] == "x" else names.get(word, word)

    return re.sub(r"\\(x[0-9a-f]{2}|.)", one, text.decode("latin-1"))


UPSTREAMS: dict[str, type[Upstream]] = {"nginx": Nginx, "apache": Apache, "node": Node, "h11": H11}


def binary() -> str:
    """The gateway that is tested: FENCEGATE_BIN, or the newest that was built."""
    if named := os.environ.get("FENCEGATE_BIN"):
        return str(Path(named).resolve())
    built = [path for profile in ("debug", "release") if (path := ROOT / "target" / profile / "fencegate").exists()]
    if not built:
        raise Missing("fencegate is not built: cargo build")
    return str(max(built, key=lambda path: path.stat().st_mtime))


class Gateway(Server):
    """fencegate before one upstream, with a strict route, an opaque one, and one that receives bodies first, over the same keys."""

    def __init__(self, upstream: int, **changes: object) -> None:
        super().__init__("gateway")
        self.upstream = upstream
        self.changes = changes

    def start(self) -> None:
        def route(name: str, path: str, /, **fence: str) -> dict:
            fence["key"] = "{path}"
            return {"name": name, "path": path, "namespace": "objects", "upstream": "objects", "fence": fence}

        config = {
            "listeners": [{"address": f"127.0.0.1:{self.port}"}],
            "store": {"path": str(self.dir / "store")},
            "upstreams": {"objects": {"urls": [f"http://127.0.0.1:{self.upstream}"], "settle": "100ms", "timeout": "5s"}},
            "routes": [route("strict", "/{*path}"), route("opaque", "/o/{*path}", path="opaque"), route("spool", "/s/{*path}", body="spool")],
            "limits": {"body": "64MiB"},
            "log": {"format": "json"},
            **self.changes,
        }
        (self.dir / "config.yaml").write_text(json.dumps(config))
        self.spawn([binary(), "serve", "--config", str(self.dir / "config.yaml")])
        self.tail = Tail(self.dir / "stderr")

    def logged(self) -> list[dict]:
        """The access lines since the last call."""
        entries = [json.loads(line) for line in self.tail.lines() if line.startswith(b"{")]
        return [entry for entry in entries if entry.get("target") == "fencegate::access"]

    def terminate(self) -> int:
        self.processes[0].send_signal(signal.SIGTERM)
        return self.processes[0].wait(PATIENCE)


class Proxy(Server):
    """Another proxy before an upstream, as one would set it up."""

    def __init__(self, upstream: int) -> None:
        super().__init__(type(self).__name__.lower())
        self.upstream = upstream


class NginxProxy(Proxy):
    def start(self) -> None:
        user = "user root;" if os.getuid() == 0 else ""
        (self.dir / "nginx.conf").write_text(f"""
            daemon off; master_process off; {user} pid {self.dir}/pid; error_log {self.dir}/error.log;
            events {{ worker_connections 1024; }}
            http {{
              access_log off;
              client_body_temp_path {self.dir}/body; proxy_temp_path {self.dir}/proxy;
              fastcgi_temp_path {self.dir}/f; uwsgi_temp_path {self.dir}/u; scgi_temp_path {self.dir}/s;
              server {{
                listen 127.0.0.1:{self.port};
                location / {{
                  proxy_pass http://127.0.0.1:{self.upstream};
                  proxy_http_version 1.1; proxy_set_header Connection ""; proxy_set_header Host $http_host;
                }}
              }}
            }}""")
        self.spawn([program("nginx"), "-p", str(self.dir), "-e", f"{self.dir}/error.log", "-c", f"{self.dir}/nginx.conf"])


class HaproxyProxy(Proxy):
    def start(self) -> None:
        (self.dir / "haproxy.cfg").write_text(f"""
defaults
    mode http
    timeout connect 5s
    timeout client 30s
    timeout server 30s
    timeout http-request 10s
frontend in
    bind 127.0.0.1:{self.port}
    default_backend out
backend out
    server one 127.0.0.1:{self.upstream}
""")
        self.spawn([program("haproxy"), "-db", "-f", str(self.dir / "haproxy.cfg")])
