"""The data of a run: held-out videos, classes to fine-tune, and the label correlation."""

from __future__ import annotations

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import replace
from typing import Any

import numpy as np
import torch
from torch import Tensor

from pyseg import distributed
from pyseg._cli import check_in
from pyseg._progress import Progress
from pyseg.config import LossConfig, TrainConfig
from pyseg.data import Collection, Example, ReadReport, RecordDataset, frame_moments
from pyseg.data.collection import Part
from pyseg.data.hashing import held_out
from pyseg.data.records import without_record_warnings
from pyseg.errors import UserError
from pyseg.labels import Cooccurrence, CooccurrenceCounter, LabelCorrelation, embed_labels
from pyseg.nn.label_gcn import NODE_SIZE

_FEW_VIDEOS = 100  # of more than these, some are held out by any seed
_SEEDS = 100


def label_correlation(
    config: LossConfig,
    collection: Collection,
    classes: Sequence[int] | None = None,
    report: ReadReport | None = None,
    counts: Cooccurrence | None = None,
) -> LabelCorrelation | None:
    """Returns the correlation that the options choose.

    "auto" counts the labels of the training videos alone: those of held-out videos would leak the
    ratings of their segments.

    Args:
        config: The options.
        collection: The data whose labels are counted.
        classes: The classes to keep; default: all.
        report: See `pyseg.data.read_frames`.
        counts: What `count_labels` returned, if it was called.

    Raises:
        ValueError: The file is not a correlation, or has another number of classes.
    """
    if config.correlation == "none":
        return None
    expected = collection.num_classes if classes is None else len(classes)
    if config.correlation != "auto":
        check_in("loss.correlation", config.correlation)
        correlation = LabelCorrelation.load(config.correlation)
        if correlation.num_classes != expected:
            raise UserError(
                f"--loss.correlation {config.correlation}: expected {expected} classes, as the "
                f"{'data has' if classes is None else 'fine-tuned model has'}, found "
                f"{correlation.num_classes}"
            )
        return correlation
    counts = count_labels(collection, report) if counts is None else counts
    return LabelCorrelation.from_counts(
        counts,
        config.threshold,
        classes,
        min_support=config.min_support,
        prior=config.prior,
    )


def count_labels(
    collection: Collection, report: ReadReport | None = None, *, part: Part = "train"
) -> Cooccurrence:
    """Counts the labels of one part of the videos; `report` receives the problems."""
    counter = CooccurrenceCounter(collection.num_classes)
    for offsets, labels in collection.label_lists(part, report):
        counter.update(offsets, labels)
    return counter.finish()


def strong_relations(correlation: LabelCorrelation, threshold: float) -> LabelCorrelation:
    """Returns a correlation without the probabilities that are smaller than a threshold."""
    kept = correlation.values >= threshold
    before = torch.cat((kept.new_zeros(1, dtype=torch.int64), kept.cumsum(0)))
    return LabelCorrelation(
        before[correlation.offsets], correlation.columns[kept], correlation.values[kept]
    )


def label_graph(
    config: TrainConfig, collection: Collection, known: Sequence[str], report: ReadReport
) -> tuple[LabelCorrelation | None, dict[str, Tensor]]:
    """Returns what a model with a label graph is made of, beside sizes.

    Args:
        config: The options.
        collection: The data.
        known: The overrides that the model takes.
        report: See `label_correlation`.

    Returns:
        The correlation, None for a model without a graph; and its argument ``node_features``, if
        ``--node_features auto`` asks for them.

    Raises:
        pyseg.errors.UserError: The options do not fit the model or the data.
    """
    counts, given = None, {}
    if config.node_features == "auto":
        if "node_features" not in known:
            raise UserError(
                "--node_features auto: expected a model with a label graph "
                f"(--overrides.head gcn), found {config.model}"
            )
        size = config.overrides.get("node_size", NODE_SIZE)
        if not isinstance(size, int) or size < 1:
            raise UserError(f"--overrides.node_size: expected at least 1, found {size!r}")
        counts = count_labels(collection, report)
        given["node_features"] = embed_labels(counts, min(size, counts.num_classes))
    if "correlation" not in known:
        return None, given
    return label_correlation(config.loss, collection, report=report, counts=counts), given


def hold_out(config: TrainConfig, collection: Collection) -> tuple[TrainConfig, Collection, str]:
    """Checks that there is something to train on, and reports if there is nothing to evaluate.

    Returns:
        The options; the data, with nothing held out if all of it would be; and a line for the user
        if there is no evaluation.

    Raises:
        pyseg.errors.UserError: Everything is held out, or what the options evaluate is not there.
    """
    given, what = collection, "rated segment" if collection.has_segments else "video"
    why = f"--test_fraction {collection.test_fraction:g} --seed {collection.seed}"
    if collection.is_empty("train", rated=False):
        if collection.test_fraction == 1:
            raise UserError(f"{why}: expected videos to train on, found all of them held out")
        config = replace(config, test_fraction=0.0)
        collection = replace(collection, test_fraction=0.0)
        why = "as there are so few videos"
    classes = collection.segment_classes if config.classes == "rated" else None
    tuned = collection.has_segments and config.stage != "pretrain" and config.finetune.steps > 0
    if tuned and collection.is_empty("train", rated=True, classes=classes):
        raise UserError(
            f"{why}: expected rated segments to train on, found all of them held out"
            f"{_better_seed(given)}"
        )
    if not collection.is_empty("test", classes=classes if collection.has_segments else None):
        return config, collection, ""
    for name, value in (
        ("final_fit", config.final_fit),
        ("pretrain.patience", config.pretrain.patience),
        ("finetune.patience", config.finetune.patience),
    ):
        if value:
            option = f"--{name}" if value is True else f"--{name} {value}"
            raise UserError(
                f"{option}: expected a {what} that is held out, found none ({why})"
                f"{_better_seed(given)}"
            )
    line = f"no {what} is held out ({why}): training without evaluation"
    if config.pretrain.evaluate_every or config.finetune.evaluate_every:
        line += ", whatever evaluate_every says"
    return config, collection, line + _better_seed(given)


def _better_seed(collection: Collection) -> str:
    """Returns advice on a seed that holds out about as many videos as asked for, "" if none does.

    Which videos are held out depends on the id of each alone, so that it stays the same when others
    are added. Of few videos it may be none.

    Args:
        collection: The data, of which nothing or everything is held out.
    """
    fraction = collection.test_fraction
    if not fraction:
        return ""
    ids: set[str] = set()
    read = collection.segments if collection.has_segments else collection.videos
    examples = read("all", cache=False, rank=0, world_size=1)
    with without_record_warnings():
        for example in () if examples is None else examples:
            ids.add(example.id.rpartition(":")[0] if collection.has_segments else example.id)
            if len(ids) > _FEW_VIDEOS:
                return ""
    expected = min(max(1, round(fraction * len(ids))), len(ids) - 1)
    for seed in range(_SEEDS) if expected > 0 else ():
        if sum(held_out(id, fraction, seed) for id in ids) == expected:
            return f"; --seed {seed} holds out {expected} of {len(ids)} videos"
    return ""


def ratings_per_class(segments: RecordDataset) -> int:
    """Returns the number of ratings that half of the rated classes do not exceed, of all ranks.

    Args:
        segments: Rated segments in memory.
    """
    counts = segments.class_counts()
    return int(np.median(counts[counts > 0])) if counts.any() else 0


def normalization(
    config: TrainConfig, collection: Collection, known: Sequence[str], *, resumed: bool
) -> dict[str, Any]:
    """Returns the arguments of `pyseg.nn.FrameNormalization` that the data decides.

    They are the ranges of the features, unless these are the default; and where frames are to be
    standardised, mean and deviation of the training videos' frames. All processes call it, and the
    first one reads.

    Args:
        config: The options.
        collection: The data.
        known: The overrides that the model takes.
        resumed: Whether a checkpoint will replace mean and deviation.

    Raises:
        pyseg.errors.UserError: The model does not take the ranges.
        pyseg.errors.RecordError: A record is damaged.
    """
    features = collection.features
    given: dict[str, Any] = {}
    if features.has_own_ranges:
        if "ranges" not in known:
            raise UserError(
                f"--model {config.model}: expected a model that takes ranges, as the bytes of "
                f"{collection.name} do not stand for -2 to 2, found one that does not"
            )
        given["ranges"] = features.ranges
    convention = config.overrides.get("normalization")
    if convention is None and collection.standardize and "normalization" in known:
        convention = given["normalization"] = "standardize"
    if convention != "standardize" or "mean" not in known:
        return given
    width = sum(features.feature_sizes)
    mean, deviation = np.zeros(width), np.ones(width)
    if distributed.is_first() and not resumed:
        frames = {"max_frames": config.max_frames} if collection.level == "frame" else {}
        videos = collection.videos(
            "train", shuffle=True, seed=config.seed, rank=0, world_size=1, **frames
        )
        with Progress("mean and deviation", "frames") as bar:
            mean, deviation = frame_moments(_counted(videos, bar), features)
    given["mean"], given["deviation"] = distributed.from_first((mean, deviation))
    return given


def _counted(examples: Iterable[Example], bar: Progress) -> Iterator[Example]:
    for example in examples:
        yield example
        bar.update(len(example.frames))


def classes_to_tune(config: TrainConfig, collection: Collection) -> Sequence[int] | None:
    """Returns the collection's classes to fine-tune; None: all."""
    if config.classes != "rated":
        return None
    if collection.segment_classes is None:
        raise UserError("--classes rated: the data does not say which are rated")
    return collection.segment_classes
