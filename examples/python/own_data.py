"""Adds your own data to pyseg: records with other features, a loss and a metric.

    cd examples/python
    python -m pyseg.train --plugin own_data --data ticks --model mlp --finetune.loss focal
    python -m pyseg.predict --plugin own_data --run runs/ticks-mlp-1

``--plugin`` imports this module first. An installed package can declare its module as an entry
point "pyseg.plugins" instead, and needs no option. As a script this module trains and predicts in a
temporary folder:

    python examples/python/own_data.py
"""

from __future__ import annotations

import tempfile
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg import evaluate, predict, train
from pyseg.data import (
    Batch,
    FeatureSet,
    Format,
    Ratings,
    encode_frames,
    open_records,
    register_format,
    register_source,
    write_records,
)
from pyseg.evaluate import register_metric
from pyseg.training import register_loss

CLASSES = ("tick", "tock", "silence")

# Two frames per second, so that a segment of five seconds has ten. The records contain labels and
# ratings, and vocabulary.csv names the classes: `open_records` opens such records.
TICKS = FeatureSet((("ticks", 12),), frame_seconds=0.5, segment_size=10)
register_format(Format("ticks", "clocks (ticks)", TICKS, open_records))


def make_ticks(folder: Path = Path("clocks")) -> Path:
    """Writes a small collection at the first use of ``--data ticks``; returns its folder."""
    if folder.is_dir():
        return folder
    folder.mkdir()
    rows = "".join(f"{number},{name}\n" for number, name in enumerate(CLASSES))
    (folder / "vocabulary.csv").write_text(f"Index,Name\n{rows}")
    dice = np.random.default_rng(0)
    for shard in range(4):
        records = []
        for video in range(50):
            present = dice.integers(len(CLASSES), size=6)  # one per segment
            frames = dice.integers(96, 160, size=(60, 12), dtype=np.uint8)
            frames[np.arange(60), np.repeat(present, 10)] += 48
            rated = dice.integers(len(CLASSES), size=6)  # one rating per segment
            ratings = Ratings(np.arange(0, 60, 10), rated, np.float32(rated == present))
            labels = np.unique(present)
            records.append(
                encode_frames(f"{shard}{video:02d}", frames, labels, ratings, TICKS.schema)
            )
        write_records(folder / f"clocks{shard:04d}.tfrecord", records)
    return folder


register_source("ticks", make_ticks)


@register_loss("focal")
class FocalLoss(nn.Module):
    """Cross-entropy of the rated classes, with larger weights for hard ones (Lin et al., 2017).

    Args:
        gamma: 0 is plain cross-entropy; ``--finetune.loss_overrides.gamma`` sets it.

    Example:
        >>> loss = FocalLoss(gamma=0.0)
        >>> logits, score = torch.zeros(1, 3), torch.ones(1)
        >>> round(float(loss(logits, torch.tensor([0, 1]), torch.tensor([2]), score)), 4)
        0.6931
    """

    def __init__(self, *, gamma: float = 2.0) -> None:
        super().__init__()
        self.gamma = gamma

    def forward(self, logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor) -> Tensor:
        """Returns the loss of (B, C) logits; the ratings are those of a `pyseg.data.Batch`."""
        rows = torch.repeat_interleave(offsets.diff())
        rated = logits[rows, classes]
        plain = functional.binary_cross_entropy_with_logits(rated, scores, reduction="none")
        return ((1 - (-plain).exp()) ** self.gamma * plain).sum() / len(logits)


@register_metric("accuracy", on="ratings")
class Accuracy:
    """The share of ratings that agree with the sign of the logit, in a single process."""

    def __init__(self, num_classes: int) -> None:
        self.right, self.rated = 0, 0

    def update(self, batch: Batch, logits: np.ndarray) -> None:
        """Adds a batch of rated segments and their logits (B, C)."""
        rows = np.repeat(np.arange(len(batch)), batch.offsets.diff().numpy())
        agree = (logits[rows, batch.classes.numpy()] > 0) == (batch.scores.numpy() > 0.5)
        self.right, self.rated = self.right + int(agree.sum()), self.rated + len(agree)

    def compute(self) -> float:
        """Returns the share."""
        return self.right / self.rated


def main() -> None:
    """Trains, evaluates and predicts in a temporary folder."""
    with tempfile.TemporaryDirectory() as folder:
        run, data = str(Path(folder, "run")), str(make_ticks(Path(folder, "clocks")))
        steps = ["--pretrain.steps", "0", "--finetune.steps", "60", "--finetune.loss", "focal"]
        train.main(["--data", data, "--model", "mlp", "--run", run, *steps])
        evaluate.main(["--run", run])
        predict.main(["--run", run, "--out", str(Path(folder, "submission.csv"))])


if __name__ == "__main__":
    main()
