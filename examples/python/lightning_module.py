"""Trains one of pyseg's models with Lightning, and logs pyseg's exact metrics.

    pip install lightning
    python examples/python/lightning_module.py

`pyseg.metrics.torchmetrics` has the metrics as Lightning's ``log`` takes them: they cover a whole
epoch, in a run of several processes all of their batches.
"""

from __future__ import annotations

import lightning
import torch
from torch import Tensor

import pyseg
from pyseg.data import Batch, Collection, loader, open_collection
from pyseg.metrics.torchmetrics import GlobalAveragePrecisionAtK, MeanAveragePrecisionAtK


class SegmentClassifier(lightning.LightningModule):
    """A preset of `pyseg.models`, trained on rated segments.

    It is validated on rated segments by MAP@K, and on the labels of whole videos by GAP.

    Args:
        num_classes: Number of classes C.
        preset: The model.
        learning_rate: Adam's learning rate.
        **overrides: Arguments of the preset to change.

    Example:
        >>> classifier = SegmentClassifier(num_classes=10, preset="mlp", feature_sizes=(64, 16))
        >>> classifier.model(torch.randint(0, 256, (2, 5, 80), dtype=torch.uint8)).shape
        torch.Size([2, 10])
    """

    def __init__(
        self,
        num_classes: int,
        preset: str = "nextvlad-small",
        learning_rate: float = 2e-3,
        **overrides: object,
    ) -> None:
        super().__init__()
        self.save_hyperparameters()
        self.model = pyseg.models.create(preset, num_classes=num_classes, **overrides)
        self.map = MeanAveragePrecisionAtK(num_classes, empty_classes="skip")
        self.gap = GlobalAveragePrecisionAtK(num_classes)

    def training_step(self, batch: Batch, _: int) -> Tensor:
        """Returns the loss of a batch of rated segments."""
        logits = self.model(batch.frames, batch.num_frames)
        ratings = batch.offsets, batch.classes, batch.scores
        loss = pyseg.ops.rated_bce_with_logits(logits, *ratings)
        self.log("loss", loss, batch_size=len(batch))
        return loss

    def validation_step(self, batch: Batch, _: int, dataloader_idx: int = 0) -> None:
        """Adds a batch of segments (the first loader) or of videos (the second) to its metric."""
        logits = self.model(batch.frames, batch.num_frames)
        labels = batch.targets(logits.shape[1]) > 0.5
        if dataloader_idx:
            self.gap.update(logits, labels)
            self.log("gap", self.gap, add_dataloader_idx=False, batch_size=len(batch))
        else:
            self.map.update(logits, labels, batch.rated(logits.shape[1]))
            self.log("map", self.map, add_dataloader_idx=False, batch_size=len(batch))

    def configure_optimizers(self) -> torch.optim.Optimizer:
        """Returns Adam over all weights."""
        return torch.optim.Adam(self.parameters(), lr=self.hparams["learning_rate"])


def fit(classifier: SegmentClassifier, collection: Collection, epochs: int) -> dict[str, float]:
    """Trains and validates the classifier; returns what was logged last."""
    segments = collection.segments("train", shuffle=True)
    held_out = collection.segments("test"), collection.videos("test")
    trainer = lightning.Trainer(
        max_epochs=epochs,
        accelerator="cpu",
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(
        classifier,
        loader(segments, batch_size=80),
        [loader(part, batch_size=200) for part in held_out],
    )
    return {name: value.item() for name, value in trainer.callback_metrics.items()}


def main() -> None:
    """Trains nextvlad-small on the generated sample, and prints what was logged."""
    lightning.seed_everything(0, verbose=False)
    collection = open_collection("sample")
    logged = fit(SegmentClassifier(collection.num_classes), collection, epochs=3)
    print(", ".join(f"{name} {value:.4f}" for name, value in logged.items()))


if __name__ == "__main__":
    main()
