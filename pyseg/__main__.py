"""``pyseg COMMAND ...``, or ``python -m pyseg COMMAND ...``: the entry point of all commands."""

from __future__ import annotations

import argparse
import importlib
import os
import sys
from collections.abc import Sequence
from pathlib import Path

from pyseg import __version__, _cli
from pyseg._registry import unknown
from pyseg.errors import UserError

COMMANDS = {
    "extract": "compute features of videos with any network",
    "train": "train a model on video labels and rated segments",
    "evaluate": "measure a run or a submission",
    "predict": "score every segment of every video, or draw one video over time",
    "rate": "ask on a web page what segments show, and learn from the answers",
    "calibrate": "make probabilities of scores that mean what they say",
    "export": "write a model as one file that runs without pyseg",
    "report": "draw runs on an HTML page",
    "cooccur": "count which labels occur together",
    "reproduce": "run the paper's experiments",
    "models": "list the models and what they cost",
    "data": "import features and ratings, or download YouTube-8M",
    "info": "print what pyseg runs with, and why something is missing",
}


def main(argv: Sequence[str] | None = None) -> None:
    """Runs the command named by the first word of ``argv`` (default: the process's)."""
    words = list(sys.argv[1:] if argv is None else argv)
    if "_ARGCOMPLETE" in os.environ:
        words = _completed_words()
    program = "pyseg" if Path(sys.argv[0]).name == "pyseg" else "python -m pyseg"
    if not words or words[0] in ("-h", "--help", "help"):
        print(f"usage: {program} COMMAND [--option VALUE ...]\n")
        print("Finds when something happens in a video.\n")
        for name, text in COMMANDS.items():
            print(f"  {name:<10} {text}")
        print(f"\n`{program} COMMAND --help` explains a command.")
        return
    if words[0] == "--version":
        print(f"pyseg {__version__}")
        return
    command = words.pop(0)
    if command not in COMMANDS:
        raise UserError(f"{command}: {unknown('command', command, COMMANDS)}")
    sys.argv = [f"{program} {command}", *words]
    module = importlib.import_module(f"pyseg.{command}")
    if not hasattr(module, "main"):  # a package with its command in a module
        module = importlib.import_module(f"pyseg.{command}.__main__")
    module.main()


def _completed_words() -> list[str]:
    """Returns the command of a line that argcomplete completes: its parser knows the options.

    A command that is not complete itself is completed here.
    """
    line = os.environ["COMP_LINE"]
    words = line.split()[1:]
    if words[:1] and (len(words) > 1 or line.endswith(" ")):
        os.environ["_ARGCOMPLETE"] = "2"  # the words to complete come after the command
        return words[:1]
    import argcomplete

    parser = argparse.ArgumentParser()
    parser.add_argument("command", choices=COMMANDS)
    argcomplete.autocomplete(parser)  # ends the process
    raise AssertionError("unreachable")


def console() -> None:
    """Runs the console script ``pyseg``."""
    _cli.run(main)


if __name__ == "__main__":
    console()
