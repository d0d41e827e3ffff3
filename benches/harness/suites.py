"""What a TLS server and the load settle on, told by OpenSSL, which the loads are built on as well."""

from __future__ import annotations

import re
import subprocess

from .machine import BenchError, require_program

TIMEOUT_SECONDS = 10
# What s_client prints of a connection, in the order in which it is told here.
LINES = (r"^Protocol version: (.+)$", r"^Ciphersuite: (.+)$", r"^(?:Server|Peer) Temp Key: ([^,\n]+)", r"^Signature type: (.+)$")


def negotiated(port: int) -> str:
    """Version, cipher, group and signature of one handshake."""
    command = [require_program("openssl"), "s_client", "-brief", "-connect", f"127.0.0.1:{port}"]
    done = subprocess.run(command, stdin=subprocess.DEVNULL, capture_output=True, text=True, timeout=TIMEOUT_SECONDS, check=False)
    told = done.stdout + done.stderr
    found = [match.group(1).strip() for line in LINES if (match := re.search(line, told, re.MULTILINE))]
    if len(found) != len(LINES):
        raise BenchError(f"openssl s_client could not settle on a cipher: {told[:300]!r}")
    return " ".join(found)


class Suites(dict[str, str]):
    """By peer. Peers that settle on other ones do other work."""

    def notes(self) -> list[str]:
        each = sorted(set(self.values()))
        if len(each) < 2:
            return [f"All settled on {suite}." for suite in each]
        return ["OTHER CIPHERS: " + "; ".join(f"{peer}: {suite}" for peer, suite in self.items()) + "."]
