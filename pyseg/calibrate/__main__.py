"""``python -m pyseg.calibrate``."""

from pyseg import _cli
from pyseg.calibrate.cli import main

if __name__ == "__main__":
    _cli.run(main)
