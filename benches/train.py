#!/usr/bin/env python3
"""Puts a fencegate that counts what its code does through the requests that it is to be fast at: a part of `make pgo`.

Nothing is measured here. The mix has what production has: HTTP/1.1 and HTTP/2, with and without TLS, fenced and not,
reads and uploads, advances, and requests that are refused.
"""

import argparse
import http.client
import sys

sys.dont_write_bytecode = True

from harness.load import Workload, run_load
from harness.machine import BenchError
from harness.stage import Stage, add_common_options, positive, run_main
from harness.upstream import FILES, LANES, SMALL_BODY, Upstream

SMALL = ("GET", "small", 0, len(SMALL_BODY))
WORKLOADS = (
    Workload("train", "GET", *SMALL),
    Workload("train", "PUT", "PUT", "upload", 64, len(SMALL_BODY)),
    Workload("train", "large GET", "GET", "large", 0, FILES["large"]),
    Workload("train", "large PUT", "PUT", "upload", 64 << 10, len(SMALL_BODY)),
    Workload("train", "HTTP/2", *SMALL, streams=10),
    Workload("train", "HTTP/2 and TLS", *SMALL, tls=True, streams=10),
    Workload("train", "TLS", *SMALL, tls=True),
    Workload("train", "TLS, handshakes", *SMALL, tls=True, fresh=True),
)
CONNECTIONS = 64
ADVANCES = 4000


def advance_and_be_refused(port: int) -> None:
    """Tokens that rise on many keys; old ones, none, and ones that are no token."""
    connection = http.client.HTTPConnection("127.0.0.1", port, timeout=30)
    for number in range(2, ADVANCES):
        for token, status in ((str(number), 200), (str(number - 1), 409), (None, 428), ("x", 400)):
            headers = {} if token is None else {"Fencing-Token": token}
            connection.request("PUT", f"/fenced/upload/{number % 100}", b"x" * 100, headers)
            response = connection.getresponse()
            response.read()
            if response.status != status:
                raise BenchError(f"a PUT with token {token} gave {response.status} and not {status}")
    connection.close()


def parse_options() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__)
    add_common_options(parser)
    parser.add_argument("--seconds", type=positive, default=2, metavar="N", help="length of each load (default: %(default)s)")
    return parser.parse_args()


def main() -> int:
    options = parse_options()
    options.only = "fencegate"
    with Stage(options) as stage:
        upstream = stage.start_upstream(Upstream)
        trainee = stage.start_peers(upstream.port)["fencegate"]
        for workload in WORKLOADS:
            port = trainee.tls_port if workload.tls else trainee.port
            for lane in LANES:
                run_load(workload, port, lane, stage.cores.load, CONNECTIONS, options.seconds)
        advance_and_be_refused(trainee.port)
    return 0


run_main(main)
