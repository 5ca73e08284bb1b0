"""``python -m pyseg.models``."""

from pyseg import _cli
from pyseg.models.table import main

if __name__ == "__main__":
    _cli.run(main)
