"""Evaluates a run or a submission: ``python -m pyseg.evaluate --run <folder> --data <...>``.

The metrics depend on what the data has:

* rated segments: MAP@100,000 (paper, eq. 7), the ranking of a class taken over its rated segments;
* video labels: GAP@20, Hit@1, PERR and MAP over complete label lists.

``--submission file.csv --truth <records or table>`` judges a submission (`pyseg.submission`); its
MAP is that of the run that it comes from.
"""

from __future__ import annotations

import contextlib
import numbers
from collections.abc import Callable
from dataclasses import dataclass, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any, Literal, Protocol, cast

import numpy as np
import torch
from torch import nn
from torch.nn import functional

from pyseg import _cli, distributed, metrics
from pyseg._copies import Download, Upload
from pyseg._memory import keep_memory
from pyseg._precision import Precision, PrecisionName
from pyseg._progress import Progress
from pyseg._registry import Make, Registry
from pyseg._remote import is_file
from pyseg.data import Batch, Collection, loader, open_collection
from pyseg.data.collection import Part
from pyseg.data.loading import worker_errors
from pyseg.data.memory import MOST_WORKERS
from pyseg.data.records import OnError, ReadReport, is_record_file, without_record_warnings
from pyseg.data.shards import named_as_records
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.results import KINDS, LOG_KEYS, LabelResult, RatedResult, Result
from pyseg.runs import Run, check_held_out, open_data, saying_whose
from pyseg.submission import TOP, judge, read_submission, read_truth, truth_of_segments

if TYPE_CHECKING:
    from collections.abc import Iterable, Iterator, Sequence

    from torch.utils.data import IterableDataset

    from pyseg.data import RecordDataset


@dataclass
class EvaluateConfig:
    """What to evaluate, and on which data.

    Args:
        run: The run folder that `pyseg.train` wrote.
        data: Records as a folder, glob, file or URL, or "sample"; default: what the run was
            trained on.
        labels: Tables of AudioSet's strong labels, file or glob; default: those
            beside the records, or what the run was trained on.
        vocabulary: A vocabulary.csv that names the classes; default: the run's, or the one beside
            the records.
        part: Videos to evaluate on: those that the run held out ("test"), its training videos, or
            all; default: "test", without a run all.
        submission: A submission to evaluate, of --run or any other model.
        truth: The ratings for --submission: records, as --data, or a table of lines
            "segment,class,score"; default: --data, or what the run was trained on.
        top: Segments per class of the submission that count.
        batch_size: Examples scored at once.
        workers: Processes that read ahead; 0 reads in this process.
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

    run: str | None = None
    data: str | None = None
    labels: str | None = None
    vocabulary: str | None = None
    part: Part | None = None
    submission: str | None = None
    truth: str | None = None
    top: int = TOP
    batch_size: int = 128
    workers: int = 0
    on_error: OnError | None = None
    device: str | None = None
    precision: PrecisionName | None = None
    tf32: bool | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        _cli.check_range("top", self.top, 1)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
        _cli.check_range("workers", self.workers, 0, MOST_WORKERS)
        if self.truth is not None and self.submission is None:
            raise ArgumentError(f"truth {self.truth}: expected --submission with it, found none")


def predictions(
    model: nn.Module,
    dataset: IterableDataset,
    *,
    batch_size: int = 128,
    workers: int = 0,
    progress: str | None = None,
    precision: PrecisionName | None = None,
    tf32: bool | None = None,
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields a data set's batches, and the logits of a model in inference mode.

    The next batch is scored while the consumer uses the last.

    Args:
        model: ``model(frames, num_frames) -> logits (B, C)``; its mode is restored afterwards.
        dataset: Yields `pyseg.data.Example`.
        batch_size: Examples scored at once; it affects logits by rounding only.
        workers: Processes that read ahead.
        progress: The title of a progress bar; None: no bar.
        precision: "fp32"; "bf16" or "fp16" is mixed precision; "int8", on a CPU, lets large layers
            multiply 8-bit integers. Default: "bf16" on a GPU, "fp32" on a CPU.
        tf32: Whether a GPU may round the inputs of float32 products to TF32; default: unless
            `precision` is "fp32".

    Yields:
        The batch, and its logits (B, C) float32.
    """
    device = next(model.parameters()).device
    used = Precision.on(device, precision, tf32, model)
    was_training = model.training
    waiting: list[tuple[Batch, Download]] = []

    def first_waiting() -> tuple[Batch, np.ndarray]:
        batch, copy = waiting.pop(0)
        scores = copy.array()
        check_scores(batch.ids, scores)
        return batch, scores

    model.eval()
    try:
        with (
            worker_errors(),
            Progress(progress or "", "examples", hidden=progress is None) as bar,
        ):
            for batch in loader(dataset, batch_size, workers=workers):
                with torch.no_grad(), used.used_on(device):
                    frames, num_frames = Upload(device, batch.frames, batch.num_frames).tensors()
                    logits = model(frames, num_frames)
                waiting.append((batch, Download(logits.float())))
                bar.update(len(batch))
                if len(waiting) > 1:
                    yield first_waiting()
            if waiting:
                yield first_waiting()
    finally:
        model.train(was_training)


def check_scores(ids: Sequence[str], scores: np.ndarray) -> None:
    """Checks that a model's scores are numbers.

    Raises:
        pyseg.errors.DataError: One is NaN; the message names the example.
    """
    wrong = np.isnan(scores).any(axis=1)
    if wrong.any():
        raise DataError(
            f"{ids[int(wrong.argmax())]}: expected numbers as scores, found nan: the features or "
            "the model's weights are no numbers"
        )


class Metric(Protocol):
    """A metric, made anew for each evaluation."""

    def update(self, batch: Batch, logits: np.ndarray) -> None:
        """Adds examples with their ratings or labels, and their logits (B, C)."""

    def compute(self) -> float:
        """Returns the value; in a distributed run, over the examples of all processes."""


_METRICS: Registry[tuple[Callable[[int], Metric], str]] = Registry("metric")


def register_metric(name: str, *, on: Literal["ratings", "labels"]) -> Callable[[Make], Make]:
    """Registers a metric, which results of evaluations have as ``more[name]``.

    It is made as ``make(num_classes)`` for an evaluation by rated segments (``on="ratings"``) or by
    video labels (``on="labels"``), and printed and logged with the other metrics.

    Args:
        name: The name of the metric, which must be new.
        on: The truth that it uses.

    Returns:
        A decorator that returns its argument.

    Raises:
        pyseg.errors.ArgumentError: The name is taken.

    Example:
        >>> @register_metric("mean_logit", on="ratings")
        ... class MeanLogit:
        ...     def __init__(self, num_classes: int) -> None:
        ...         self.sum, self.count = 0.0, 0
        ...
        ...     def update(self, batch: Batch, logits: np.ndarray) -> None:
        ...         self.sum, self.count = self.sum + logits.sum(), self.count + logits.size
        ...
        ...     def compute(self) -> float:
        ...         return self.sum / self.count
    """

    def entry_of(make: Callable[[int], Metric]) -> tuple[Callable[[int], Metric], str]:
        if on not in ("ratings", "labels"):
            raise ArgumentError(f"on: expected 'ratings' or 'labels', found {on!r}")
        if name in LOG_KEYS or any(name in kind.names() for kind in KINDS):
            raise ArgumentError(f"name: expected the name of a new metric, found {name!r}")
        return make, on

    return _METRICS.register(name, entry_of)


def _observed(
    scored: Iterable[tuple[Batch, np.ndarray]], metrics: Iterable[Metric]
) -> Iterator[tuple[Batch, np.ndarray]]:
    """Yields its input, after updating the metrics with it."""
    for batch, logits in scored:
        for metric in metrics:
            metric.update(batch, logits)
        yield batch, logits


def rank_ratings(
    scored: Iterable[tuple[Batch, np.ndarray]], num_classes: int
) -> metrics.MeanAveragePrecision:
    """Returns the average precision of every class over rated (segment, class) pairs.

    In a distributed run it covers the segments of all processes.

    Args:
        scored: Batches of rated segments and their logits.
        num_classes: The number of classes C.
    """
    metric = metrics.MeanAveragePrecisionAtK(num_classes)
    for batch, logits in scored:
        rows = np.repeat(np.arange(len(batch)), batch.offsets.diff().numpy())
        classes = batch.classes.numpy()
        metric.update(classes, logits[rows, classes], batch.scores.numpy() > 0.5)
    return metric.compute()


def label_metrics(scored: Iterable[tuple[Batch, np.ndarray]], num_classes: int) -> LabelResult:
    """Returns GAP@20, Hit@1, PERR and MAP against complete label lists.

    In a distributed run they cover the videos of all processes.

    Args:
        scored: Batches of videos and their logits.
        num_classes: The number of classes C.
    """
    gap = metrics.GlobalAveragePrecisionAtK(num_classes, k=20)
    hit = metrics.HitAt1(num_classes)
    perr = metrics.PrecisionAtEqualRecallRate(num_classes)
    ranking = metrics.MeanAveragePrecisionAtK(num_classes, empty_classes="skip")
    for batch, logits in scored:
        labels = batch.targets(num_classes).numpy() > 0
        gap.update(logits, labels)
        hit.update(logits, labels)
        # PERR counts scores above 0. These are, in the order of the logits; many sigmoids would
        # tie at 1.
        perr.update(functional.softplus(torch.from_numpy(logits)), labels)
        ranking.update_dense(logits, labels)
    result = ranking.compute()
    if not result.rated.any():
        raise UserError("there is nothing to evaluate: no video")
    return LabelResult(
        gap=gap.compute(),
        hit_at_1=hit.compute(),
        perr=perr.compute(),
        map=result.map,
        classes=int((result.positives > 0).sum()),
        examples=int(result.rated.max()),
    )


def evaluate(
    model: nn.Module,
    collection: Collection,
    part: Part,
    *,
    classes: Sequence[int] | None = None,
    batch_size: int = 128,
    workers: int = 0,
    report: ReadReport | None = None,
    precision: PrecisionName | None = None,
    tf32: bool | None = None,
    cache: bool = True,
) -> Result:
    """Returns the metrics of a model on one part of a collection.

    The truth is rated segments if the collection has them, complete video labels otherwise.

    Args:
        model: The model.
        collection: The data.
        part: The videos to evaluate on.
        classes: The collection's classes that the model has, in its order; default: all.
        batch_size: Examples scored at once.
        workers: Processes that read ahead.
        report: Receives the problems found in records, those of all processes; the caller reports
            them.
        precision: See `predictions`.
        tf32: See `predictions`.
        cache: Whether the rated segments of all parts stay in memory, for the next evaluation.

    Raises:
        pyseg.errors.UserError: The part has no example.
    """
    with contextlib.nullcontext() if report is None else without_record_warnings():
        segments = collection.segments(part, classes=classes, cache=cache)
        dataset = collection.videos(part, classes=classes) if segments is None else segments
        scored = predictions(
            model,
            dataset,
            batch_size=batch_size,
            workers=workers,
            progress="evaluate",
            precision=precision,
            tf32=tf32,
        )
        num_classes = collection.num_classes if classes is None else len(classes)
        truth = "labels" if segments is None else "ratings"
        more = {name: make(num_classes) for name, (make, on) in _METRICS.items() if on == truth}
        scored = _observed(scored, more.values())
        result: Result
        if segments is None:
            result = label_metrics(scored, num_classes)
        else:
            ranked = rank_ratings(scored, num_classes)
            if not ranked.rated.any():
                raise UserError("there is nothing to evaluate: no segment is rated")
            result = RatedResult.of(ranked, _num_rated(collection))
        if report is not None:
            report += report_of_all(dataset)
    return replace(result, more={name: _value(name, metric) for name, metric in more.items()})


def _value(name: str, metric: Metric) -> float:
    value: object = metric.compute()
    if not isinstance(value, numbers.Real):
        raise UserError(f"metric {name}: expected a number of compute(), found {value!r}")
    return float(value)


def report_of_all(dataset: RecordDataset) -> ReadReport:
    """Returns the report of the last pass over a data set, of all processes of a run."""
    return dataset.report if dataset.cached else distributed.total(dataset.report)


def _num_rated(collection: Collection) -> int | None:
    return len(collection.segment_classes) if collection.segment_classes else None


def check_collection(model: Any, collection: Collection, run: Run, data: str) -> list[int] | None:
    """Returns the classes of a collection that a run's model has; None means all.

    Args:
        model: The run's model.
        collection: The collection in ``data``.
        run: The run, which stores whether its model is for the rated classes alone.
        data: The data, for the message.

    Raises:
        pyseg.errors.UserError: The model is for other features or classes.
    """
    classes = run.known_classes(model.num_classes)
    same_level = (model.config.level or collection.level) == collection.level
    differences = run.features().differences(collection.features, same_level=same_level)
    found = len(classes) if classes else collection.num_classes
    if found != model.num_classes:
        differences.append(f"classes: expected {model.num_classes}, found {found}")
    if differences:
        raise UserError(
            f"--data {data}: {'; '.join(differences)} (expected is what {run} was trained on)"
        )
    return classes


def _check_part(run: Run, data: str | None, collection: Collection, part: Part) -> None:
    """Checks that held-out videos are to be evaluated only where the run has such."""
    if part == "test":
        hint = "; --part all without it shows how well it knows its own"
        check_held_out(run, data, collection.video_paths, hint)


def note_level(model: Any, found: str, run: Run, data: str) -> None:
    """Warns if a model of mean features of videos is applied to frames, or vice versa.

    Args:
        model: The run's model.
        found: The level of the data: "frame" or "video".
        run: The run, for the message.
        data: The data, for the message.
    """
    kinds = {"frame": "frames", "video": "mean features of whole videos"}
    trained = model.config.level
    if trained is not None and trained != found:
        print(f"{run} was trained on {kinds[trained]}; {data} has {kinds[found]}")


def evaluate_submission(config: EvaluateConfig) -> tuple[RatedResult, list[str]]:
    """Returns the metrics of a submission, and lines on its problems for the user.

    Raises:
        pyseg.errors.UserError: The options do not fit together.
        pyseg.errors.DataError: The submission or the truth is malformed.
        OSError: One of them cannot be read.
    """
    assert config.submission is not None
    if Path(config.submission).is_dir():
        raise UserError(f"--submission {config.submission}: expected a file, found a folder")
    trained = None if config.run is None else Run(config.run).config()
    source = config.truth or config.data
    if source is None and trained is not None:
        source = trained.data
    if source is None:
        raise UserError("--submission: expected --truth or --run with it, found neither")
    num_rated = None
    lines = []
    if is_file(source) and not (is_record_file(source) or named_as_records(source)):
        truth = read_truth(source)
        if truth.overwritten:
            lines = [f"truth: overwrote {truth.overwritten} ratings by later ones of the same pair"]
    else:
        on_error = config.on_error
        if trained is None:
            collection = open_collection(
                source,
                labels=config.labels,
                vocabulary=config.vocabulary,
                on_error=on_error or "raise",
            )
        else:
            with saying_whose(config.truth or config.data):
                collection = open_data(trained, source, config.labels, on_error, config.vocabulary)
        part = config.part or ("all" if trained is None else "test")
        if config.run is not None:
            _check_part(Run(config.run), config.truth or config.data, collection, part)
        # All of the data, also in one of several processes.
        segments = collection.segments(part, cache=False, rank=0, world_size=1)
        if segments is None:
            notes = "".join(f"; {note}" for note in collection.notes)
            raise DataError(f"{source}: expected ratings of segments, found none{notes}")
        with without_record_warnings():
            truth = truth_of_segments(segments, source)
        if summary := segments.report.summary():
            lines = [f"truth: {summary}"]
        num_rated = _num_rated(collection)
    with Progress("evaluate", "classes") as bar:
        result, report = judge(
            read_submission(config.submission), truth, k=config.top, progress=bar.update
        )
    lines += [f"submission: {line}" for line in report.lines()]
    return RatedResult.of(result, num_rated or len(truth.ratings)), lines


def evaluate_run(config: EvaluateConfig) -> Result:
    """Returns the metrics of a run, and appends them to its metrics.jsonl.

    In a distributed run every process scores its part of the data, and all get the same.

    Raises:
        pyseg.errors.UserError: The options do not fit the run or the data.
        pyseg.errors.RecordError: A record is damaged.
    """
    if config.run is None:
        raise UserError("expected --run or --submission, found neither")
    run = Run(config.run)
    trained = run.config()
    run.warn_unfinished()
    device = distributed.local_device(distributed.pick_device(config.device))
    model: Any = run.model().to(device)
    with saying_whose(config.data):
        collection = open_data(
            trained, config.data, config.labels, config.on_error, config.vocabulary
        )
    data = config.data or trained.data
    classes = check_collection(model, collection, run, data)
    note_level(model, collection.level, run, data)
    part = config.part or "test"
    _check_part(run, config.data, collection, part)
    report = ReadReport()
    # One process reads them once, in this order. Several would each have rows of other segments,
    # and of equal scores another would come first.
    cache = config.workers > 0 or distributed.world_size() > 1
    result = evaluate(
        model,
        collection,
        part,
        classes=classes,
        batch_size=config.batch_size,
        workers=config.workers,
        report=report,
        precision=config.precision,
        tf32=config.tf32,
        cache=cache,
    )
    if summary := report.summary():
        print(f"records: {summary}")
    if distributed.is_first():
        run.append_to_log("evaluate", data=data, part=part, **result.values())
    return result


def _calibration_line(config: EvaluateConfig) -> str | None:
    """Returns a line on a run's calibration, if it has one and its held-out videos are evaluated.

    It repeats what `pyseg.calibrate` measured, as an evaluation ranks.
    """
    run = Run(cast(str, config.run))
    if config.data not in (None, run.config().data) or config.part not in (None, "test"):
        return None
    try:
        found = run.calibration(cast(Any, run.model()).num_classes)
    except DataError as error:
        return str(error)
    if found is None:
        return None
    return (
        f"calibration error {found.after.error:.3f} ({found.before.error:.3f} without "
        f"{run.calibration_file.name}), by cross-validation, of {found.source}"
    )


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.evaluate``."""
    keep_memory()
    parser = _cli.make_parser(
        EvaluateConfig,
        "pyseg.evaluate",
        "Evaluates a trained run or a submission.",
        torchrun=True,
    )
    config = _cli.parse(parser, EvaluateConfig, argv)
    with distributed.session(distributed.pick_device(config.device)):
        if config.submission is None:
            print(evaluate_run(config).describe())
            if line := _calibration_line(config):
                print(line)
            return
        result, notes = evaluate_submission(config)
        print(result.describe())
        for note in notes:
            print(note)
