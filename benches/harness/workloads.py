"""The kinds of request that are compared, in the order of the tables."""

from __future__ import annotations

from .load import Workload
from .machine import BenchError
from .upstream import BLOB_BYTES, FILES, KIBIBYTE, SMALL_BODY

ANSWER = len(SMALL_BODY)
SMALL = ("GET", "small", 0, ANSWER)
WITH_MARKS = ("nginx", "nginx-lua", "fencegate")

WORKLOADS = (
    Workload("get", f"GET, {ANSWER}-byte response, one hot key", *SMALL),
    Workload("put", "PUT, 64-byte body, one hot key", "PUT", "upload", 64, ANSWER),
    Workload("keys", "GET over 100,000 keys", *SMALL, keys=100_000, peers=WITH_MARKS),
    Workload(
        "advance", "PUT, each request an advance, 1,000 keys", "PUT", "upload", 64, ANSWER,
        keys=1000, rise_every=1, peers=WITH_MARKS,
    ),
    Workload("get-16k", "GET, 16 KiB response", "GET", "16k", 0, FILES["16k"]),
    Workload("get-1m", "GET, 1 MiB response", "GET", "large", 0, FILES["large"], large=True),
    Workload("put-64k", "PUT, 64 KiB body", "PUT", "upload", 64 * KIBIBYTE, ANSWER, large=True),
    Workload("put-16m", "PUT, 16 MiB body, 8 connections", "PUT", "blob", BLOB_BYTES, ANSWER, connections=8, large=True),
    Workload("tls", "GET by TLS, connections that stay", *SMALL, tls=True),
    Workload("tls-full", "GET by TLS, a connection and a full handshake each", *SMALL, tls=True, fresh=True),
    Workload("tls-resumed", "GET by TLS, a connection and a resumed handshake each", *SMALL, tls=True, resumed=True),
    Workload("h2-1", "GET by HTTP/2 and TLS, one stream at once", *SMALL, tls=True, streams=1),
    Workload("h2-100", "GET by HTTP/2 and TLS, 100 streams at once", *SMALL, tls=True, streams=100),
    Workload("fresh", "GET, a connection for each request", *SMALL, fresh=True),
)


def chosen(names: str | None) -> list[Workload]:
    """Those of a comma-separated list, in the order of the tables; all without one."""
    if not names:
        return list(WORKLOADS)
    wanted = names.split(",")
    known = [workload.name for workload in WORKLOADS]
    if unknown := sorted(set(wanted) - set(known)):
        raise BenchError(f"no such workload: {', '.join(unknown)}; there are {', '.join(known)}")
    return [workload for workload in WORKLOADS if workload.name in wanted]
