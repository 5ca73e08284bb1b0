"""``python -m pyseg.reproduce``."""

from pyseg import _cli
from pyseg.reproduce.cli import main

if __name__ == "__main__":
    _cli.run(main)
