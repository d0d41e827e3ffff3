"""The lock services that are compared, each so that a lock that it has granted is on the disk."""

from __future__ import annotations

import json
import subprocess
from dataclasses import dataclass
from pathlib import Path
from typing import Callable

from .machine import BenchError, first_line_of, require_program
from .process import PinnedProcess, pinned_command
from .sockets import accepts_connections, free_ports

FENCEGATE_CONFIG = """
listeners:
  - address: 127.0.0.1:GATEWAY
admin:
  address: 127.0.0.1:ADMIN
locks:
  address: 127.0.0.1:PORT
store:
  path: DIRECTORY/marks
upstreams:
  resource:
    urls: ["http://127.0.0.1:RESOURCE"]
    settle: 1s
routes:
  - name: bench
    path: /bench/{id}
    upstream: resource
    fence: { key: "{id}", trust: issued }
  - name: objects
    path: /objects/{id}
    upstream: resource
    fence: { key: "{id}", trust: issued }
log: { access: false }
"""


@dataclass(frozen=True)
class LockSite:
    """Where a service is to run. The resource is what the holders of its locks write to."""

    directory: Path
    port: int
    other_port: int
    admin_port: int
    resource_port: int
    core: int
    fencegate: Path

    @staticmethod
    def make(directory: Path, resource_port: int, core: int, fencegate: Path) -> "LockSite":
        return LockSite(directory, *free_ports(3), resource_port, core, fencegate)


def fencegate_command(site: LockSite) -> list[str]:
    if not site.fencegate.exists():
        raise BenchError(f"{site.fencegate} is not there: cargo build --release")
    config = site.directory / "config.yaml"
    config.write_text(
        FENCEGATE_CONFIG.replace("DIRECTORY", str(site.directory))
        .replace("GATEWAY", str(site.other_port))
        .replace("RESOURCE", str(site.resource_port))
        .replace("ADMIN", str(site.admin_port))
        .replace("PORT", str(site.port))
    )
    return [str(site.fencegate), "serve", "--config", str(config)]


def etcd_command(site: LockSite) -> list[str]:
    """One member, as it comes: it syncs its log before it answers."""
    client, peer = f"http://127.0.0.1:{site.port}", f"http://127.0.0.1:{site.other_port}"
    listen = ["--listen-client-urls", client, "--advertise-client-urls", client, "--listen-peer-urls", peer]
    cluster = ["--initial-advertise-peer-urls", peer, "--initial-cluster", f"default={peer}"]
    data = ["--data-dir", str(site.directory / "data"), "--log-level", "error"]
    return [require_program("etcd"), *data, *listen, *cluster]


def redis_command(site: LockSite) -> list[str]:
    durable = ["--appendonly", "yes", "--appendfsync", "always", "--save", ""]
    where = ["--bind", "127.0.0.1", "--port", str(site.port), "--dir", str(site.directory)]
    return [require_program("redis-server"), *where, *durable, "--daemonize", "no"]


COMMANDS: dict[str, Callable[[LockSite], list[str]]] = {
    "fencegate": fencegate_command,
    "etcd": etcd_command,
    "redis": redis_command,
}


class LockPeer(PinnedProcess):
    """A running lock service."""

    def __init__(self, name: str, site: LockSite):
        self.site = site
        command = COMMANDS[name](site)
        self._program = command[0]
        super().__init__(name, command, site.core, site.directory / f"{name}.log")

    def version(self) -> str:
        return first_line_of(self._program, "--version")

    def wait_until_ready(self) -> None:
        if self.name == "fencegate":
            self.wait_for(lambda: "ready" in self.log.read_text(errors="replace"), "the ready line")
        self.wait_for(lambda: accepts_connections(self.site.port), "the listening socket")


@dataclass(frozen=True)
class LockSample:
    """What one turn gave."""

    pairs_per_second: float
    pair_p50_us: float
    pair_p99_us: float
    acquire_p50_us: float
    acquire_p99_us: float
    cpu_us: float
    core_share: float


def lock_turn(peer: LockPeer, load: Path, core: int, clients: int, seconds: float) -> LockSample:
    """So many clients, each with a lock of its own that it takes and gives back for so long."""
    peer.require_alive()
    address = f"127.0.0.1:{peer.site.port}"
    command = [str(load), peer.name, address, "--clients", str(clients), "--seconds", str(seconds)]
    before = peer.cpu_time()
    done = subprocess.run(
        pinned_command(command, core), capture_output=True, text=True, timeout=seconds + 60, check=False
    )
    if done.returncode != 0:
        raise BenchError(f"the load of {peer.name} failed:\n{done.stderr[-2000:]}")
    spent = (peer.cpu_time() - before).total
    found = json.loads(done.stdout)
    return LockSample(
        found["pairs"] / found["seconds"],
        *(found[name] for name in ("pair_p50_us", "pair_p99_us", "acquire_p50_us", "acquire_p99_us")),
        spent / found["pairs"] * 1e6,
        spent / found["seconds"],
    )
