"""The files of exported presets: their size, how far they are from the model, and their speed.

    python benchmarks/measure_export.py

Each preset, with the sizes that it has by default, is saved with random weights as a run on
YouTube-8M's features, and exported by `pyseg.export` in every format. The time is the one that the
command prints, of a batch of 64 segments of 5 frames; beside it its ratio to that of the model.
"""

from __future__ import annotations

import argparse
import tempfile
import time
from pathlib import Path
from typing import get_args

import torch

from pyseg import models
from pyseg._table import Table
from pyseg.data import FeatureSet
from pyseg.export import ExportConfig, export
from pyseg.export.config import FormatName

YOUTUBE8M = FeatureSet((("rgb", 1024), ("audio", 128)))


def main() -> None:
    """Prints a table with a row for each preset and format."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--presets", nargs="+", default=models.names())
    parser.add_argument("--formats", nargs="+", default=get_args(FormatName))
    parser.add_argument("--classes", type=int, default=1000)
    args = parser.parse_args()
    rows = []
    for preset in args.presets:
        with tempfile.TemporaryDirectory() as folder:
            torch.manual_seed(0)
            model = models.create(preset, num_classes=args.classes)
            models.save(model, folder)
            YOUTUBE8M.write(Path(folder, "features.json"))
            for format in args.formats:
                start = time.perf_counter()
                found = export(ExportConfig(folder, format))
                rows.append(
                    (
                        preset,
                        format,
                        f"{found.megabytes:.1f}",
                        f"{found.difference:.1e}",
                        f"{1e3 * found.seconds:.1f}",
                        f"{found.seconds / found.model_seconds:.2f}",
                        f"{time.perf_counter() - start:.0f}",
                    )
                )
                Path(ExportConfig(folder, format).file).unlink()
    head = (
        "preset",
        "format",
        "MB",
        "largest difference",
        "ms",
        "of the model's time",
        "s to export",
    )
    print(f"{args.classes} classes, {torch.get_num_threads()} threads, torch {torch.__version__}")
    print(Table(head, rows, numeric=range(2, len(head))).markdown())


if __name__ == "__main__":
    main()
