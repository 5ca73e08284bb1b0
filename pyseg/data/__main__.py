"""Commands that fetch and import data: ``python -m pyseg.data import ...``."""

from __future__ import annotations

import argparse
from collections.abc import Sequence

from pyseg import _cli
from pyseg.data import download, importing

_COMMANDS = {
    "download": (download.main, "fetch YouTube-8M's shards"),
    "import": (
        importing.main,
        "features of files or of a collection, with ratings, to a collection",
    ),
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command named by the first word of ``argv`` (default: the process's)."""
    parser = argparse.ArgumentParser(
        prog=_cli.program("pyseg.data"),
        description="Fetches or imports data. `python -m pyseg.data import --help` lists the "
        "options of a command.",
    )
    does = "; ".join(f"{name}: {text}" for name, (_, text) in _COMMANDS.items())
    parser.add_argument("command", choices=_COMMANDS, help=does)
    parser.add_argument("options", nargs=argparse.REMAINDER, help="of the command")
    given = parser.parse_args(argv)
    command, _ = _COMMANDS[given.command]
    command(given.options)


if __name__ == "__main__":
    _cli.run(main)
