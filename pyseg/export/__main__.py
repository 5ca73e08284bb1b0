"""``python -m pyseg.export``."""

from pyseg import _cli
from pyseg.export.cli import main

if __name__ == "__main__":
    _cli.run(main)
