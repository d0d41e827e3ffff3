#!/usr/bin/env python3
"""What TLS and HTTP/2 cost through fencegate, nginx and HAProxy: requests on connections that stay, and handshakes.

The method, and how to read the tables, stand in benches/README.md.
"""

import sys

sys.dont_write_bytecode = True

from harness.load import Workload
from harness.suite import run_comparison
from harness.upstream import SMALL_BODY

SMALL = ("GET", "small", 0, len(SMALL_BODY))
WORKLOADS = (
    Workload("GET by TLS, connections that stay", *SMALL, tls=True),
    Workload("GET by TLS, a connection and a full handshake each", *SMALL, tls=True, fresh=True),
    Workload("GET by HTTP/2 and TLS, one stream at once", *SMALL, tls=True, streams=1),
    Workload("GET by HTTP/2 and TLS, 100 streams at once", *SMALL, tls=True, streams=100),
)

run_comparison(__doc__, "TLS and HTTP/2, side by side", WORKLOADS, rounds=5, seconds=4)
