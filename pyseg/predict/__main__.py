"""``python -m pyseg.predict``."""

from pyseg import _cli
from pyseg.predict.cli import main

if __name__ == "__main__":
    _cli.run(main)
