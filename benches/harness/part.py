"""One part of the whole benchmark, and the options that all parts share."""

from __future__ import annotations

import argparse
from dataclasses import dataclass
from typing import Callable

from .rounds import Plan
from .stage import Stage

# What a start of all peers takes.
START_SECONDS = 4.0


@dataclass(frozen=True)
class Part:
    """`seconds` tells what `run` will take; `run` prints tables and returns the document that is written as JSON.

    `plots` makes figures of that document, each with the name of its file.
    """

    name: str
    seconds: Callable[[argparse.Namespace], float]
    run: Callable[[argparse.Namespace], dict]
    plots: Callable[[dict], dict[str, str]]


def plan_of(options: argparse.Namespace, stage: Stage) -> Plan:
    return Plan(options.rounds, options.seconds, options.connections, stage.cores)
