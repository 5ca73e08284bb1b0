"""Features of videos: ``python -m pyseg.extract --videos <...> --backbone <...> --out <folder>``.

The folder becomes a collection: records, ``features.json`` and, where there are ratings or labels,
their classes. ``manifest.jsonl`` says what became of every video. A video that cannot be read is
skipped. The features of every finished video wait in ``parts``, so that the same command continues
after an interruption, and computes only what is missing.
"""

from pyseg.extract.cli import main
from pyseg.extract.config import ExtractConfig
from pyseg.extract.extraction import Extraction, extract
from pyseg.extract.features import extract_features

__all__ = ["ExtractConfig", "Extraction", "extract", "extract_features", "main"]
