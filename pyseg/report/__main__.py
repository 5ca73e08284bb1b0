"""``python -m pyseg.report``."""

from pyseg import _cli
from pyseg.report.cli import main

if __name__ == "__main__":
    _cli.run(main)
