"""Commands that fetch data: ``python -m pyseg.data download ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pyseg import _cli
from pyseg.data import download

_COMMANDS = {"download": download.main}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command named by the first word of ``argv`` (default: the process's)."""
    parser = argparse.ArgumentParser(
        prog=_cli.program("pyseg.data"),
        description="Fetches data. `python -m pyseg.data download --help` lists the options.",
    )
    parser.add_argument("command", choices=_COMMANDS, help="download: YouTube-8M's shards")
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the command")
    given = parser.parse_args(argv)
    _COMMANDS[given.command](given.options)


if __name__ == "__main__":
    _cli.run(main)
