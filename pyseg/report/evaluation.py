"""Evaluations for the report, in more detail than those of `pyseg.evaluate`."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

import numpy as np
import torch

from pyseg.data import Collection
from pyseg.errors import DataError, UserError
from pyseg.evaluate import check_collection, predictions
from pyseg.metrics import MeanAveragePrecisionAtK, map_at_k
from pyseg.predict import PredictConfig, Scorer, timelines
from pyseg.report.config import ReportConfig
from pyseg.report.runs import BEST_LABELS, Evaluation, ReportedRun
from pyseg.runs import check_held_out, open_data
from pyseg.timeline import Rating

if TYPE_CHECKING:
    from pyseg.data import Batch

TIMELINE_CLASSES = 5
"""Classes in the picture of a video's scores over time, besides the rated ones."""


def add_evaluation(run: ReportedRun, config: ReportConfig) -> None:
    """Adds an evaluation and timelines to a run, or the reason why there are none.

    Raises:
        pyseg.errors.UserError: The data that the options name does not fit the run.
        pyseg.errors.RecordError: A record is damaged.
    """
    if not config.evaluate:
        run.missing = "left out with --evaluate false"
        return
    try:
        scorer = Scorer(
            PredictConfig(
                str(run.folder),
                data=config.data,
                device=config.device,
                precision=config.precision,
                tf32=config.tf32,
            )
        )
        collection = open_data(run.config, config.data, config.labels, vocabulary=config.vocabulary)
        data = config.data or run.config.data
        classes = check_collection(scorer.model, collection, scorer.run, data)
    except (UserError, DataError, FileNotFoundError) as error:
        if any((config.data, config.labels, config.vocabulary)):
            raise
        run.missing = str(error)
        return
    if config.part == "test":
        try:
            check_held_out(scorer.run, config.data, scorer.shards)
        except UserError as error:
            run.missing = str(error)
            return
    evaluation = _evaluate(scorer, collection, config, classes)
    if not evaluation.precision.positives.any():
        run.missing = f"part {config.part} of its data has no positive rating or label"
        return
    run.evaluation = evaluation
    if config.videos and evaluation.has_frames:
        ratings = evaluation.ratings
        chosen = sorted(ratings, key=lambda id: (*_by_ratings(ratings[id]), id))[: config.videos]
        wanted = {id: ratings[id] for id in chosen}
        found = timelines(scorer, scorer.shards, wanted)
        drawn = [timeline.best(TIMELINE_CLASSES) for timeline in found]
        run.timelines = sorted(drawn, key=lambda timeline: chosen.index(timeline.title))


def _by_ratings(ratings: Sequence[Rating]) -> tuple[int, int]:
    """Returns a sort key of videos: most ratings first, then most rated classes."""
    return -len(ratings), -len({rating.number for rating in ratings})


def _evaluate(
    scorer: Scorer,
    collection: Collection,
    config: ReportConfig,
    known: Sequence[int] | None,
) -> Evaluation:
    """Evaluates a scorer's model of some of a collection's classes, by default all."""
    segments = collection.segments(config.part, cache=False, classes=known)
    dataset = collection.videos(config.part, classes=known) if segments is None else segments
    num_classes = collection.num_classes if known is None else len(known)
    ratings: dict[str, list[Rating]] = {}
    classes: list[np.ndarray] = [np.zeros(0, np.int64)]
    scores: list[np.ndarray] = [np.zeros(0, np.float32)]
    relevant: list[np.ndarray] = [np.zeros(0, bool)]
    complete = MeanAveragePrecisionAtK(num_classes)
    for batch, logits in predictions(
        scorer.model,
        dataset,
        batch_size=config.batch_size,
        progress="evaluate",
        precision=config.precision,
        tf32=config.tf32,
    ):
        if segments is not None:
            rows, columns, truth = _rated_pairs(batch)
            _add_ratings(ratings, scorer, batch, known)
        else:
            labels = batch.targets(num_classes).numpy() > 0
            complete.update_dense(logits, labels)
            rows, columns = _best_pairs(logits)
            truth = labels[rows, columns]
            ratings.update({id: [] for id in batch.ids})
        classes.append(columns)
        scores.append(logits[rows, columns])
        relevant.append(truth)
    pairs = np.concatenate(classes), np.concatenate(scores), np.concatenate(relevant)
    rated = segments is not None
    precision = map_at_k(*pairs, num_classes=num_classes) if rated else complete.compute()
    return Evaluation(rated, precision, *pairs, ratings, collection.level == "frame")


def _best_pairs(logits: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns rows and columns of the classes with the highest scores of every video."""
    most = min(BEST_LABELS, logits.shape[1])
    columns = torch.from_numpy(logits).topk(most, dim=1).indices.numpy().ravel()
    return np.repeat(np.arange(len(logits)), most), columns


def _rated_pairs(batch: Batch) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, class and truth of a batch's ratings."""
    rows = np.repeat(np.arange(len(batch)), batch.offsets.diff().numpy())
    return rows, batch.classes.numpy(), batch.scores.numpy() > 0.5


def _add_ratings(
    ratings: dict[str, list[Rating]], scorer: Scorer, batch: Batch, known: Sequence[int] | None
) -> None:
    """Adds a batch's ratings to those of their videos, with the classes' numbers in the data."""
    for row, column, positive in zip(*(p.tolist() for p in _rated_pairs(batch)), strict=True):
        video = batch.ids[row].rpartition(":")[0]
        number = column if known is None else known[column]
        ratings.setdefault(video, []).append(scorer.rating(batch.ids[row], number, positive))
