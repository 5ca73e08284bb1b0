"""The options of ``python -m pyseg.export``."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pyseg.errors import ArgumentError

FormatName = Literal["pt2", "aoti", "onnx"]
"""The kinds of files that can be written."""

_FILES: dict[FormatName, str] = {
    "pt2": "model.pt2",
    "aoti": "model-aoti.pt2",
    "onnx": "model.onnx",
}


@dataclass
class ExportConfig:
    """The run, and the file that its model becomes.

    Args:
        run: The run folder that `pyseg.train` wrote.
        format: The kind of file: a program of torch.export ("pt2"), the same compiled for this
            processor by AOTInductor ("aoti"), or "onnx".
        out: The file, which is replaced; default: model.pt2, model-aoti.pt2 or model.onnx in the
            run's folder.
        calibrate: Use the run's calibration, if `pyseg.calibrate` wrote one.

    Raises:
        ValueError: The file has another suffix than the format.
    """

    run: str
    format: FormatName
    out: str | None = None
    calibrate: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        suffix = Path(_FILES[self.format]).suffix
        if self.out is not None and not self.out.endswith(suffix):
            raise ArgumentError(
                f"out: expected a {suffix} file with the format {self.format}, found {self.out}"
            )

    @property
    def file(self) -> Path:
        """The file to write."""
        return Path(self.run, _FILES[self.format]) if self.out is None else Path(self.out)
