#!/usr/bin/env python3
"""Lists which test is for which hostile case, from the comments above the tests, and fails where a case has none.

    python3 tests/smuggling/rows.py --write        writes the table into docs/SECURITY-TESTS.md
"""

from __future__ import annotations

import re
import sys

from servers import ROOT

CASES = {
    "T": [
        "no token on a write", "an empty token", "white space around it", "text inside or around it, quotes", "a plus sign", "a minus sign", "zeros in front",
        "exponents, hexadecimal, dots too many", "the largest token", "overflow, thousands of digits", "digits of other scripts", "control characters in it",
        "the same on two lines", "two that differ", "a comma list", "a folded line", "another case of the name", "names with `_` or `.` for `-`",
        "white space before the colon", "`Connection` that names the token's header", "`Connection` that names other guarded headers", "a token in trailers",
        "HTTP/2: duplicates, also over CONTINUATION", "HTTP/2: an upper-case name", "the gateway's own headers, from a client", "an empty field name", "a huge field name",
    ],
    "K": [
        "dot segments in every spelling", "empty segments", "escaped slashes, backslashes", "escapes that need not be", "double escapes", "malformed escapes",
        "overlong UTF-8, 8-bit bytes", "escaped NUL and line ends", "raw characters that must be escaped", "parameters", "case, one trailing slash", "a fragment",
        "parameters of the query: order, duplicates", "an absolute target for another host", "Host missing, twice, a list, user info", "case, port and dot of the host",
        "HTTP/2: :authority and host differ", "CONNECT, `*`, TRACE", "method overrides", "unknown methods", "a body on a read", "COPY and MOVE", "S3 copy sources",
        "bulk operations", "X-Original-URL and its kin", "a key above 1 KiB",
    ],
    "S": [
        "Content-Length beside Transfer-Encoding", "a disguised Transfer-Encoding", "other codings", "two Content-Lengths", "a Content-Length that is no number",
        "Transfer-Encoding on HTTP/1.0", "a chunk size that is no number, or overflows", "control characters in chunk extensions", "huge chunk extensions", "a bare CR",
        "chunk data longer than its size", "an unread body behind a refusal", "Expect with a stale token", "Expect, answered early", "an unknown expectation",
        "bytes before the 101", "an upgrade answered 200", "an upgrade to h2c", "HTTP/2: content-length too long or short", "HTTP/2: Transfer-Encoding, Connection",
        "HTTP/2: control characters in names, values, :path", "a request behind the last one", "pipelined requests", "extra bytes, two answers, an unasked 101 from the upstream",
    ],
    "R": [
        "slow headers", "a slow body", "a slow reader", "huge headers, too many, a long target", "HTTP/2: rapid reset", "HTTP/2: made you reset", "HTTP/2: CONTINUATION flood",
        "HTTP/2: empty DATA", "HTTP/2: PING, SETTINGS, WINDOW_UPDATE floods", "HTTP/2: HPACK bomb", "a compressed body", "floods of connections and handshakes, no descriptors",
        "a flood of keys with bad or refused tokens", "a flood of keys with good tokens", "a silent upstream", "an upstream that resets within the body", "an upstream that answers early",
        "a client that leaves within its upload", "a client that leaves between sync and forward", "bodies of 1 GiB",
    ],
    "C": [
        "a newer token while an older one uploads", "a newer token while an older one waits for a connection", "two newer tokens race", "many advances share a sync",
        "a stopped process that goes on", "TLS early data", "a crash while draining", "a stop that cuts a write", "a cut with bytes in the send buffer", "an early answer within an upload",
        "a balancer's 504", "an upgrade without a token", "a reload that changes keys", "a read of a mark that comes late", "a full disk with room again", "a reset with a write in flight",
        "one request with two locks",
    ],
}  # fmt: skip
TAGS = re.compile(r"^\s*///? ((?:[TKSRCDA]\d+(?:,? | to )?)+)$")
TEST = re.compile(r"^\s*(?:async )?fn (\w+)\(")


def tests() -> dict[str, list[str]]:
    """The tests of each case: those that a comment with its name stands above, over real sockets first."""
    found: dict[str, list[str]] = {}
    files = [*(ROOT / "tests").glob("*.rs"), *(ROOT / "tests" / "suite").glob("*.rs"), *(ROOT / "tests" / "library").glob("*.rs")]
    files.sort(key=lambda file: (file.stem.startswith(("wire", "http2")), file.stem))
    for file in files:
        tags: list[str] = []
        for line in file.read_text().splitlines():
            if match := TAGS.match(line):
                tags = named(match[1])
            elif match := TEST.match(line):
                for tag in tags:
                    found.setdefault(tag, []).append(f"`{file.stem}::{match[1]}`")
                tags = []
    return found


def named(text: str) -> list[str]:
    """The cases of a comment such as `S21, K7 to K9`."""
    tags: list[str] = []
    for word in re.findall(r"[A-Z]\d+|to", text):
        if tags and tags[-1] == "to":
            first, last = int(tags[-2][1:]) + 1, int(word[1:])
            tags[-1:] = [f"{word[0]}{number}" for number in range(first, last + 1)]
        else:
            tags.append(word)
    return tags


def main() -> int:
    found = tests()
    lines = ["| | case | tests |", "| --- | --- | --- |"]
    missing = []
    for group, cases in CASES.items():
        for number, case in enumerate(cases, 1):
            row = f"{group}{number}"
            named = found.get(row, [])
            if not named:
                missing.append(f"{row} ({case})")
            more = f" and {len(named) - 2} more" if len(named) > 2 else ""
            lines.append(f"| {row} | {case} | {', '.join(named[:2])}{more} |")
    if "--write" in sys.argv:
        import marked

        marked.write("rows", lines, "python3 tests/smuggling/rows.py --write")
    for one in missing:
        print(f"no test for {one}")
    print(f"{sum(map(len, CASES.values())) - len(missing)} passed, {len(missing)} failed")
    return 1 if missing else 0


if __name__ == "__main__":
    sys.exit(main())
