"""What the paper's experiments are done on here: data, and what counts as the truth.

The segments of YouTube-8M that the paper used are a part of 1.5 TB. `open_protocol` offers three
stand-ins, each with its way to measure:

* ``yt8m``: video-level features of YouTube-8M, where all but one class of every training video is
  hidden. There is no time in them, but the features, the classes and the statistics of the labels
  are the paper's, and the complete labels are known: so there is a ceiling.
* ``audioset``: frames of AudioSet, weak labels of clips, strong labels of segments: the paper's two
  stages, at the size of a laptop.
* ``sample``: the generated sample, for people who have neither.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np
from torch import nn

from pyseg.config import LossConfig, StageConfig
from pyseg.data import (
    Collection,
    IncompleteVideoDataset,
    open_collection,
    read_label_table,
    read_videos,
    vocabulary,
)
from pyseg.errors import MissingFileError, UserError
from pyseg.evaluate import evaluate, predictions
from pyseg.labels import Cooccurrence, CooccurrenceCounter, LabelCorrelation
from pyseg.metrics import MeanAveragePrecisionAtK

Part = Literal["test", "validation"]

FEWEST_POSITIVES = 3
"""Classes with fewer positives are left out of a mean: their average precision says little."""

TEST_FRACTION = 0.3
VALIDATION_FRACTION = 0.25  # of what is left
_TEST_SEED, _VALIDATION_SEED = 0, 1

_PRIOR = 0.002  # a video has about two of the 1,000 labels

_LABEL_LISTS = "labelsets.csv.gz"
_VOCABULARY = "vocabulary.csv"
_RATED = "segment_vocabulary.csv"


@dataclass(frozen=True)
class Model:
    """A model of a table.

    Attributes:
        name: A preset of `pyseg.models`.
        overrides: Its arguments.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)


# The paper's models, at a size that two cores train in seconds: of the three NeXtVLADs the second
# has a fifth more clusters, the third half the reduction.
_SMALL = {"name": "nextvlad-small"}
_GRU = {
    "name": "attention-gru",
    "gru_size": 64,
    "attention_size": 32,
    "hidden_size": 128,
    "reduction": 4,
    "dropout": 0.1,
    "batch_norm_momentum": 0.1,
}
_THREE = [_SMALL, {**_SMALL, "clusters": 20}, {**_SMALL, "reduction": 2}]
_ARCHITECTURES = {
    "3NeXtVLAD_Same": Model("3nextvlad-same", {"branches": [_SMALL] * 3}),
    "3NeXtVLAD_Diff": Model("3nextvlad-diff", {"branches": _THREE}),
    "3NeXtVLAD_Diff + Attention-GRU": Model("paper-mixture", {"branches": [*_THREE, _GRU]}),
}


def _graph_models(**overrides: Any) -> dict[str, Model]:
    """Returns the models of table 5: linear classifiers, as they are and made from a graph."""
    shared = {"clusters": 512, "hidden_size": 256, "batch_norm_momentum": 0.1, **overrides}
    return {
        "DBoF": Model("dbof", {**shared, "head": "logistic"}),
        "DBoF with GCN": Model("dbof-gcn", {**shared, "bias": True}),
    }


class Protocol(ABC):
    """Data, split and rated in a fixed way, and how a model is measured on it.

    Args:
        folder: Where the data are.
        part: What is held out.

    Attributes:
        name: What the command line calls it.
        description: What it is, in a sentence for the report.
        measures: What `measure` returns, the one that decides first, and what each is.
        model: The model of tables 3 and 4.
        architectures: The models of table 2, by the paper's names; none where there is no time.
        graph_models: The models of table 5, by the paper's names.
        pretrain: The first stage, on video labels; None: there is none.
        finetune: The second stage, on ratings.
        has_ceiling: Whether there are complete labels to train on.
    """

    name: str
    description: str
    measures: ClassVar[Mapping[str, str]]
    model: Model
    architectures: ClassVar[Mapping[str, Model]] = _ARCHITECTURES
    graph_models: ClassVar[Mapping[str, Model]] = _graph_models()
    pretrain: StageConfig | None = None
    finetune: StageConfig
    has_ceiling = True

    def __init__(self, folder: Path, part: Part) -> None:
        self.folder = folder
        self.part = part
        self._collections: dict[tuple[int, bool], Collection] = {}

    @abstractmethod
    def _all(self, seed: int, complete: bool) -> Collection:
        """Returns the data, split for a test."""

    def collection(self, seed: int, *, complete: bool = False) -> Collection:
        """Returns the data.

        Args:
            seed: Decides which classes of an example are rated, where that is not given.
            complete: Whether examples are rated for all classes.
        """
        key = seed, complete
        if key not in self._collections:  # what one holds in memory is read once
            found = self._all(seed, complete)
            if self.part == "validation":
                found = found.without_test(VALIDATION_FRACTION, _VALIDATION_SEED)
            self._collections[key] = found
        return self._collections[key]

    @abstractmethod
    def measure(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Returns how good a model is on the held-out videos."""

    def loss(self, loss: LossConfig, folder: Path) -> LossConfig:
        """Returns a loss with its correlation counted on what the protocol allows.

        Args:
            loss: With the correlation "auto", where it has one.
            folder: Where a file of it may be written.
        """
        del folder
        return loss


class IncompleteVideos(Protocol):
    """Video-level features of YouTube-8M, of which one class a video is rated.

    The classes are the 1,000 whose segments were rated in 2019. Three tenths of the videos are held
    out, the same ones for every seed; a seed draws ratings (`IncompleteVideoDataset`), weights and
    batches. Co-occurrence is counted on the label lists of videos that are in no shard.
    """

    name = "yt8m"
    description = (
        "YouTube-8M, video-level features, the 1,000 rated classes; one class of a training video "
        "is rated"
    )
    measures: ClassVar = {
        "map": "MAP over the complete labels of held-out videos, over the classes with at least "
        f"{FEWEST_POSITIVES} of them"
    }
    model = Model(
        "mlp",
        {
            "hidden_size": 512,
            "normalization": "l2",
            "input_dropout": 0.3,
            "dropout": 0.6,
            "prior": _PRIOR,
        },
    )
    architectures: ClassVar = {}  # there is no time in means of videos
    graph_models: ClassVar = _graph_models(clusters=1024, hidden_size=512, prior=_PRIOR)
    finetune = StageConfig(1600, 1e-3, 128, schedule="cosine")

    def __init__(self, folder: Path, part: Part) -> None:
        """Reads the tables.

        Args:
            folder: Has ``video_level*`` shards, ``vocabulary.csv``, ``segment_vocabulary.csv`` and
                ``labelsets.csv.gz``.
            part: What is held out.

        Raises:
            FileNotFoundError: One of them is not there.
            pyseg.errors.DataError: A table is malformed.
        """
        super().__init__(folder, part)
        self._saved: set[Path] = set()
        for name in (_LABEL_LISTS, _VOCABULARY, _RATED):
            if not (folder / name).is_file():
                raise MissingFileError(f"{folder / name}: no such file")
        self.opened = open_collection(
            folder / "video_level*.tfrecord*", test_fraction=TEST_FRACTION, seed=_TEST_SEED
        )
        self.lists = folder / _LABEL_LISTS
        self.classes = vocabulary.read_segment_vocabulary(folder / _RATED).classes

    @functools.cached_property
    def counts(self) -> Cooccurrence:
        """How often labels occur together, in videos that are in no shard."""
        paths = self.opened.video_paths
        own = {id for path in paths for block in read_videos(path) for id in block.ids}
        counter = CooccurrenceCounter(self.opened.num_classes)
        for lists in read_label_table(self.lists, exclude=own):
            counter.update(lists.offsets, lists.labels)
        return counter.finish()

    @functools.cached_property
    def confusable(self) -> LabelCorrelation:
        """P of the rated classes."""
        return LabelCorrelation.from_counts(self.counts, 0.0, self.classes)

    def _all(self, seed: int, complete: bool) -> Collection:
        make = functools.partial(
            IncompleteVideoDataset, among=self.classes, confusable=self.confusable, rating_seed=seed
        )
        names = self.opened.class_names
        return replace(
            self.opened,
            num_classes=len(self.classes),
            class_names=names and [names[number] for number in self.classes],
            make_videos=functools.partial(make, complete=True),
            make_segments=functools.partial(make, complete=complete),
            segment_paths=self.opened.video_paths,
        )

    def loss(self, loss: LossConfig, folder: Path) -> LossConfig:
        """Returns a loss with its correlation in a file, see `Protocol.loss`."""
        if loss.correlation != "auto":
            return loss
        path = folder / f"correlation-{loss.threshold}.npz"
        if path not in self._saved:
            counted = LabelCorrelation.from_counts(
                self.counts, loss.threshold, self.classes, min_support=loss.min_support
            )
            counted.save(path)
            self._saved.add(path)
        return replace(loss, correlation=str(path))

    def measure(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Returns MAP, see `measures`."""
        return {"map": complete_map(model, self.collection(seed, complete=True))}


class RatedClips(Protocol):
    """AudioSet: weak labels of clips to pretrain on, one rated class of a segment to fine-tune on.

    Three tenths of the clips are held out, the same ones for every seed; a seed draws ratings
    (`StrongSegmentDataset`), weights and batches. Co-occurrence is counted on the weak labels of
    training clips.
    """

    name = "audioset"
    description = (
        "AudioSet, frames, weak labels of clips, then segments of 5 frames of which one class is "
        "rated"
    )
    measures: ClassVar = {
        "map_rated": "MAP@100k over the rated pairs of held-out segments, as in the challenge",
        "map_complete": "MAP over the complete strong labels of held-out segments, over the "
        f"classes with at least {FEWEST_POSITIVES} of them",
    }
    model = Model("nextvlad-small")
    pretrain = StageConfig(500, 2e-3, 40)
    finetune = StageConfig(300, 1e-3, noise=0.1)

    def __init__(self, folder: Path, part: Part) -> None:
        """Looks at the folder, see `pyseg.data.open_collection`.

        Raises:
            FileNotFoundError: A file is not there.
            pyseg.errors.DataError: The folder holds something else.
        """
        super().__init__(folder, part)
        self.opened = open_collection(folder, test_fraction=TEST_FRACTION, seed=_TEST_SEED)
        if self.opened.name != "audioset" or not self.opened.has_segments:
            raise UserError(f"{folder}: expected AudioSet records with strong labels")

    def _all(self, seed: int, complete: bool) -> Collection:
        make = self.opened.make_segments
        assert make is not None
        rated = None if complete else 1
        options: dict[str, Any] = {"rating_seed": seed, "rated_per_segment": rated}
        return replace(self.opened, make_segments=functools.partial(make, **options))

    def measure(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Returns two kinds of MAP, see `measures`."""
        rated = evaluate(model, self.collection(seed), "test")
        complete = complete_map(model, self.collection(seed, complete=True))
        return {"map_rated": rated.score, "map_complete": complete}


class GeneratedSample(Protocol):
    """The sample of `pyseg.data.sample`; three tenths of its videos are held out.

    They are the same ones for every seed, and so are the ratings; a seed draws weights and batches.
    Co-occurrence is counted on the labels of training videos.
    """

    name = "sample"
    description = "the generated sample, frames, labels of videos, then rated segments"
    measures: ClassVar = {"map_rated": "MAP@100k over the rated pairs of held-out segments"}
    model = Model("nextvlad-small")
    pretrain = StageConfig(200, 2e-3, 40)
    finetune = StageConfig(200, 1e-3, noise=0.1)
    has_ceiling = False

    def _all(self, seed: int, complete: bool) -> Collection:
        return open_collection("sample", test_fraction=TEST_FRACTION, seed=_TEST_SEED)

    def measure(self, model: nn.Module, seed: int) -> dict[str, float]:
        """Returns MAP, see `measures`."""
        return {"map_rated": evaluate(model, self.collection(seed), "test").score}


def open_protocol(name: str, folder: Path, part: Part = "test") -> Protocol:
    """Returns a protocol.

    Args:
        name: "yt8m", "audioset" or "sample".
        folder: Where its data are; the sample needs none.
        part: "test", or "validation": a part of the training videos is held out instead, and the
            test videos are seen by nobody.

    Raises:
        FileNotFoundError: Something is missing in the folder.
        pyseg.errors.DataError: A file is malformed.
    """
    kinds: dict[str, type[Protocol]] = {
        kind.name: kind for kind in (IncompleteVideos, RatedClips, GeneratedSample)
    }
    return kinds[name](folder, part)


def complete_map(model: nn.Module, collection: Collection) -> float:
    """Returns MAP over complete labels of held-out examples.

    Args:
        model: The model.
        collection: Whose "segments" list all classes that are there.

    Returns:
        The mean over the classes with at least `FEWEST_POSITIVES` positives.
    """
    segments = collection.segments("test")
    assert segments is not None
    ranking = MeanAveragePrecisionAtK(collection.num_classes)
    for batch, logits in predictions(model, segments):
        ranking.update_dense(logits, batch.targets(collection.num_classes).numpy() > 0.5)
    result = ranking.compute()
    enough = result.positives >= FEWEST_POSITIVES
    return float(np.mean(result.per_class[enough]))
