"""``python -m pyseg.evaluate``."""

from pyseg import _cli
from pyseg.evaluate import main

if __name__ == "__main__":
    _cli.run(main)
