"""Features of videos: ``python -m pyseg.extract --videos <...> --backbone <...> --out <folder>``."""

from pyseg.extract.features import extract_features

__all__ = ["extract_features"]
