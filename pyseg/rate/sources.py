"""What a session starts from: the data's classes, ratings and labels, and what a run knows."""

from __future__ import annotations

import csv
import itertools
import json
import os
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from pyseg._progress import Progress
from pyseg._registry import suggestion
from pyseg._remote import is_file
from pyseg._urls import beside, is_url, parents
from pyseg.data import FeatureSet, ReadReport, find_shards, open_collection, read_frames
from pyseg.data.annotations.interval import check_name
from pyseg.data.collection import find_data
from pyseg.data.formats import frames_of, id_key
from pyseg.data.records import OnError
from pyseg.data.segments import read_segments
from pyseg.data.vocabulary import FILE as VOCABULARY
from pyseg.data.vocabulary import read_vocabulary
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.extract import manifest
from pyseg.labels import LabelCorrelation, count_cooccurrence
from pyseg.predict import PredictConfig, Scorer
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers

THRESHOLD = 0.5
"""Of label correlations that are counted here (eq. 5 of the paper)."""

_LEAST_VIDEOS = 3  # with both labels of a pair that is counted


@dataclass(frozen=True)
class Records:
    """What records say about their videos, besides the frames.

    Attributes:
        data: The records, as the user named them.
        features: The features of a frame.
        ids: The ids of the V videos.
        labels: The numbers of each video's labels.
        ratings: The video, the first frame, the class's number and the score of each rating.
        names: The names of the data's classes, by number; empty where they have none.
        paths: The file that a video's features come from, by id, where that is known.
    """

    data: str
    features: FeatureSet
    ids: list[str]
    labels: list[npt.NDArray[np.int64]]
    ratings: list[tuple[str, int, int, float]]
    names: list[str]
    paths: dict[str, str]

    @staticmethod
    def read(data: str, on_error: OnError = "raise") -> Records:
        """Reads records of frames, with labels and ratings or without.

        Raises:
            pyseg.errors.DataError: The records hold something else, or a file beside them is
                malformed.
            pyseg.errors.RecordError: A record is faulty.
            FileNotFoundError: There is nothing at ``data``.
        """
        place = find_data(data)
        shards = find_shards(place)
        features = frames_of(place, shards, on_error)
        found: dict[str, npt.NDArray[np.int64]] = {}
        ratings: list[tuple[str, int, int, float]] = []
        report = ReadReport()
        with Progress("reading labels", "videos") as bar:
            for shard in shards:
                schema = replace(features.schema, id_key=id_key(shard, features.id_key))
                for record in read_frames(shard, schema, on_error=on_error, report=report):
                    bar.update()
                    if record.id in found:
                        continue
                    found[record.id] = record.labels
                    if record.ratings is not None:
                        columns = zip(*(part.tolist() for part in record.ratings), strict=True)
                        ratings += [(record.id, *row) for row in columns]
        labels = list(found.values())
        return Records(
            data=data,
            features=features,
            ids=list(found),
            labels=labels,
            ratings=ratings,
            names=_names(place, shards, any(map(len, labels)) or bool(ratings), on_error),
            paths=_paths(place),
        )

    def rated(self, pool: Pool) -> Answers:
        """Returns the ratings of the segments and the classes of a pool, the last of each pair."""
        labels = {name: label for label, name in enumerate(pool.class_names)}
        segments: dict[tuple[str, int], int] = {}
        for segment, (video, start) in enumerate(zip(pool.videos, pool.starts, strict=True)):
            segments[pool.ids[video], int(start)] = segment
        scores: dict[tuple[int, int], float] = {}
        for id, start, number, score in self.ratings:
            name = self.names[number] if number < len(self.names) else None
            if name in labels and (id, start) in segments:
                scores[segments[id, start], labels[name]] = score
        pairs = np.array(list(scores), np.int64).reshape(-1, 2)
        return Answers(
            pairs[:, 0],
            pairs[:, 1],
            np.array(list(scores.values()), np.float32),
            np.zeros(len(scores), np.bool_),
        )


def _names(
    place: str | os.PathLike[str], shards: Sequence[str], labelled: bool, on_error: OnError
) -> list[str]:
    """Returns the names of the classes of records."""
    if labelled:
        return list(open_collection(place, on_error=on_error).class_names or ())
    files = (beside(folder, VOCABULARY) for folder in parents(shards[0]))
    path = next(filter(is_file, files), None)
    return [] if path is None else read_vocabulary(path)


def _paths(place: str | os.PathLike[str]) -> dict[str, str]:
    """Returns the files that features were computed from, by id, where a manifest tells."""
    folder = Path(place)
    if is_url(place) or not (folder / manifest.FILE).is_file():
        return {}
    return {id: path for id, path, status in manifest.read_manifest(folder) if status != "skipped"}


def parse_classes(texts: Iterable[str], known: Sequence[str]) -> list[str]:
    """Returns the names in values of ``--classes``, each once.

    A value is the name of a known class, or several names as CSV or as a JSON list.

    Args:
        texts: The values.
        known: The names of known classes, which may have commas.

    Raises:
        pyseg.errors.ArgumentError: A value has no names, or one that no file can hold.

    Example:
        >>> parse_classes(["sun,car", "dog, barking", '["a, b"]', '"c, d",e'], ["dog, barking"])
        ['sun', 'car', 'dog, barking', 'a, b', 'c, d', 'e']
    """
    names: list[str] = []
    for text in texts:
        if text in known:
            names.append(text)
            continue
        try:
            words = json.loads(text) if text.startswith("[") else next(csv.reader([text]))
        except (ValueError, csv.Error, StopIteration, RecursionError):
            words = None
        if not (words and isinstance(words, list) and all(map(_is_word, words))):
            raise ArgumentError(f'classes: expected names as a,b or ["a", "b"], found {text!r:.60}')
        names += [word.strip() for word in words]
    for name in names:
        try:
            check_name("class", name, "")
        except DataError as error:
            raise ArgumentError(f"classes: {error}") from None
    return list(dict.fromkeys(names))


def _is_word(value: object) -> bool:
    return isinstance(value, str) and bool(value.strip())


def unknown_classes(names: Sequence[str], known: Sequence[str]) -> list[str]:
    """Returns lines about classes that neither the data nor a run have, where these have any."""
    new = [name for name in names if name not in known]
    if not known or not new:
        return []
    told = [f"{name}{suggestion(name, known, '{}')}" for name in new[:5]]
    return [f"classes that are new: {', '.join(told)}" + ", ..." * (len(new) > 5)]


@dataclass(frozen=True)
class RunKnowledge:
    """What a run knows of the classes of a pool.

    Attributes:
        names: The names of the run's classes.
        scorer: Scores segments by its model.
    """

    names: list[str]
    scorer: Scorer

    @staticmethod
    def of(run: str, data: str, on_error: OnError, device: str | None) -> RunKnowledge:
        """Opens a run.

        Raises:
            pyseg.errors.UserError: It is no run, it was trained on other features than those of the
                data, or it does not know the names of its classes.
            pyseg.errors.DataError: A file of it is damaged.
        """
        config = PredictConfig(run=run, data=data, on_error=on_error, device=device)
        scorer = Scorer(config)
        names = scorer.classes.every_name
        if names is None:
            raise UserError(
                f"--run {run}: expected a run that knows the names of its classes, found none: "
                "its data need a vocabulary.csv"
            )
        return RunKnowledge(list(names), scorer)

    @property
    def split(self) -> tuple[float, int]:
        """The fraction of the videos that it held out, and the seed of the split."""
        return self.scorer.trained.test_fraction, self.scorer.trained.seed

    def logits(self, pool: Pool) -> npt.NDArray[np.float32]:
        """Returns the logits of the segments of a pool, (S, C); 0 where the run has no such class.

        Raises:
            pyseg.errors.UserError: The run has none of the classes.
            pyseg.errors.RecordError: A record is faulty.
        """
        column = {name: place for place, name in enumerate(self.names)}
        shared = [(label, column[n]) for label, n in enumerate(pool.class_names) if n in column]
        if not shared:
            raise UserError(
                f"--run {self.scorer.run}: expected one of the classes "
                f"{', '.join(pool.class_names[:5])}, found {', '.join(self.names[:5])}, ..."
            )
        labels, columns = map(list, zip(*shared, strict=True))
        firsts = np.searchsorted(pool.videos, np.arange(len(pool.ids)))
        first_of = dict(zip(pool.ids, firsts.tolist(), strict=True))
        logits = np.zeros((len(pool), len(pool.class_names)), np.float32)
        scorer = self.scorer

        def keep(id: str) -> bool:
            return first_of.pop(id, None) is not None

        begin = dict(first_of)
        blocks = read_segments(
            scorer.shards,
            scorer.schema,
            scorer.config.batch_size,
            keep=keep,
            on_error=scorer.config.on_error,
            report=ReadReport(),
        )
        with Progress("scoring with the run", "segments", len(pool)) as bar:
            for block in blocks:
                found = scorer.logits(block)[:, torch.tensor(columns, device=scorer.device)]
                scores = found.cpu().numpy()
                bounds = itertools.pairwise(block.offsets.tolist())
                for id, (start, end) in zip(block.ids, bounds, strict=True):
                    logits[begin[id] : begin[id] + end - start, labels] = scores[start:end]
                bar.update(len(scores))
        return logits

    def correlation(self, class_names: Sequence[str]) -> LabelCorrelation | None:
        """Returns the run's label correlation of some classes, by their names; None: it has none.

        Raises:
            pyseg.errors.DataError: The file is damaged.
        """
        whole = self.scorer.run.correlation()
        if whole is None or whole.num_classes != len(self.names):
            return None
        place = np.full(len(self.names), -1)
        label_of = {name: label for label, name in enumerate(class_names)}
        for column, name in enumerate(self.names):
            place[column] = label_of.get(name, -1)
        rows, columns = place[whole.rows().numpy()], place[whole.columns.numpy()]
        kept = np.flatnonzero((rows >= 0) & (columns >= 0) & (rows != columns))
        order = kept[np.lexsort((columns[kept], rows[kept]))]
        sizes = np.bincount(rows[order], minlength=len(class_names))
        return LabelCorrelation(
            torch.from_numpy(np.concatenate(([0], np.cumsum(sizes)))),
            torch.from_numpy(columns[order]),
            whole.values[torch.from_numpy(order)],
        )


def count_correlation(records: Records, pool: Pool, answers: Answers) -> LabelCorrelation | None:
    """Returns the label correlation of the labels that the data and answers give to videos.

    Args:
        records: The data.
        pool: The segments that answers are about, and the classes.
        answers: All answers and ratings.

    Returns:
        P'; None where no two classes are related.
    """
    labels = {name: label for label, name in enumerate(pool.class_names)}
    session = np.array([labels.get(name, -1) for name in records.names] or [-1], np.int64)
    sets = {
        id: set(session[numbers[numbers < len(session)]].tolist()) - {-1}
        for id, numbers in zip(records.ids, records.labels, strict=True)
    }
    yes = answers.scores > 0.5
    for segment, label in zip(
        answers.segments[yes].tolist(), answers.labels[yes].tolist(), strict=True
    ):
        sets[pool.video_of(segment)].add(label)
    lists = [sorted(found) for found in sets.values() if found]
    if max(map(len, lists), default=0) < 2:
        return None
    offsets = np.cumsum([0, *map(len, lists)])
    flat = np.array([label for found in lists for label in found], np.int64)
    counted = count_cooccurrence(offsets, flat, len(pool.class_names))
    found = LabelCorrelation.from_counts(counted, THRESHOLD, min_support=_LEAST_VIDEOS)
    return found if len(found.values) else None


def files_of(records: Records) -> list[str]:
    """Returns the files that the features were computed from, as far as they are still there."""
    return [path for path in records.paths.values() if os.path.isfile(path)]


def class_names(
    chosen: Sequence[str], in_file: Iterable[str], records: Records, run: RunKnowledge | None
) -> list[str]:
    """Returns the classes to ask about: the chosen ones, or all that are known.

    Args:
        chosen: The values of ``--classes``.
        in_file: The names of the classes in the file of answers.
        records: The data.
        run: The run, if any.

    Raises:
        pyseg.errors.ArgumentError: A value is malformed, or no class is known.
    """
    known = [*records.names, *in_file, *(() if run is None else run.names)]
    names = parse_classes(chosen, known) if chosen else list(dict.fromkeys(known))
    if not names:
        raise ArgumentError(
            "classes: expected the classes to ask about, such as sun,car, as neither "
            f"{records.data} nor the file of answers names any; found none"
        )
    return names
