"""The options of ``python -m pyseg.calibrate``."""

from __future__ import annotations

from dataclasses import dataclass

from pyseg import _cli
from pyseg._precision import PrecisionName
from pyseg.data.collection import Part
from pyseg.data.records import OnError


@dataclass
class CalibrateConfig:
    """The run, and the ratings to calibrate it by.

    Args:
        run: The run folder that `pyseg.train` wrote.
        data: Records as a folder, glob, file or URL, or "sample"; default: the run's training data.
        labels: Tables of AudioSet's strong labels, file or glob; default: those beside the records,
            or what the run was trained on.
        vocabulary: A vocabulary.csv that names the classes; default: the run's, or the one beside
            the records.
        ratings: The answers of `pyseg.rate`, or a table of ratings with the columns video, start,
            end, class and score; default: the rated segments of the data.
        part: Videos of other data than the run's: those that a run would hold out ("test"), the
            others ("train"), or all.
        batch_size: Segments scored at once.
        on_error: "raise" at a damaged record, or "skip" and report it; default: as the run did.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.
        precision: Mixed precision: automatic, with "bf16" or "fp16"; "fp32" is none. "int8", on a
            CPU, lets the large layers multiply 8-bit integers, if it is faster with them. The
            default is "bf16" on a GPU and "fp32" on a CPU, whatever the run was trained with.
        tf32: Let a GPU round the inputs of float32 products to TF32; default: unless --precision
            fp32 is given.

    Raises:
        ValueError: A value is out of its range.
    """

    run: str
    data: str | None = None
    labels: str | None = None
    vocabulary: str | None = None
    ratings: str | None = None
    part: Part = "test"
    batch_size: int = 512
    on_error: OnError | None = None
    device: str | None = None
    precision: PrecisionName | None = None
    tf32: bool | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
