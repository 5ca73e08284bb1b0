"""``python -m pyseg.rate``."""

from pyseg import _cli
from pyseg.rate.cli import main

if __name__ == "__main__":
    _cli.run(main)
