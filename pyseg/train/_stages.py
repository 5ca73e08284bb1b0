"""The stages of a run: examples and loss of each."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any, cast

import torch
from torch import nn

from pyseg import _cli
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Collection, ReadReport, RecordDataset
from pyseg.errors import UserError
from pyseg.labels import LabelCorrelation
from pyseg.train._data import label_correlation
from pyseg.training import Stage, make_loss


def make_stages(
    config: TrainConfig,
    collection: Collection,
    classes: Sequence[int] | None,
    graph: LabelCorrelation | None,
    device: torch.device,
    counted: ReadReport,
) -> tuple[list[Stage], LabelCorrelation | None]:
    """Returns the stages in order, and the label correlation in use.

    Args:
        config: The options.
        collection: The data.
        classes: The classes to fine-tune; None: all.
        graph: The correlation of all classes, if the model has a label graph.
        device: The device of the loss.
        counted: Receives the problems found while counting labels.

    Raises:
        pyseg.errors.UserError: The data has no rated segments where the options ask for them.
    """
    # Repeated without end, so that every batch is full, as batch statistics require.
    order: dict[str, Any] = {"shuffle": True, "seed": config.seed, "repeat": True}
    if config.solver == "ridge":  # the order of the sums
        order = {"seed": config.seed}
    stages = []
    if config.stage != "finetune":
        frames = {"max_frames": config.max_frames} if collection.level == "frame" else {}
        videos = collection.videos("train", **order, **frames)
        loss = _loss("pretrain", config.pretrain)
        longest = frames.get("max_frames") if config.pad_frames else None
        stages.append(Stage("pretrain", config.pretrain, videos, loss, frames=longest))
    correlation, segments = graph, None
    if config.stage != "pretrain":
        segments = collection.segments("train", classes=classes, **order)
        if segments is None and config.stage == "finetune":
            raise UserError("--stage finetune: the data has no rated segments")
    if segments is not None:
        # A label graph of the same classes has already counted it.
        if config.finetune.steps and (graph is None or classes is not None):
            correlation = label_correlation(config.loss, collection, classes, counted)
        by_bayes = config.loss.absent_evidence == "bayes"
        absent = correlation.when_absent() if by_bayes and correlation is not None else None
        make = functools.partial(
            _loss,
            "finetune",
            config.finetune,
            rated_weight=config.loss.rated_weight,
            unrated_weight=config.loss.unrated_weight,
            correlation=None if correlation is None else correlation.to(device),
            absent_evidence=0.0 if by_bayes else config.loss.absent_evidence,
            absent=None if absent is None else absent.to(device),
        )
        longest = collection.features.segment_size if config.pad_frames else None
        stages.append(Stage("finetune", config.finetune, segments, make(), classes, frames=longest))
        if config.final_fit:
            everything = cast(RecordDataset, collection.segments("all", classes=classes, **order))
            stages.append(
                Stage("final", config.finetune, everything, make(), refit=True, frames=longest)
            )
    elif config.final_fit:
        raise UserError("--final_fit: the data has no rated segments")
    for stage in stages:
        if stage.config.steps:
            stage.share_of_batch()
    return stages, correlation


def _loss(stage: str, config: StageConfig, **given: Any) -> nn.Module:
    """Makes the loss of a stage; pretraining uses its defaults, as all classes are rated."""
    with _cli.option_group(f"{stage}."):
        return make_loss(config.loss, config.loss_overrides, **given)
