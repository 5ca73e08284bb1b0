"""A run's model as a program of `torch.export`: frames and their number in, probabilities out."""

from __future__ import annotations

import json
import warnings
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

import torch
from torch import Tensor, nn

from pyseg._containers import text_error
from pyseg.calibration import Calibration
from pyseg.data import FeatureSet
from pyseg.data.features import FILE as FEATURES_FILE
from pyseg.errors import UserError
from pyseg.nn import FrameClassifier
from pyseg.ops._dispatch import plain_operators
from pyseg.predict.classes import probabilities, scored_classes
from pyseg.runs import Run

if TYPE_CHECKING:
    from torch.export import ExportedProgram

CLASSES_FILE = "class_names.json"
"""The key of the class names, a JSON list, in what an exported file says about itself."""

INPUTS = ("frames", "num_frames")
"""The names of the inputs."""

OUTPUT = "probabilities"
"""The name of the output."""


class Probabilities(nn.Module):
    """A classifier whose results are probabilities.

    Args:
        model: The classifier, in eval mode.
        calibration: What makes probabilities of its logits; None: the sigmoid.
        columns: The C of its classes to return, by their columns.
    """

    def __init__(
        self, model: FrameClassifier, calibration: Calibration | None, columns: Sequence[int]
    ) -> None:
        super().__init__()
        self.model, self.calibration = model, calibration
        chosen = None if list(columns) == list(range(model.num_classes)) else torch.tensor(columns)
        self.columns: Tensor | None
        self.register_buffer("columns", chosen)

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Returns the probabilities (B, C) of padded frames (B, T, N); see `FrameClassifier`."""
        found = probabilities(self.model(frames, num_frames).float(), self.calibration)
        return found if self.columns is None else found[:, self.columns]


@dataclass(frozen=True)
class Source:
    """What is exported of a run.

    Attributes:
        name: The run, for messages.
        module: The model, which makes probabilities.
        features: The features of the frames that it takes.
        dtype: The dtype of frames: uint8, or float32 of a run that was trained on mean features.
        metadata: The texts that go into the file, by name.
    """

    name: str
    module: Probabilities
    features: FeatureSet
    dtype: torch.dtype
    metadata: Mapping[str, str]

    @staticmethod
    def of_run(run: Run, *, calibrate: bool) -> Source:
        """Reads a run.

        Args:
            run: The run.
            calibrate: Whether its calibration is a part of the model.

        Raises:
            pyseg.errors.UserError: The folder is not a run.
            pyseg.errors.DataError: A file is damaged.
        """
        model: Any = run.model()
        classes = scored_classes(run, model)
        calibration = run.calibration(model.num_classes) if calibrate else None
        module = Probabilities(model.float(), calibration, classes.columns())
        return Source(
            name=str(run),
            module=module.eval().requires_grad_(False),
            features=run.features(),
            dtype=torch.float32 if model.config.level == "video" else torch.uint8,
            metadata={
                CLASSES_FILE: json.dumps(classes.names()),
                FEATURES_FILE: run.features_file.read_text(encoding="utf-8"),
            },
        )

    def batch(self, batch: int, length: int) -> tuple[Tensor, Tensor]:
        """Returns random frames (B, T, N) and their numbers (B,), the same in every call."""
        generator = torch.Generator().manual_seed(0)
        shape = batch, length, sum(self.features.feature_sizes)
        frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
        num_frames = torch.randint(1, length + 1, (batch,), generator=generator)
        if self.dtype == torch.uint8:
            return frames, num_frames
        return torch.from_numpy(self.features.dequantize(frames.numpy())), num_frames

    def trace(self) -> ExportedProgram:
        """Returns the program, of PyTorch's own operators only, for any batch and length.

        Raises:
            pyseg.errors.UserError: The model does what cannot be traced.
        """
        from torch._higher_order_ops import scan  # noqa: F401 - the loop of a GRU
        from torch.export import Dim, export

        batch = Dim("batch", min=1)
        shapes = {INPUTS[0]: {0: batch, 1: Dim("frames", min=1)}, INPUTS[1]: {0: batch}}
        try:
            with torch.no_grad(), plain_operators(), warnings.catch_warnings():
                warnings.simplefilter("ignore")  # of torch about its own parts
                return export(self.module, self.batch(2, 3), dynamic_shapes=shapes)
        except Exception as error:  # whatever the model of a plugin and the tracer raise
            raise UserError(
                f"--run {self.name}: expected a model that torch.export can trace for batches and "
                f"videos of any size, found: {text_error(error)}"
            ) from error
