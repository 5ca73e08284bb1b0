"""The options of ``python -m pyseg.report``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path

from pyseg import _cli
from pyseg._precision import PrecisionName
from pyseg.data.collection import Part
from pyseg.errors import ArgumentError


@dataclass
class ReportConfig:
    """What to report on, and where to write it.

    Args:
        run: Run folders that `pyseg.train` wrote; the others are compared with the first.
        out: The HTML file; default: report.html in the first run.
        data: Records as a folder, glob, file or URL, or "sample"; default: each run's training
            data.
        labels: Tables of AudioSet's strong labels, file or glob; default: those beside the records,
            or what the run was trained on.
        vocabulary: A vocabulary.csv that names the classes; default: the run's, or the one beside
            the records.
        part: Videos to evaluate on: those that the run held out ("test"), its training
            videos, or all.
        evaluate: Evaluate the models; without it, everything that needs the data is left out.
        videos: Videos whose scores are drawn over time.
        batch_size: Examples scored at once.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.
        precision: Mixed precision: automatic, with "bf16" or "fp16"; "fp32" is none. "int8", on a
            CPU, lets the large layers multiply 8-bit integers, if it is faster with them. The
            default is "bf16" on a GPU and "fp32" on a CPU, whatever the run was trained with.
        tf32: Let a GPU round the inputs of float32 products to TF32; default: unless --precision
            fp32 is given.

    Raises:
        ValueError: A value is out of its range.
    """

    run: list[str]
    out: str | None = None
    data: str | None = None
    labels: str | None = None
    vocabulary: str | None = None
    part: Part = "test"
    evaluate: bool = True
    videos: int = 4
    batch_size: int = 128
    device: str | None = None
    precision: PrecisionName | None = None
    tf32: bool | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        if not self.run:
            raise ArgumentError("run: expected at least one folder, found none")
        if len({Path(run).resolve() for run in self.run}) < len(self.run):
            raise ArgumentError(f"run: expected each folder once, found {', '.join(self.run)}")
        if self.out is not None and not self.out.endswith((".html", ".htm")):
            raise ArgumentError(f"out: expected an .html file, found {self.out}")
        _cli.check_range("videos", self.videos, 0)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)

    @property
    def evaluated_on(self) -> str:
        """A description of the videos that runs are evaluated on."""
        which = {"test": "the held-out videos", "train": "the training videos", "all": "all videos"}
        data = "each run's data" if self.data is None else self.data
        return f"{which[self.part]} of {data}"
