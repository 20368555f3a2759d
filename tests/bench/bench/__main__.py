"""``python -m bench [NAME…] [--short]``: run benchmarks, write their results, print their tables."""

import argparse
import asyncio
import importlib
import sys
from dataclasses import replace
from typing import Final

from bench.options import Options
from bench.report import machine

NAMES = ("events", "guard", "guard-limits", "up")
"""Each is a module beside this one, with _ for -, with ``async def measure(options) -> Report``."""

_INTERRUPTED: Final = 130
"""The exit status of what Ctrl-C has ended, as shells have it."""


def main(arguments: list[str]) -> int:
    """Run what is named, or all; returns the exit status. A goal that is missed is no failure."""
    parser = argparse.ArgumentParser(prog="bench", description=__doc__)
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(NAMES)}; none: all")
    parser.add_argument("--short", action="store_true", help="only show that they work; nothing is written")
    parser.add_argument("--rounds", type=int, default=None, help="of each side; default 5, short 1")
    given = parser.parse_args(arguments)
    if unknown := set(given.names) - set(NAMES):
        parser.error(f"there is no benchmark {', '.join(sorted(unknown))}; there are {', '.join(NAMES)}")
    options = Options(short=given.short, rounds=given.rounds or (1 if given.short else 5))
    for name in given.names or NAMES:
        module = name.replace("-", "_")
        before = machine()  # its load is the benchmark's own afterwards
        try:
            report = asyncio.run(importlib.import_module(f"bench.{module}").measure(options))
        except KeyboardInterrupt:  # every server was ended on the way here
            return _INTERRUPTED
        report = replace(report, machine=before)
        print(report.table())
        if not options.short:
            print(f"written to {report.write()}")
    return 0


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
