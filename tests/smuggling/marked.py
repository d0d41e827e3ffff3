"""Writes what a run printed between two marks of docs/SECURITY-TESTS.md."""

from __future__ import annotations

from servers import ROOT

PAGE = ROOT / "docs" / "SECURITY-TESTS.md"


def write(name: str, lines: list[str], command: str) -> None:
    """Puts `lines` between the marks called `name`, which stand in the page already."""
    text = PAGE.read_text()
    start, end = f"<!-- {name}: written by {command} -->\n", f"<!-- end of {name} -->"
    before, found, rest = text.partition(start)
    if not found or end not in rest:
        raise RuntimeError(f"{PAGE} has no marks for {name}")
    PAGE.write_text(before + start + "\n" + "\n".join(lines).strip() + "\n\n" + end + rest.partition(end)[2])
