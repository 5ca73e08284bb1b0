"""``python -m pyseg.train``."""

from pyseg import _cli
from pyseg.train import main

if __name__ == "__main__":
    _cli.run(main)
