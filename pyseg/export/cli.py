"""The command ``python -m pyseg.export``."""

from __future__ import annotations

import shutil
import tempfile
import time
import warnings
from collections.abc import Sequence
from pathlib import Path
from typing import NamedTuple

import torch

from pyseg import _cli
from pyseg._containers import text_error
from pyseg._files import atomic_write
from pyseg.errors import UserError
from pyseg.export.config import ExportConfig
from pyseg.export.formats import FORMATS, Runner
from pyseg.export.program import Source
from pyseg.runs import Run

LARGEST_DIFFERENCE = 1e-4
"""By how much a probability of a file may differ from that of the model."""

_TIMED = 64  # segments in the batch that is timed
_REPEATS, _SECONDS = 7, 0.1  # at least


class Comparison(NamedTuple):
    """A file compared with the model that it was made of.

    Attributes:
        difference: The largest difference of a probability.
        seconds: The shortest time of the file for a batch of 64 segments.
        model_seconds: That of the model for the same batch.
        megabytes: The size of the file.
    """

    difference: float
    seconds: float
    model_seconds: float
    megabytes: float

    def __str__(self) -> str:
        """Returns one line."""
        return (
            f"{self.megabytes:.1f} MB; probabilities differ from the model's by at most "
            f"{self.difference:.1e}; a batch of {_TIMED} segments takes {1e3 * self.seconds:.1f} "
            f"ms, the model {1e3 * self.model_seconds:.1f} ms"
        )


def export(config: ExportConfig) -> Comparison:
    """Writes a run's model to one file, compares both, and prints the comparison.

    Raises:
        pyseg.errors.UserError: The folder is not a run, its model cannot be exported, the file
            differs from it, or a package or a compiler is missing.
        pyseg.errors.DataError: A file of the run is damaged.
        OSError: The file cannot be written.
    """
    _cli.check_out("out", config.out)
    format = FORMATS[config.format]
    format.check()
    run = Run(config.run)
    source = Source.of_run(run, calibrate=config.calibrate)
    run.warn_unfinished()
    program = source.trace()
    with tempfile.TemporaryDirectory() as folder, warnings.catch_warnings():
        warnings.simplefilter("ignore")  # of torch about its own parts
        path = Path(folder, config.file.name)
        try:
            format.write(program, path, source.metadata)
            found = compare(source, format.open(path), path)
        except UserError:
            raise
        except Exception as error:  # torch's exporters raise errors of many kinds
            raise UserError(
                f"--format {config.format}: expected a model that torch {torch.__version__} can "
                f"export, found: {text_error(error)}"
            ) from error
        if not found.difference <= LARGEST_DIFFERENCE:
            raise UserError(
                f"--run {source.name}: expected probabilities within {LARGEST_DIFFERENCE:g} of the "
                f"model's, found a difference of {found.difference:.2g}; nothing was written"
            )
        with atomic_write(config.file) as file, path.open("rb") as written:
            shutil.copyfileobj(written, file)
    print(f"{config.file}: {found}")
    return found


@torch.no_grad()
def compare(source: Source, run: Runner, path: Path) -> Comparison:
    """Compares a file with the model that it was made of, for batches of several shapes.

    Args:
        source: The model.
        run: Runs the file.
        path: The file.
    """
    size = source.features.segment_size
    differences = []
    for shape in ((1, 1), (1, size), (3, 2 * size + 1), (_TIMED, size)):
        batch = source.batch(*shape)
        differences.append((run(*batch) - source.module(*batch)).abs().max())
    batch = source.batch(_TIMED, size)
    runners: tuple[Runner, Runner] = (run, source.module)
    times: tuple[list[float], list[float]] = ([], [])
    while len(times[0]) < _REPEATS or sum(map(sum, times)) < _SECONDS:
        for each, runner in zip(times, runners, strict=True):
            start = time.perf_counter()
            runner(*batch)
            each.append(time.perf_counter() - start)
    seconds, model_seconds = map(min, times)  # what other programs delayed least
    return Comparison(
        float(torch.stack(differences).max()), seconds, model_seconds, path.stat().st_size / 1e6
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.export``."""
    parser = _cli.make_parser(
        ExportConfig,
        "pyseg.export",
        "Writes a run's model as one file that needs no pyseg to run.",
    )
    export(_cli.parse(parser, ExportConfig, argv))
