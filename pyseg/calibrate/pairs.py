"""Rated pairs of a segment and a class, of videos that a run was not trained on."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from pyseg._progress import Progress
from pyseg._registry import unknown
from pyseg._text import counted
from pyseg.calibrate.config import CalibrateConfig
from pyseg.data import Collection, ReadReport
from pyseg.data.annotations import Annotations, Settled, settle
from pyseg.data.annotations.answers import RANDOM, interval_of, read_answers
from pyseg.data.collection import Split
from pyseg.data.formats import id_key
from pyseg.data.records import read_frames
from pyseg.data.segments import SegmentBlock, read_segments
from pyseg.errors import DataError, UserError
from pyseg.evaluate import check_collection, predictions
from pyseg.predict import Scorer
from pyseg.runs import check_held_out, holds_out, is_own, open_data

_MOST_SEGMENTS = 20_000
_MOST_SCORES = 20_000_000


@dataclass
class RatedPairs:
    """Rated pairs, in parts, and what they are.

    Attributes:
        logits: Arrays of logits.
        labels: The columns of their classes in the logits.
        scores: Their ratings.
        groups: The numbers of their videos.
        source: What they are, in words after their number.
        is_sample: Whether they were drawn at random.
        left_out: What was left out, in words.
    """

    logits: list[np.ndarray] = field(default_factory=list)
    labels: list[np.ndarray] = field(default_factory=list)
    scores: list[np.ndarray] = field(default_factory=list)
    groups: list[np.ndarray] = field(default_factory=list)
    source: str = ""
    is_sample: bool = False
    left_out: list[str] = field(default_factory=list)

    def __len__(self) -> int:
        """Returns the number of pairs R."""
        return sum(map(len, self.labels))

    def add(
        self, logits: np.ndarray, labels: np.ndarray, scores: np.ndarray, groups: np.ndarray
    ) -> None:
        """Adds some pairs."""
        self.logits.append(logits)
        self.labels.append(labels)
        self.scores.append(scores)
        self.groups.append(groups)

    def arrays(self) -> dict[str, np.ndarray]:
        """Returns all pairs, as the arguments of `pyseg.calibration.Calibration.fit`."""
        parts = {name: getattr(self, name) for name in ("logits", "labels", "scores", "groups")}
        return {name: np.concatenate(part) if part else np.zeros(0) for name, part in parts.items()}


class HeldOut:
    """The videos that a run was not trained on.

    Args:
        config: The options.
        scorer: Scores segments with the run's model.

    Attributes:
        data: The records.
        report: The problems of the last pass over them.

    Raises:
        pyseg.errors.UserError: There is none, or the data does not fit the run.
    """

    def __init__(self, config: CalibrateConfig, scorer: Scorer) -> None:
        self.config, self.scorer = config, scorer
        self.data = config.data or scorer.trained.data
        self._check()
        self._collection = self._open()
        self._split = self._find_split()
        self.report = ReadReport()

    def _check(self) -> None:
        """Checks that the videos of the options were not trained on."""
        config, scorer = self.config, self.scorer
        if config.part == "test":
            check_held_out(scorer.run, config.data, scorer.shards)
        elif is_own(scorer.trained, config.data, scorer.shards):
            other = " or --part test" if holds_out(scorer.trained) else ""
            raise UserError(
                f"--part {config.part}: expected --data of other videos{other}, as the run was "
                "trained on these"
            )

    def _open(self) -> Collection | None:
        """Returns the collection; None where its records are not labeled."""
        config = self.config
        try:
            return open_data(
                self.scorer.trained, config.data, config.labels, config.on_error, config.vocabulary
            )
        except DataError:
            if config.ratings is None:
                raise
            return None

    def _find_split(self) -> Split | None:
        config, trained = self.config, self.scorer.trained
        if self._collection is not None:
            return self._collection.split(config.part)
        if config.part == "all":
            return None
        return Split(config.part, trained.test_fraction, trained.seed)

    @property
    def _name(self) -> str:
        return "held-out videos" if self.config.part == "test" else f"videos of {self.data}"

    def rated_segments(self) -> RatedPairs:
        """Returns the rated pairs of the data.

        Raises:
            pyseg.errors.UserError: The data has no rated segments, or does not fit the run.
            pyseg.errors.RecordError: A record is damaged.
        """
        assert self._collection is not None
        model: Any = self.scorer.model
        classes = check_collection(model, self._collection, self.scorer.run, self.data)
        segments = self._collection.segments(self.config.part, classes=classes, cache=False)
        if segments is None:
            raise UserError(
                f"{self.data}: expected rated segments, found none: name a file with --ratings"
            )
        pairs = RatedPairs(source=f"ratings of {self._name}")
        numbers: dict[str, int] = {}
        scored = predictions(
            model,
            segments,
            batch_size=self.config.batch_size,
            progress="ratings",
            precision=self.config.precision,
            tf32=self.config.tf32,
        )
        for batch, logits in scored:
            rows = np.repeat(np.arange(len(batch)), batch.offsets.diff().numpy())
            labels = batch.classes.numpy()
            videos = [id.rpartition(":")[0] for id in batch.ids]
            groups = np.array([numbers.setdefault(video, len(numbers)) for video in videos])
            pairs.add(logits[rows, labels], labels, batch.scores.numpy(), groups[rows])
        return pairs

    def answers(self, path: str) -> RatedPairs:
        """Returns the rated pairs of a file of answers; of several raters, what they say together.

        In a file with reasons only random questions count.

        Raises:
            pyseg.errors.UserError: The model does not know one of the classes.
            pyseg.errors.DataError: The file is malformed; the message names file and line.
            pyseg.errors.RecordError: A record is damaged.
        """
        settled = [found for found in settle(read_answers(path)[0]) if not found.tied]
        has_reasons = any(found.reason for found in settled)
        chosen = [f for f in settled if f.reason == RANDOM] if has_reasons else settled
        what = "random answers" if has_reasons else "ratings"
        pairs = RatedPairs(source=f"{what} about {self._name}", is_sample=has_reasons)
        if others := len(settled) - len(chosen):
            pairs.left_out.append(f"{counted(others, 'answer')} to questions that were not random")
        column = self._columns(chosen, path)
        annotations = Annotations.match(
            self._ids(), [interval_of(found, path) for found in chosen], on_error="skip"
        )
        pairs.left_out += annotations.notes
        rated = {id for id, some in annotations.intervals.items() if some}
        seen: set[str] = set()
        for block in self._blocks("answers", rated):
            [id] = block.ids
            number = len(seen)
            seen.add(id)
            found = annotations.of_segments(id, len(block.videos[0]), self.scorer.features).scores
            rows = np.array([row for row, _ in found])
            labels = np.array([column[name] for _, name in found])
            logits = self.scorer.logits(block).cpu().numpy()
            scores = np.array(list(found.values()))
            pairs.add(logits[rows, labels], labels, scores, np.full(len(rows), number))
        unseen = rated - seen
        if left := sum(len(annotations.intervals[id]) for id in unseen):
            pairs.left_out.append(
                f"{counted(left, 'answer')} about videos that the run was trained on"
            )
        return pairs

    def _columns(self, answers: list[Settled], path: str) -> Mapping[str, int]:
        """Returns the column of each class, by name; checks those of answers."""
        every = self.scorer.classes.every_name
        names = map(str, self.scorer.classes.column) if every is None else every
        column = {name: at for at, name in enumerate(names)}
        for answer in answers:
            if answer.name not in column:
                raise UserError(
                    f"{path}, line {answer.line}: {unknown('class', answer.name, column)}"
                )
        return column

    def _ids(self) -> list[str]:
        """Returns the ids of all videos of the data."""
        schema, ids = self.scorer.schema, []
        for path in self.scorer.shards:
            known = replace(schema, id_key=id_key(path, schema.id_key))
            skip = self.scorer.config.on_error
            # The next pass reports what is wrong with the records.
            frames = read_frames(path, known, max_frames=1, on_error=skip, report=ReadReport())
            ids += [record.id for record in frames]
        return ids

    def _blocks(self, title: str, only: set[str] | None = None) -> Iterator[SegmentBlock]:
        """Yields the segments of one held-out video after another."""
        self.report = ReadReport()
        with Progress(title, "videos") as bar:
            for path in self.scorer.shards:
                keep = functools.partial(self._keeps, path, only)
                for block in read_segments(
                    [path],
                    self.scorer.schema,
                    1,
                    keep=keep,
                    report=self.report,
                    on_error=self.scorer.config.on_error,
                ):
                    if len(block.frames):
                        yield block
                    bar.update(1)

    def _keeps(self, path: str, only: set[str] | None, id: str) -> bool:
        return (only is None or id in only) and (self._split is None or self._split(path, id))

    def segments(self) -> np.ndarray:
        """Returns the logits (S, C) of segments, rated or not, of the first videos.

        Raises:
            pyseg.errors.RecordError: A record is damaged.
        """
        most = min(_MOST_SEGMENTS, _MOST_SCORES // self.scorer.model.num_classes)
        found, count = [], 0
        for block in self._blocks("thresholds"):
            found.append(self.scorer.logits(block).cpu().numpy())
            count += len(found[-1])
            if count >= most:
                break
        return np.concatenate(found)
