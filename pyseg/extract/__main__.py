"""``python -m pyseg.extract``."""

from pyseg import _cli
from pyseg.extract.cli import main

if __name__ == "__main__":
    _cli.run(main)
