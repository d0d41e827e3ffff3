"""Setting up and taking down: a scratch directory, the upstream, the peers, and the options of the command line."""

from __future__ import annotations

import argparse
import os
import resource
import signal
import sys
import tempfile
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Callable, Iterable, Iterator, TypeVar

from .machine import REPOSITORY, BenchError, Cores, filesystem_of
from .peers import COMMANDS, Peer, PeerMissing, Site, check_names
from .process import PinnedProcess
from .sockets import free_ports

OPEN_FILES = 65536
MOST_CONNECTIONS = 10_000
# A proxy has a file open for each client and for each request on its way, and fencegate keeps 1,024 for all else.
SPARE_FILES = 1100
MOST_OF_A_REASON = 300
MEMORY_FILESYSTEMS = ("tmpfs", "ramfs")
RELEASE = REPOSITORY / "target/release/fencegate"


def add_common_options(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--only", metavar="PEERS", help=f"comma-separated, of: {', '.join(COMMANDS)}")
    parser.add_argument("--proxy-core", type=int, metavar="N", help="core of the proxies (default: the first usable)")
    parser.add_argument("--load-core", type=int, metavar="N", help="core of load and upstream (default: the second)")
    parser.add_argument(
        "--scratch",
        type=Path,
        default=Path("/var/tmp"),
        metavar="DIR",
        help="parent of the temporary directory; on a disk, since the marks are synced there (default: %(default)s)",
    )
    parser.add_argument(
        "--fencegate",
        type=Path,
        default=RELEASE,
        metavar="FILE",
        help="the binary to measure, beside which that of a plain release is another peer (default: %(default)s)",
    )


def peers_wanted(options: argparse.Namespace) -> list[str]:
    """Those that are named, or all; a plain release is a peer of its own where another build is measured."""
    if options.only:
        return options.only.split(",")
    return [name for name in COMMANDS if name != "plain" or options.fencegate.resolve() != RELEASE.resolve()]


def add_load_options(parser: argparse.ArgumentParser, rounds: int, seconds: int, connections: int) -> None:
    for name, default, meaning in (
        ("--rounds", rounds, "turns of each peer"),
        ("--seconds", seconds, "length of one turn"),
        ("--connections", connections, "keep-alive connections of the load generator"),
    ):
        parser.add_argument(
            name, type=positive, default=default, metavar="N", help=f"{meaning} (default: %(default)s)"
        )


def positive(text: str) -> int:
    number = int(text)
    if number < 1:
        raise argparse.ArgumentTypeError("must be at least 1")
    return number


Server = TypeVar("Server", bound=PinnedProcess)


class Stage:
    """A `with` block that owns all processes and files of a benchmark; nothing outlives it."""

    def __init__(self, options: argparse.Namespace):
        self.cores = Cores.choose(options.proxy_core, options.load_core)
        self.wanted = peers_wanted(options)
        check_names(self.wanted)
        self.skipped: dict[str, str] = {}
        self.fencegate, self.plain = options.fencegate.resolve(), RELEASE
        self._scratch = options.scratch
        self._stack = ExitStack()

    def __enter__(self) -> "Stage":
        self._stack.callback(os.sched_setaffinity, 0, os.sched_getaffinity(0))
        os.sched_setaffinity(0, {self.cores.load})
        allow_open_files()
        temporary = tempfile.TemporaryDirectory(prefix="fencegate-bench-", dir=self._scratch)
        self.directory = Path(self._stack.enter_context(temporary))
        if filesystem_of(self.directory) in MEMORY_FILESYSTEMS:
            self.close()
            raise BenchError(f"{self._scratch} is in memory; name a directory on a disk with --scratch")
        return self

    def __exit__(self, *_) -> None:
        self.close()

    def close(self) -> None:
        """Stops everything in the reverse order of its start, and removes the files."""
        self._stack.close()

    def start_upstream(self, make: Callable[[Path, int, int], Server]) -> Server:
        upstream = self._stack.enter_context(make(self.directory, free_ports(1)[0], self.cores.load))
        upstream.wait_until_ready()
        return upstream

    def start_peers(self, upstream_port: int, names: Iterable[str] = COMMANDS, large_bodies: bool = False) -> dict[str, Peer]:
        """Every wanted peer of these names that is there and starts; of the others, `skipped` says why not."""
        peers = self._stack.enter_context(self.some_peers(upstream_port, names, large_bodies))
        if not peers and self.skipped:
            raise BenchError("no peer could be started: " + "; ".join(self.skipped.values()))
        return peers

    @contextmanager
    def some_peers(
        self, upstream_port: int, names: Iterable[str], large_bodies: bool = False, more_routes: int = 0
    ) -> Iterator[dict[str, Peer]]:
        """The same, for as long as the `with` block runs."""
        with ExitStack() as stack:
            peers = {}
            for name in [name for name in self.wanted if name in names]:
                directory = Path(tempfile.mkdtemp(prefix=f"{name}-", dir=self.directory))
                where = (self.cores.proxy, self.fencegate, self.plain, large_bodies, more_routes)
                site = Site(directory, *free_ports(3), upstream_port, *where)
                try:
                    peer = stack.enter_context(Peer(name, site))
                    peer.wait_until_ready()
                except (PeerMissing, BenchError) as error:
                    self.skipped[name] = " ".join(str(error).split())[:MOST_OF_A_REASON]
                    continue
                peers[name] = peer
            yield peers


def allow_open_files() -> None:
    """Enough for 10,000 connections on both sides of a proxy, as far as this process may raise it."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    if soft >= OPEN_FILES:
        return
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (OPEN_FILES, max(OPEN_FILES, hard)))
    except (ValueError, OSError):
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(OPEN_FILES, hard), hard))


def most_connections() -> int:
    """10,000, or what the limit of open files lets a proxy have on both sides, beside what it needs for itself."""
    allow_open_files()
    return min(MOST_CONNECTIONS, (resource.getrlimit(resource.RLIMIT_NOFILE)[0] - SPARE_FILES) // 2)


def run_main(main: Callable[[], int]) -> None:
    """Runs a script to its exit code; every way out, SIGTERM and Ctrl-C included, passes the `with` blocks."""

    def leave(number: int, _frame) -> None:
        raise SystemExit(128 + number)

    for number in (signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, leave)
    try:
        sys.exit(main())
    except KeyboardInterrupt:
        sys.exit(130)
    except BenchError as error:
        print(f"error: {error}", file=sys.stderr)
        sys.exit(1)
