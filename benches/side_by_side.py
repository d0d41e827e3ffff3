#!/usr/bin/env python3
"""What a request costs through fencegate, nginx, HAProxy and a raw TCP relay, side by side on pinned cores.

The method, and how to read the tables, stand in benches/README.md.
"""

import sys

sys.dont_write_bytecode = True

from harness.load import Workload
from harness.suite import run_comparison
from harness.upstream import SMALL_BODY

WORKLOADS = (
    Workload(f"GET, {len(SMALL_BODY)}-byte response", "GET", "small", 0, len(SMALL_BODY)),
    Workload("PUT, 64-byte body", "PUT", "upload", 64, len(SMALL_BODY)),
)

run_comparison(__doc__, "A request, side by side", WORKLOADS, rounds=7, seconds=4)
