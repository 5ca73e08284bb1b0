"""Draws what runs have come to: ``python -m pyseg.report --run <folder> [<folder> ...]``.

One HTML page with all pictures in it, without scripts or anything from outside: facts, learning
curves, average precision of every class, precision-recall curves, the label graph of the
correlation in use (the paper's Figure 3), and scores of held-out videos over time. Runs are shown
side by side. The same runs and data give the same page.
"""

from __future__ import annotations

import base64
import platform
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, NamedTuple

import numpy as np
import torch

import pyseg
from pyseg import _charts, _cli, distributed, results
from pyseg._charts import ClassBar, Series
from pyseg._files import atomic_write
from pyseg.config import TrainConfig
from pyseg.data import Collection
from pyseg.data.collection import Part
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.evaluate import check_collection, predictions
from pyseg.labels import LabelCorrelation
from pyseg.metrics import MeanAveragePrecision, MeanAveragePrecisionAtK, map_at_k
from pyseg.predict import PredictConfig, Scorer, timelines
from pyseg.runs import Run, find_run_shards, open_data
from pyseg.timeline import Rating, Timeline

if TYPE_CHECKING:
    import networkx

    from pyseg.data import Batch

GRAPH_NODES = 40
"""Labels in the drawing of a correlation, at most."""

_BARS = 12  # best classes, and worst ones, that are drawn
_CURVES = 6  # classes with a precision-recall curve of their own
_TABLE_ROWS = 1000
_VIDEO_LABELS = 20  # best classes of a video that are looked at, as GAP@20 does
_TIMELINE_CLASSES = 5
_CURVE_POINTS = 2000

_PAIRS = {
    True: "the rated pairs of a segment and a class",
    False: f"the {_VIDEO_LABELS} best classes of every video; recall is of all labels",
}


@dataclass
class ReportConfig:
    """What to draw.

    Args:
        run: Run folders that `pyseg.train` wrote; a first one, and others to compare it with.
        out: The HTML file; default: report.html in the first run.
        data: Records as a folder, glob or file, or "sample"; default: what each run was trained on.
        part: Which videos to evaluate on: those that the run held out ("test"), its training
            videos, or all.
        evaluate: Evaluate the models; without, what needs the data and the weights is left out.
        videos: Videos whose scores are drawn over time.
        batch_size: Examples scored at once.
        device: "cpu", "cuda", ...; default: a GPU where there is one.

    Raises:
        ValueError: A value is out of its range.
    """

    run: list[str]
    out: str | None = None
    data: str | None = None
    part: Part = "test"
    evaluate: bool = True
    videos: int = 4
    batch_size: int = 128
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        if not self.run:
            raise ArgumentError("run: expected at least one folder, found none")
        if len({Path(run).resolve() for run in self.run}) < len(self.run):
            raise ArgumentError(f"run: expected each folder once, found {', '.join(self.run)}")
        _cli.check_range("videos", self.videos, 0)
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)


@dataclass(frozen=True)
class Evaluation:
    """What a model says of the held-out part of its data.

    Attributes:
        rated: Whether segments were rated; else the labels of whole videos are the truth.
        precision: The average precision of every class.
        classes: (R,) of the pairs of an example and a class: rated ones, or the best 20 a video.
        scores: (R,) their logits.
        relevant: (R,) whether they are true.
        ratings: Of every video, by id; empty lists where nothing is rated.
        has_frames: Whether videos have frames, so that there are scores over time.
    """

    rated: bool
    precision: MeanAveragePrecision
    classes: np.ndarray
    scores: np.ndarray
    relevant: np.ndarray
    ratings: Mapping[str, Sequence[Rating]]
    has_frames: bool


@dataclass
class Reported:
    """All that a report shows of a run.

    Attributes:
        folder: Where it lies.
        name: What the report calls it.
        config: Its options.
        log: The lines of its metrics.jsonl.
        is_unfinished: Whether its training can go on.
        parameters: Those of its model; None without weights.
        num_classes: The number of classes C; None without weights.
        class_names: C names, if known.
        numbers: The numbers that the data has for the C classes; None: the same.
        correlation: The label correlation that it used, if any.
        evaluation: None where there is none.
        timelines: Scores of some videos over time.
        missing: Why there is no evaluation.
    """

    folder: Path
    name: str
    config: TrainConfig
    log: list[dict[str, Any]]
    is_unfinished: bool
    parameters: int | None = None
    num_classes: int | None = None
    class_names: Sequence[str] | None = None
    numbers: Sequence[int] | None = None
    correlation: LabelCorrelation | None = None
    evaluation: Evaluation | None = None
    timelines: list[Timeline] = field(default_factory=list)
    missing: str | None = None

    def stages(self) -> dict[str, list[dict[str, Any]]]:
        """Returns the log's lines of every stage that has any, in the order of training."""
        stages: dict[str, list[dict[str, Any]]] = {}
        for line in self.log:
            if line["stage"] != "evaluate" and "step" in line:
                stages.setdefault(line["stage"], []).append(line)
        return stages

    def ends(self) -> dict[str, int]:
        """Returns at which step every stage ended so far, counted from the first stage's start."""
        ends, end = {}, 0
        for stage, lines in self.stages().items():
            end += int(lines[-1]["step"])
            ends[stage] = end
        return ends

    def class_name(self, number: int) -> str:
        """Returns what one of the C classes is called."""
        if self.class_names is None:
            return f"class {self.of_data(number)}"
        return self.class_names[number]

    def of_data(self, number: int) -> int:
        """Returns the number that the data has for one of the C classes."""
        return number if self.numbers is None else self.numbers[number]


class Picture(NamedTuple):
    """A picture of the page.

    Attributes:
        png: A PNG file.
        alt: What it shows, for those who cannot see it.
        caption: How to read it.
        wide: Whether it takes the whole width.
        first: Whether it begins a new row.
    """

    png: bytes
    alt: str
    caption: str = ""
    wide: bool = False
    first: bool = False


class Table(NamedTuple):
    """A table of the page.

    Attributes:
        head: The names of the columns.
        rows: The cells.
        numeric: Columns of numbers.
        colors: Of all columns but the first: the colours of runs.
        summary: What is shown while the table is folded; empty: it never is.
    """

    head: Sequence[str]
    rows: Sequence[Sequence[str]]
    numeric: Sequence[int] = ()
    colors: Sequence[str] = ()
    summary: str = ""


@dataclass
class Section:
    """A section of the page.

    Attributes:
        title: Its heading.
        source: What it shows, and where that is from.
        tables: Its tables.
        pictures: Its pictures.
        missing: What is not there, and why.
    """

    title: str
    source: str
    tables: list[Table] = field(default_factory=list)
    pictures: list[Picture] = field(default_factory=list)
    missing: list[str] = field(default_factory=list)


# What the metrics of an evaluation are called (`rated_metrics`, `label_metrics`).
def read_run(folder: Path, name: str) -> Reported:
    """Returns a run without its evaluation.

    Raises:
        pyseg.errors.UserError: The folder is not a run, or one of its files is damaged.
    """
    kept = Run(folder)
    run = Reported(folder, name, kept.config(), kept.log(), kept.is_unfinished)
    run.correlation = kept.correlation()
    if kept.weights_file.is_file():
        model: Any = kept.model()
        run.parameters = sum(p.numel() for p in model.parameters())
        run.num_classes = model.config.num_classes
        run.class_names = model.config.class_names
        run.numbers = kept.known_classes(model.num_classes)
    return run


def _evaluate(run: Reported, config: ReportConfig) -> None:
    """Adds a run's evaluation and timelines, or why there are none."""
    if not config.evaluate:
        run.missing = "left out with --evaluate false"
        return
    try:
        scorer = Scorer(PredictConfig(str(run.folder), device=config.device))
        collection = open_data(run.config, config.data)
        data = config.data or run.config.data
        classes = check_collection(scorer.model, collection, scorer.run, data)
    except (UserError, DataError, FileNotFoundError) as error:
        if config.data is not None:
            raise
        run.missing = str(error)
        return
    evaluation = _judge(scorer.model, collection, config, classes)
    if not evaluation.precision.positives.any():
        run.missing = f"part {config.part} of its data has no positive rating or label"
        return
    run.evaluation = evaluation
    if config.videos and evaluation.has_frames:
        ratings = evaluation.ratings
        chosen = sorted(ratings, key=lambda id: (*_by_ratings(ratings[id]), id))[: config.videos]
        shards = find_run_shards(run.config, config.data)
        drawn = timelines(scorer, shards, {id: ratings[id] for id in chosen}, _TIMELINE_CLASSES)
        run.timelines = sorted(drawn, key=lambda timeline: chosen.index(timeline.title))


def _by_ratings(ratings: Sequence[Rating]) -> tuple[int, int]:
    """Returns what sorts videos by ratings, most first, then by the number of rated classes."""
    return -len(ratings), -len({rating.number for rating in ratings})


def _judge(
    model: torch.nn.Module,
    collection: Collection,
    config: ReportConfig,
    known: Sequence[int] | None,
) -> Evaluation:
    """Evaluates a model that knows some of a collection's classes, by default all."""
    segments = collection.segments(config.part, cache=False, classes=known)
    rated = segments is not None
    dataset = collection.videos(config.part, classes=known) if segments is None else segments
    num_classes = collection.num_classes if known is None else len(known)
    scored = predictions(model, dataset, batch_size=config.batch_size, progress="evaluate")
    ratings: dict[str, list[Rating]] = {}
    classes: list[np.ndarray] = [np.zeros(0, np.int64)]
    scores: list[np.ndarray] = [np.zeros(0, np.float32)]
    relevant: list[np.ndarray] = [np.zeros(0, bool)]
    complete = MeanAveragePrecisionAtK(num_classes)
    for batch, logits in scored:
        if rated:
            rows, columns, truth = _rated(batch, ratings, known)
        else:
            ratings.update({id: [] for id in batch.ids})
            labels = batch.targets(num_classes).numpy() > 0
            complete.update_dense(logits, labels)
            most = min(_VIDEO_LABELS, logits.shape[1])
            columns = torch.from_numpy(logits).topk(most, dim=1).indices.numpy().ravel()
            rows = np.repeat(np.arange(len(batch)), most)
            truth = labels[rows, columns]
        classes.append(columns)
        scores.append(logits[rows, columns])
        relevant.append(truth)
    pairs = np.concatenate(classes), np.concatenate(scores), np.concatenate(relevant)
    precision = map_at_k(*pairs, num_classes=num_classes) if rated else None
    return Evaluation(
        rated, precision or complete.compute(), *pairs, ratings, collection.level == "frame"
    )


def _rated(
    batch: Batch, ratings: dict[str, list[Rating]], known: Sequence[int] | None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns row, class and truth of a batch's ratings, and adds them to those of the videos."""
    rows = np.repeat(np.arange(len(batch)), batch.offsets.diff().numpy())
    columns = batch.classes.numpy()
    truth = batch.scores.numpy() > 0.5
    for row, number, positive in zip(rows.tolist(), columns.tolist(), truth.tolist(), strict=True):
        video, _, start = batch.ids[row].rpartition(":")
        of_data = number if known is None else known[number]
        ratings.setdefault(video, []).append(Rating(of_data, int(start), positive))
    return rows, columns, truth


def precision_recall(
    scores: np.ndarray, relevant: np.ndarray, positives: int | None = None
) -> tuple[np.ndarray, np.ndarray, np.ndarray]:
    """Returns the precision-recall curve of pairs: a point for every score as a threshold.

    Args:
        scores: (R,) numbers, larger is better.
        relevant: (R,) bool.
        positives: True pairs, where some of them are not among the R; default: the relevant ones.

    Returns:
        Recall, increasing; precision; and the threshold, all (P,), one point for equal scores.

    Example:
        >>> scores, relevant = np.array([0.9, 0.5, 0.5, 0.1]), np.array([True, False, True, False])
        >>> [a.round(2).tolist() for a in precision_recall(scores, relevant)]
        [[0.5, 1.0, 1.0], [1.0, 0.67, 0.5], [0.9, 0.5, 0.1]]
    """
    order = np.argsort(-scores, kind="stable")
    ranked, hits = scores[order], np.cumsum(relevant[order])
    last = np.flatnonzero(np.diff(ranked, append=np.nan) != 0)  # of every run of equal scores
    total = int(relevant.sum()) if positives is None else positives
    return hits[last] / max(total, 1), hits[last] / (last + 1), ranked[last]


def strongest(correlation: LabelCorrelation, nodes: int = GRAPH_NODES) -> list[int]:
    """Returns the labels of the strongest relations, in increasing order.

    Relations are taken by probability, equal ones by the number of the label that says something,
    while there is room for both of their labels.

    Args:
        correlation: The relations.
        nodes: Labels at most.

    Example:
        >>> offsets, columns = torch.tensor([0, 2, 3, 3]), torch.tensor([1, 2, 2])
        >>> strongest(LabelCorrelation(offsets, columns, torch.tensor([0.5, 0.6, 0.9])), 2)
        [1, 2]
    """
    rows, columns = correlation.rows().tolist(), correlation.columns.tolist()
    chosen: set[int] = set()
    for entry in np.argsort(-correlation.values.numpy(), kind="stable").tolist():
        pair = {rows[entry], columns[entry]}
        if len(chosen | pair) > nodes:
            break
        chosen |= pair
    return sorted(chosen)


def _facts(runs: Sequence[Reported], config: ReportConfig) -> Section:
    section = Section(
        "Runs",
        "What was trained on what, from config.yaml, model.json and metrics.jsonl of each run; "
        "options are those that differ from the defaults.",
    )
    rows: list[list[str]] = []

    def add(name: str, values: Iterable[object]) -> None:
        texts = ["–" if value is None else str(value) for value in values]
        if any(text != "–" for text in texts):
            rows.append([name, *texts])

    add("folder", (run.folder for run in runs))
    add("state", map(_state, runs))
    add("data", (run.config.data for run in runs))
    add("classes", (run.num_classes for run in runs))
    add("model", (run.config.trained for run in runs))
    add("parameters", (run.parameters and f"{run.parameters:,}" for run in runs))
    for stage in dict.fromkeys(stage for run in runs for stage in run.stages()):
        add(stage, (_progress(run, stage) for run in runs))
        add(f"after {stage}", (_result(run, stage) for run in runs))
    add("label correlation", (run.correlation and _size(run.correlation) for run in runs))
    default = _options(TrainConfig())
    options = [_options(run.config) for run in runs]
    for name in dict.fromkeys(name for given in options for name in given):
        if any(given.get(name) != default.get(name) for given in options):
            usual = f" (default {default[name]})" if default.get(name) is not None else ""
            add(f"{name}{usual}", (given.get(name) for given in options))
    head = ["", *(run.name for run in runs)]
    colors = [_charts.color(number) for number in range(len(runs))]
    section.tables.append(Table(head, rows, colors=colors))
    return section


def _state(run: Reported) -> str:
    if run.is_unfinished:
        return "unfinished: python -m pyseg.train --resume goes on"
    return "finished" if run.log else "nothing logged"


def _size(correlation: LabelCorrelation) -> str:
    return f"{len(correlation.values):,} relations of {correlation.num_classes:,} labels"


def _options(config: TrainConfig) -> dict[str, Any]:
    """Returns options by their names on the command line, but for those with an own line."""
    options: dict[str, Any] = {}
    for name, value in asdict(config).items():
        if isinstance(value, dict):
            options |= {f"{name}.{key}": inner for key, inner in value.items()}
        elif name not in ("data", "model", "copies", "run", "resume"):
            options[name] = value
    return options


def _progress(run: Reported, stage: str) -> str | None:
    lines = run.stages().get(stage)
    if not lines:
        return None
    step = lines[-1]["step"]
    asked = getattr(run.config, stage, None)
    text = f"{step:,} steps" if asked is None else f"{step:,} of {asked.steps:,} steps"
    rate = next((r for line in reversed(lines) if (r := line.get("examples_per_second"))), None)
    if asked is not None and rate:
        seconds = step * asked.batch_size / rate
        taken = f"{seconds:.0f} s" if seconds < 120 else f"{seconds / 60:.0f} min"
        text += f" of {asked.batch_size} in {taken} ({rate:,.0f} examples/s)"
    skipped = sum(bool(line.get("skipped")) for line in lines)
    return text + (f", {skipped} batches skipped" if skipped else "")


def _result(run: Reported, stage: str) -> str | None:
    """Returns the best evaluation of a stage, whose weights were kept."""
    found = [line for line in run.log if line["stage"] == "evaluate" and line.get("after") == stage]
    if not found:
        return None
    best = max(found, key=lambda line: np.nan_to_num(results.parse(line).score, nan=-1.0))
    at = f"step {best['step']:,}: " if len(found) > 1 and "step" in best else ""
    return at + results.parse(best).describe()


def _learning_curves(runs: Sequence[Reported]) -> Section:
    section = Section(
        "Learning curves",
        "Loss, evaluations on held-out videos and speed while training, from metrics.jsonl.",
    )
    for stage in dict.fromkeys(stage for run in runs for stage in run.stages()):
        curves = [
            curve
            for number, run in enumerate(runs)
            if stage in run.stages() and len((curve := _curve(number, run, {stage: 0}, "loss")).x)
        ]
        if curves:
            section.pictures.append(
                Picture(
                    _charts.draw_curves(f"loss: {stage}", f"step of {stage}", curves, smooth=True),
                    f"Training loss over the steps of {stage}",
                    "Means of some steps (pale) and their moving average.",
                )
            )
    names = {kind.measure: kind.title for kind in results.KINDS}
    borders = [(n, end) for n, run in enumerate(runs) for end in list(run.ends().values())[:-1]]
    dotted = "Dotted: where the next stage begins." if borders else ""
    for metric, name in names.items():
        curves = [
            curve for n, run in enumerate(runs) if len((curve := _evaluations(n, run, metric)).x)
        ]
        if any(len(curve.x) > 1 for curve in curves):  # a single one stands in the table
            picture = _charts.draw_curves(
                f"{name} of held-out videos", "step", curves, marks=True, borders=borders
            )
            section.pictures.append(Picture(picture, f"{name} over steps", dotted))
    curves = [
        curve
        for number, run in enumerate(runs)
        if len((curve := _curve(number, run, _starts(run), "examples_per_second")).x)
    ]
    if curves:
        picture = _charts.draw_curves("examples/s", "step", curves, from_zero=True, borders=borders)
        section.pictures.append(
            Picture(picture, "Examples a second over steps", "Mean since the stage began.")
        )
    empty = [run.name for run in runs if not run.stages()]
    if empty:
        section.missing.append(f"Nothing is logged yet: {', '.join(empty)}.")
    return section


def _starts(run: Reported) -> dict[str, int]:
    """Returns the step, counted from the first stage's start, at which every stage began."""
    ends = run.ends()
    return dict(zip(ends, [0, *ends.values()], strict=False))


def _curve(number: int, run: Reported, starts: Mapping[str, int], key: str) -> Series:
    """Returns a value of the log's lines of some stages over the steps."""
    lines: list[tuple[float, float]] = []
    for stage, start in starts.items():
        if lines:
            lines.append((start, np.nan))  # a gap between the stages
        lines += [(start + line["step"], line[key]) for line in run.stages()[stage] if key in line]
    x, y = np.array(lines, np.float64).reshape(-1, 2).T
    return Series(number, run.name, x, y)


def _evaluations(number: int, run: Reported, metric: str) -> Series:
    starts = _starts(run)
    lines = [
        (starts[line["after"]] + line["step"], line[metric])
        for line in run.log
        if line["stage"] == "evaluate"
        and line.get("after") in starts
        and "step" in line
        and results.kind_of(line).measure == metric
    ]
    x, y = np.array(lines, np.float64).reshape(-1, 2).T
    return Series(number, run.name, x, y)


def _truth(evaluation: Evaluation) -> str:
    return "rated segments" if evaluation.rated else "video labels"


def _comparable(runs: Sequence[Reported]) -> list[list[tuple[int, Reported, Evaluation]]]:
    """Returns evaluated runs with their numbers, those with the same classes and truth together."""
    groups: list[list[tuple[int, Reported, Evaluation]]] = []
    for number, run in enumerate(runs):
        if (own := run.evaluation) is None:
            continue
        for group in groups:
            _, first, other = group[0]
            if (
                own.rated == other.rated
                and first.class_names == run.class_names
                and np.array_equal(own.precision.positives, other.precision.positives)
                and np.array_equal(own.precision.rated, other.precision.rated)
            ):
                group.append((number, run, own))
                break
        else:
            groups.append([(number, run, own)])
    return groups


def _not_evaluated(runs: Sequence[Reported]) -> list[str]:
    return [f"{run.name} was not evaluated: {run.missing}" for run in runs if run.missing]


def _where(config: ReportConfig) -> str:
    which = {"test": "the held-out videos", "train": "the training videos", "all": "all videos"}
    data = "each run's data" if config.data is None else config.data
    return f"{which[config.part]} of {data}"


def _class_precision(runs: Sequence[Reported], config: ReportConfig) -> Section:
    section = Section(
        "Average precision of classes",
        f"How well each class is ranked, evaluated for this page on {_where(config)}; classes "
        "without a positive are left out.",
        missing=_not_evaluated(runs),
    )
    groups = _comparable(runs)
    if len(groups) > 1:
        section.missing.append(
            "The runs were evaluated on different videos or classes: their numbers cannot be "
            "compared where they stand in different charts."
        )
    for group in groups:
        _compare_classes(section, group)
    return section


def _compare_classes(section: Section, group: Sequence[tuple[int, Reported, Evaluation]]) -> None:
    _, first, evaluation = group[0]
    names = [run.name for _, run, _ in group]
    title = ", ".join(names)
    values = np.stack([own.precision.per_class for _, _, own in group])
    positives, rated = evaluation.precision.positives, evaluation.precision.rated
    shown = np.flatnonzero(positives)
    # By precision; of equal ones the class with more positives, which says more, comes first.
    best = shown[np.lexsort((shown, -positives[shown], -values[0, shown]))]
    worst = shown[np.lexsort((shown, -positives[shown], values[0, shown]))]

    def bar(number: int) -> ClassBar:
        return ClassBar(
            first.class_name(number),
            int(positives[number]),
            values[:, number].tolist(),
            positives[number] / rated[number],
        )

    every = len(shown) <= 2 * _BARS
    parts = [best] if every else [best[:_BARS], worst[:_BARS][::-1]]
    which = "all classes" if every else f"the {_BARS} best and the {_BARS} worst classes"
    numbers = [number for number, _, _ in group]
    means = ", ".join(
        f"{name} {value:.4f}"
        for name, value in zip(names, values[:, shown].mean(axis=1).tolist(), strict=True)
    )
    section.pictures.append(
        Picture(
            _charts.draw_class_bars(
                f"AP of {which}",
                "average precision",
                [[bar(c) for c in part.tolist()] for part in parts],
                list(zip(numbers, names, strict=True)),
            ),
            f"Average precision of {which}: {title}",
            f"Mean over {len(shown)} classes: {means}. In brackets: positives. Black: their share, "
            "which a random ranking reaches on average.",
            first=True,
        )
    )
    points = [
        Series(number, name, positives[shown], own.precision.per_class[shown])
        for (number, _, own), name in zip(group, names, strict=True)
    ]
    section.pictures.append(
        Picture(
            _charts.draw_class_points(
                ("AP of every class, best first", "AP and positives of every class"),
                ("classes", f"positive {_truth(evaluation)}"),
                points,
            ),
            f"Average precision of every class, and against its number of positives: {title}",
            "Few positives make an average precision that says little.",
        )
    )
    if len(group) > 1:
        for (number, run, _), own in zip(group[1:], values[1:], strict=True):
            _draw_changes(section, first, (number, run), own - values[0], positives)
    head = ["class", "name", "positives", "of", *(f"AP {name}" for name in names)]
    rows = [
        [
            str(first.of_data(c)),
            first.class_name(c) if first.class_names is not None else "",
            f"{positives[c]:,}",
            f"{rated[c]:,}",
            *(f"{value:.4f}" for value in values[:, c]),
        ]
        for c in best[:_TABLE_ROWS].tolist()
    ]
    which = "All" if len(rows) == len(shown) else f"The best {len(rows)} of"
    section.tables.append(
        Table(
            head,
            rows,
            numeric=(0, *range(2, len(head))),
            summary=f"{which} {len(shown)} classes as a table ({title})",
        )
    )


def _draw_changes(
    section: Section,
    first: Reported,
    other: tuple[int, Reported],
    change: np.ndarray,
    positives: np.ndarray,
) -> None:
    """Adds the classes in which a run differs most from the first one."""
    number, run = other
    shown = np.flatnonzero(positives)
    order = shown[np.lexsort((shown, -change[shown]))]
    up = [c for c in order[:_BARS].tolist() if change[c] > 0]
    down = [c for c in order[-_BARS:].tolist() if change[c] < 0]
    groups = [
        [ClassBar(first.class_name(c), int(positives[c]), [change[c]]) for c in part]
        for part in (up, down)
    ]
    groups = [group for group in groups if group]
    if not groups:
        section.missing.append(f"No class differs between {run.name} and {first.name}.")
        return
    more, less = int((change[shown] > 0).sum()), int((change[shown] < 0).sum())
    section.pictures.append(
        Picture(
            _charts.draw_class_bars(
                "classes that changed most", "change of AP", groups, [(number, run.name)]
            ),
            f"Classes whose average precision differs most between {run.name} and {first.name}",
            f"{run.name} against {first.name}: {more} classes better, {less} worse.",
        )
    )


def _precision_recall(runs: Sequence[Reported], config: ReportConfig) -> Section:
    section = Section(
        "Precision and recall",
        "Precision and recall at every threshold of the probability, of all pairs together "
        f"(micro-averaged) and of the classes with the most positives, on {_where(config)}.",
        missing=_not_evaluated(runs),
    )
    for rated in (True, False):
        group = [
            (number, run, run.evaluation)
            for number, run in enumerate(runs)
            if run.evaluation is not None and run.evaluation.rated == rated
        ]
        if not group:
            continue
        curves, points = [], []
        for number, run, own in group:
            total = int(own.precision.positives.sum())
            curve = precision_recall(own.scores, own.relevant, total)
            point, text = _best_f1(*curve)
            curves.append(Series(number, f"{run.name}: {text}", *_thinned(*curve[:2])))
            points.append(point)
        section.pictures.append(
            Picture(
                _charts.draw_steps("precision, all classes", "recall", curves, points),
                "Micro-averaged precision over recall: " + ", ".join(r.name for _, r, _ in group),
                f"Over {_PAIRS[rated]}. Dot: the best F1, and the probabilities p taken for it.",
            )
        )
    for _, run, own in (group[0] for group in _comparable(runs)):
        positives = own.precision.positives
        most = np.argsort(-positives, kind="stable")[:_CURVES]
        curves = []
        for place, c in enumerate(most[positives[most] > 0].tolist()):
            of_class = own.classes == c
            curve = precision_recall(
                own.scores[of_class], own.relevant[of_class], int(positives[c])
            )
            name = f"{own.precision.per_class[c]:.2f} {run.class_name(c)}"
            curves.append(Series(place, name, *_thinned(*curve[:2])))
        section.pictures.append(
            Picture(
                _charts.draw_steps(f"precision of classes: {run.name}", "recall", curves),
                f"Precision over recall of the classes with the most positives: {run.name}",
                f"{run.name}, over {_PAIRS[own.rated]}; with the average precision of each.",
            )
        )
    return section


def _best_f1(
    recall: np.ndarray, precision: np.ndarray, threshold: np.ndarray
) -> tuple[tuple[float, float], str]:
    """Returns the point of the best F1, and what it is in words."""
    f1 = 2 * recall * precision / np.maximum(recall + precision, 1e-12)
    best = int(f1.argmax())
    probability = 0.5 * (1 + np.tanh(0.5 * float(threshold[best])))  # no overflow
    point = float(recall[best]), float(precision[best])
    return point, f"F1 {f1[best]:.3f} at p ≥ {probability:.2g}"


def _thinned(x: np.ndarray, y: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Returns as many points of a curve as can be told apart, and its first and last one."""
    kept = np.unique(np.linspace(0, len(x) - 1, min(len(x), _CURVE_POINTS)).astype(np.int64))
    return x[kept], y[kept]


def _label_graphs(runs: Sequence[Reported]) -> Section:
    section = Section(
        "Label graph",
        "What a label says of others, P(arrow's end | arrow's start): the strongest relations of "
        "the label correlation that training used, from correlation.npz.",
    )
    drawn: dict[bytes, list[Reported]] = {}
    for run in runs:
        correlation = run.correlation
        if correlation is None:
            section.missing.append(
                f"{run.name} used no label correlation (see --loss.correlation of pyseg.train)."
            )
        elif not len(correlation.values):
            section.missing.append(f"The label correlation of {run.name} has no relation.")
        else:
            parts = (correlation.offsets, correlation.columns, correlation.values)
            key = b"".join(part.numpy().tobytes() for part in parts)
            drawn.setdefault(key, []).append(run)
    for same in drawn.values():
        run, correlation = same[0], same[0].correlation
        assert correlation is not None
        graph = _subgraph(run, correlation)
        names = ", ".join(run.name for run in same)
        shown = (
            f"{graph.number_of_edges():,} of {_size(correlation)}, those between the "
            f"{graph.number_of_nodes()} labels of the strongest ones"
        )
        section.pictures.append(
            Picture(
                _charts.draw_graph(graph),
                f"Label graph of {names}: " + "; ".join(_relations(graph)),
                f"{names}: {shown}. Width: probability; orange: both ways.",
                wide=True,
            )
        )
    return section


def _subgraph(run: Reported, correlation: LabelCorrelation) -> networkx.DiGraph:
    import networkx

    chosen = strongest(correlation)
    # A run that is to be fine-tuned for the rated classes has a model of all classes until then.
    own = run.num_classes == correlation.num_classes
    names = {number: run.class_name(number) if own else f"class {number}" for number in chosen}
    if len(set(names.values())) < len(names):
        names = {number: f"{name} ({number})" for number, name in names.items()}
    graph = correlation.to_networkx().subgraph(chosen)
    copy = networkx.DiGraph()  # in the order of the classes: a subgraph's is that of a set
    copy.add_nodes_from(names[number] for number in chosen)
    for a in chosen:
        for b, weight in correlation.related(a):
            if graph.has_edge(a, b):
                copy.add_edge(names[a], names[b], weight=weight)
    return copy


def _relations(graph: networkx.DiGraph) -> Iterator[str]:
    edges = sorted(graph.edges(data="weight"), key=lambda edge: -edge[2])
    return (f"{a} → {b} {weight:.2f}" for a, b, weight in edges[:10])


def _timelines(runs: Sequence[Reported], config: ReportConfig) -> Section:
    section = Section(
        "Scores over time",
        "Probabilities of every segment, and what raters said, of the videos with the most ratings "
        f"among {_where(config)}; the classes with the highest scores, and the rated ones.",
        missing=_not_evaluated(runs),
    )
    for run in runs:
        if run.evaluation is not None and not run.evaluation.has_frames:
            section.missing.append(f"{run.name}: mean features of whole videos have no time.")
        elif run.evaluation is not None and not run.evaluation.rated:
            section.missing.append(f"{run.name}: no segment is rated; the first videos by id.")
        for timeline in run.timelines:
            section.pictures.append(
                Picture(
                    timeline.picture(),
                    f"Scores of {timeline.title} over time by {run.name}",
                    f"{timeline.title}, by {run.name}" if len(runs) > 1 else "",
                    wide=True,
                )
            )
    return section


def _names(folders: Sequence[Path]) -> list[str]:
    """Returns short names of runs: of their folders, or where these are not enough, their paths."""
    names = [folder.resolve().name for folder in folders]
    return names if len(set(names)) == len(names) else [str(folder) for folder in folders]


def report(config: ReportConfig) -> Path:
    """Writes the page; returns its path.

    Raises:
        pyseg.errors.UserError: A folder is not a run, --data does not fit it, or a package of the
            extra `report` is missing.
        pyseg.errors.RecordError: A record is damaged.
        OSError: The page cannot be written.
    """
    with _charts.report_extra("a report"):
        import jinja2
        import matplotlib
        import networkx
    _cli.check_out("out", config.out)
    distributed.pick_device(config.device)
    folders = [Path(run) for run in config.run]
    runs = [read_run(*pair) for pair in zip(folders, _names(folders), strict=True)]
    for run in runs:
        _evaluate(run, config)
        if run.missing:
            print(f"{run.name} was not evaluated: {run.missing}")
    sections = [
        _facts(runs, config),
        _learning_curves(runs),
        _class_precision(runs, config),
        _precision_recall(runs, config),
        _label_graphs(runs),
        _timelines(runs, config),
    ]
    packages = {"torch": torch, "numpy": np, "matplotlib": matplotlib, "networkx": networkx}
    versions = ", ".join(f"{name} {module.__version__}" for name, module in packages.items())
    environment = jinja2.Environment(autoescape=True, undefined=jinja2.StrictUndefined)
    environment.filters["base64"] = lambda content: base64.b64encode(content).decode()
    template = Path(__file__).with_name("report.html.jinja").read_text(encoding="utf-8")
    page = environment.from_string(template).render(
        title=f"Training report: {', '.join(run.name for run in runs)}",
        subtitle=", ".join(
            dict.fromkeys(f"{run.config.trained} on {run.config.data}" for run in runs)
        ),
        sections=sections,
        versions=(
            f"Made by pyseg {pyseg.__version__} with Python {platform.python_version()}, {versions}"
        ),
    )
    out = folders[0] / "report.html" if config.out is None else Path(config.out)
    with atomic_write(out) as file:
        file.write(page.encode("utf-8", "replace"))
    print(f"report: {out} ({len(page) / 1e6:.1f} MB)")
    return out


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.report``."""
    parser = _cli.make_parser(
        ReportConfig,
        "pyseg.report",
        "Draws what runs have come to, as one HTML page.",
        several={"run": "Run folders that pyseg.train wrote, to compare."},
    )
    report(_cli.parse(parser, ReportConfig, argv))


if __name__ == "__main__":
    _cli.run(main)
