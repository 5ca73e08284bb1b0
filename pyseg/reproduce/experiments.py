"""The data of the experiments, and how models are measured on it.

The segments of YouTube-8M that the paper used are part of 1.5 TB. `open_experiment` offers three
substitutes, each with its own measures:

* ``yt8m``: video-level features of YouTube-8M, where all but one class of every training video is
  hidden. There is no time axis, but the features, the classes and the statistics of the labels are
  the paper's, and the complete labels are known, so that there is a ceiling.
* ``audioset``: frames of AudioSet, weak labels of clips and strong labels of segments: the
  paper's two stages, on a laptop.
* ``sample``: the generated sample, which needs no download.
"""

from __future__ import annotations

import functools
from abc import ABC, abstractmethod
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any, ClassVar, Literal

import numpy as np

from pyseg import _cli
from pyseg._files import atomic_write
from pyseg.config import LossConfig, StageConfig
from pyseg.data import (
    Batch,
    Collection,
    IncompleteVideoDataset,
    RecordDataset,
    open_collection,
    read_label_table,
    read_videos,
    vocabulary,
)
from pyseg.errors import MissingFileError, UserError
from pyseg.evaluate import rank_ratings
from pyseg.labels import Cooccurrence, CooccurrenceCounter, LabelCorrelation, embed_labels
from pyseg.metrics import MeanAveragePrecisionAtK
from pyseg.nn.label_gcn import NODE_SIZE
from pyseg.train._data import count_labels

Part = Literal["test", "validation"]

Scored = Callable[[RecordDataset], Iterable[tuple[Batch, np.ndarray]]]
"""Scores a data set, see `Experiment.measure`."""

FEWEST_POSITIVES = 3
"""Classes with fewer positives are excluded from means: their average precision is unreliable."""

TEST_FRACTION = 0.3
VALIDATION_FRACTION = 0.25  # of the other videos
_TEST_SEED, _VALIDATION_SEED = 0, 1

_PRIOR = 0.002  # a video has about two of the 1,000 labels

_LABEL_LISTS = "labelsets.csv.gz"


@dataclass(frozen=True)
class ModelSpec:
    """A model to train.

    Attributes:
        name: A preset of `pyseg.models`.
        overrides: Its arguments.
        node_features: See `pyseg.config.TrainConfig`.
        graph_threshold: Likewise.
    """

    name: str
    overrides: Mapping[str, Any] = field(default_factory=dict)
    node_features: str | None = None
    graph_threshold: float = 0.0


# The paper's models at a size that two cores train in seconds. Of the three NeXtVLADs the second
# has more clusters, the third half the reduction.
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
    "3NeXtVLAD_Same": ModelSpec("3nextvlad-same", {"branches": [_SMALL] * 3}),
    "3NeXtVLAD_Diff": ModelSpec("3nextvlad-diff", {"branches": _THREE}),
    "3NeXtVLAD_Diff + Attention-GRU": ModelSpec("paper-mixture", {"branches": [*_THREE, _GRU]}),
}


_RANDOM_NODES = {"node_size": 128, "gcn_size": 256, "bias": True}
_LIKE_ML_GCN = {**_RANDOM_NODES, "adjacency": "ml-gcn", "sparse_graph": True}
_WITH_LINEAR = {**_LIKE_ML_GCN, "linear_share": 0.5}
_NO_GRAPH = {"adjacency": "identity"}


def _graph_models(**overrides: Any) -> dict[str, ModelSpec]:
    """Returns the models of table 5: classifiers are learned, made by a GCN, or the sum of both.

    The second one is the paper's form, with what the paper says of it. Beside each graph of label
    embeddings stands the same without one (A = I), which tells what the graph contributes.
    """
    shared = {"clusters": 512, "hidden_size": 256, "batch_norm_momentum": 0.1, **overrides}
    made = functools.partial(ModelSpec, "dbof-gcn")
    embedded = functools.partial(made, node_features="auto")
    return {
        "DBoF": ModelSpec("dbof", {**shared, "head": "logistic"}),
        "DBoF with GCN": made({**shared, **_RANDOM_NODES}),
        "  label embeddings, ML-GCN's graph": embedded({**shared, **_LIKE_ML_GCN}),
        "  label embeddings, A = I": embedded({**shared, **_LIKE_ML_GCN, **_NO_GRAPH}),
        "  W0 + GCN, label embeddings, ML-GCN's graph": embedded({**shared, **_WITH_LINEAR}),
        "  W0 + GCN, label embeddings, A = I": embedded({**shared, **_WITH_LINEAR, **_NO_GRAPH}),
        "  W0 + GCN, random nodes, ML-GCN's graph": made({**shared, **_WITH_LINEAR}),
    }


def with_graph(model: ModelSpec, **overrides: Any) -> ModelSpec:
    """Returns a model to whose linear classifiers a graph of label embeddings adds, as in table 5.

    Args:
        model: The model.
        **overrides: Changes to the graph.
    """
    head = {"head": "gcn", **_WITH_LINEAR, **overrides}
    return replace(model, overrides={**model.overrides, **head}, node_features="auto")


# Beside `nextvlad-small`; branches of a mixture share the normalization of frames.
_UNLIKE_FRAMES = {
    "architectures": {
        "DBoF": _graph_models(normalization="dequantize")["DBoF"],
        "attention GRU": ModelSpec("attention-gru", {k: _GRU[k] for k in _GRU if k != "name"}),
    }
}


class Experiment(ABC):
    """Data with a fixed split and fixed ratings, and the measures of a model on them.

    Args:
        folder: The folder of the data.
        part: The held-out part.

    Attributes:
        name: Its name on the command line.
        description: A sentence about it for the tables.
        measures: What `measure` returns, the decisive one first, with a description of each.
        model: The model of tables 3 and 4.
        architectures: The models of table 2, by the paper's names; none without a time axis.
        graph_models: The models of table 5, the first two by the paper's names.
        unlike: For each difference from `model`, as "architectures", models by name that have it.
        graph_finetune: Their second stage; default: `finetune`.
        pretrain: The first stage, on video labels, if there is one.
        finetune: The second stage, on ratings.
        has_ceiling: Whether there are complete labels to train on.
        has_shares: Whether there are learning curves: training on shares of the videos.
        labels_per_example: The mean number of labels in the training part, if it is known, which a
            method of the table "literature" is told.
        folder: The folder of the data.
        more: A folder of further data, if there is one.
        part: The held-out part.
    """

    name: str
    description: str
    measures: ClassVar[Mapping[str, str]]
    model: ModelSpec
    architectures: ClassVar[Mapping[str, ModelSpec]] = _ARCHITECTURES
    graph_models: ClassVar[Mapping[str, ModelSpec]] = _graph_models()
    unlike: ClassVar[Mapping[str, Mapping[str, ModelSpec]]] = _UNLIKE_FRAMES
    pretrain: StageConfig | None = None
    finetune: StageConfig
    graph_finetune: StageConfig | None = None
    has_ceiling = True
    has_shares = False
    labels_per_example: float | None = None

    def __init__(self, folder: Path, part: Part) -> None:
        self.folder = folder
        self.more: Path | None = None
        self.part = part
        self._collections: dict[tuple[int, bool, float], Collection] = {}

    def shorten(self) -> None:
        """Divides the steps of every stage by four, for a trial."""
        for name in ("pretrain", "finetune", "graph_finetune"):
            stage: StageConfig | None = getattr(self, name)
            if stage is not None:
                setattr(self, name, replace(stage, steps=stage.steps // 4))

    @abstractmethod
    def _open(self, seed: int, complete: bool, share: float) -> Collection:
        """Returns the data with the test videos held out."""

    def collection(self, seed: int, *, complete: bool = False, share: float = 1.0) -> Collection:
        """Returns the data.

        Args:
            seed: Determines which classes of an example are rated, unless the data does.
            complete: Whether examples are rated for all classes.
            share: The share of the videos, by their ids: all that a smaller share has too. Only for
                an experiment with `has_shares`.
        """
        key = seed, complete, share
        if key not in self._collections:  # cached, as a collection may hold its records in memory
            found = self._open(seed, complete, share)
            if self.part == "validation":
                found = found.without_test(VALIDATION_FRACTION, _VALIDATION_SEED)
            self._collections[key] = found
        return self._collections[key]

    @abstractmethod
    def measure(self, scored: Scored, seed: int) -> dict[str, np.ndarray]:
        """Returns the measures of a model on the held-out videos.

        Args:
            scored: Yields the batches of a data set with the model's logits, as
                `functools.partial(pyseg.evaluate.predictions, model)` does.
            seed: See `collection`.

        Returns:
            For each measure, which is a mean over classes, its value for every class, (C,) float64;
            NaN for classes that do not count.
        """

    def training_examples(self, share: float = 1.0) -> int:
        """Returns the number of rated examples in the training part, see `collection`."""
        segments = self.collection(0, share=share).segments("train")
        assert segments is not None
        return sum(1 for _ in segments)

    def correlation(self, classes: Sequence[int], threshold: float) -> LabelCorrelation:
        """Returns P' of some classes, counted on data that the experiment may use.

        Args:
            classes: Classes of the collection.
            threshold: See `pyseg.labels.LabelCorrelation.from_counts`.
        """
        return LabelCorrelation.from_counts(count_labels(self.collection(0)), threshold, classes)

    def loss(self, loss: LossConfig, folder: Path) -> LossConfig:
        """Returns a loss whose correlation is counted on data that the experiment may use.

        Args:
            loss: The loss, with the correlation "auto" if it has one.
            folder: Where a file of the correlation may be written.
        """
        del folder
        return loss

    def node_features(self, model: ModelSpec, folder: Path) -> str | None:
        """Returns node features that are computed from data that the experiment may use.

        Args:
            model: The model, with the node features "auto" if they are to be computed.
            folder: Where a file of them may be written.
        """
        del folder
        return model.node_features


_LAYERS = {"hidden_size": 512, "normalization": "l2", "input_dropout": 0.3, "dropout": 0.6}
_PERCEPTRON = {**_LAYERS, "prior": _PRIOR}


class IncompleteVideos(Experiment):
    """Video-level features of YouTube-8M, with one rated class per training video.

    The classes are the 1,000 whose segments were rated in 2019. Three tenths of the videos are held
    out, the same ones for every seed; a seed determines ratings (`IncompleteVideoDataset`), weights
    and batches. Co-occurrence is counted on the label lists of videos that are in no shard.

    Attributes:
        counts: How often labels occur together, in videos that are in no shard.
        confusable: The label correlation of the rated classes, without a threshold.
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
    model = ModelSpec("mlp", _PERCEPTRON)
    architectures: ClassVar = {}  # means of whole videos have no time axis
    graph_models: ClassVar = _graph_models(clusters=1024, hidden_size=512, prior=_PRIOR)
    unlike: ClassVar = {
        "architectures": {
            "linear": ModelSpec("linear", {"normalization": "l2", "prior": _PRIOR}),
            "perceptron with experts": ModelSpec("mlp", {**_LAYERS, "head": "moe"}),
        },
        "features": {
            name: ModelSpec("mlp-of-feature", {**_PERCEPTRON, "feature": number})
            for number, name in enumerate(("perceptron of rgb", "perceptron of audio"))
        },
    }
    finetune = StageConfig(1600, 1e-3, 128, schedule="cosine")
    graph_finetune = StageConfig(200, 1e-3, 128, schedule="cosine")  # more overtrain
    has_shares = True
    labels_per_example = 1.86  # 1.84 without the validation part

    def __init__(self, folder: Path, part: Part, more: Path | None = None) -> None:
        """Reads the tables.

        Args:
            folder: A folder with ``video_level*`` shards, ``vocabulary.csv``,
                ``segment_vocabulary.csv`` and ``labelsets.csv.gz``.
            part: The held-out part.
            more: A folder with further shards.

        Raises:
            FileNotFoundError: One of them is missing.
            pyseg.errors.DataError: A table is malformed.
        """
        super().__init__(folder, part)
        self._saved: set[Path] = set()
        shards = "video_level*.tfrecord*"
        with _cli.path_option("folder"):
            for name in (_LABEL_LISTS, vocabulary.FILE, vocabulary.SEGMENT_FILE):
                if not (folder / name).is_file():
                    raise MissingFileError(f"{folder / name}: no such file")
            self._opened = open_collection(
                folder / shards, test_fraction=TEST_FRACTION, seed=_TEST_SEED
            )
        self.more = more
        if more is not None:
            with _cli.path_option("more"):
                paths = open_collection(more / shards).video_paths
            self._opened = replace(self._opened, video_paths=(*self._opened.video_paths, *paths))
        self._lists = folder / _LABEL_LISTS
        self._classes = vocabulary.read_segment_vocabulary(folder / vocabulary.SEGMENT_FILE).classes

    @functools.cached_property
    def counts(self) -> Cooccurrence:
        """How often labels occur together, in videos that are in no shard."""
        paths = self._opened.video_paths
        own = {id for path in paths for block in read_videos(path) for id in block.ids}
        counter = CooccurrenceCounter(self._opened.num_classes)
        for lists in read_label_table(self._lists, exclude=own):
            counter.update(lists.offsets, lists.labels)
        return counter.finish()

    @functools.cached_property
    def confusable(self) -> LabelCorrelation:
        """The label correlation of the rated classes, without a threshold."""
        return LabelCorrelation.from_counts(self.counts, 0.0, self._classes)

    def _open(self, seed: int, complete: bool, share: float) -> Collection:
        make = functools.partial(
            IncompleteVideoDataset,
            among=self._classes,
            confusable=self.confusable,
            rating_seed=seed,
            share=share,
        )
        names = self._opened.class_names
        return replace(
            self._opened,
            num_classes=len(self._classes),
            class_names=names and [names[number] for number in self._classes],
            make_videos=functools.partial(make, complete=True),
            make_segments=functools.partial(make, complete=complete),
            segment_paths=self._opened.video_paths,
        )

    def correlation(self, classes: Sequence[int], threshold: float) -> LabelCorrelation:
        """Returns P' of some of the rated classes, see `Experiment.correlation`."""
        numbers = [self._classes[number] for number in classes]
        return LabelCorrelation.from_counts(self.counts, threshold, numbers)

    def loss(self, loss: LossConfig, folder: Path) -> LossConfig:
        """Returns a loss with its correlation in a file, see `Experiment.loss`."""
        if loss.correlation != "auto":
            return loss
        path = folder / f"correlation-{loss.threshold}-{loss.min_support}-{loss.prior}.npz"
        if path not in self._saved:
            counted = LabelCorrelation.from_counts(
                self.counts,
                loss.threshold,
                self._classes,
                min_support=loss.min_support,
                prior=loss.prior,
            )
            counted.save(path)
            self._saved.add(path)
        return replace(loss, correlation=str(path))

    def node_features(self, model: ModelSpec, folder: Path) -> str | None:
        """Returns a file of the label embeddings of the rated classes, see `Experiment`.

        All labels are embedded, since those that are not rated say something about the rated ones.
        """
        if model.node_features != "auto":
            return model.node_features
        size = model.overrides.get("node_size", NODE_SIZE)
        path = folder / f"nodes-{size}.npy"
        if path not in self._saved:
            embedded = embed_labels(self.counts, size)[list(self._classes)]
            with atomic_write(path) as file:
                np.save(file, embedded.numpy())
            self._saved.add(path)
        return str(path)

    def measure(self, scored: Scored, seed: int) -> dict[str, np.ndarray]:
        """Returns what `measures` describes, see `Experiment.measure`."""
        return {"map": complete_precision(scored, self.collection(seed, complete=True))}


class RatedClips(Experiment):
    """AudioSet: weak labels of clips for pretraining, one rated class per segment for fine-tuning.

    Three tenths of the clips are held out, the same ones for every seed; a seed determines ratings
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
    model = ModelSpec("nextvlad-small")
    pretrain = StageConfig(500, 2e-3, 40)
    finetune = StageConfig(300, 1e-3, noise=0.1)

    def __init__(self, folder: Path, part: Part) -> None:
        """Opens the folder, see `pyseg.data.open_collection`.

        Raises:
            FileNotFoundError: A file is missing.
            pyseg.errors.DataError: The folder holds something else.
        """
        super().__init__(folder, part)
        with _cli.path_option("folder"):
            self._opened = open_collection(folder, test_fraction=TEST_FRACTION, seed=_TEST_SEED)
        if self._opened.name != "audioset" or not self._opened.has_segments:
            raise UserError(f"--folder {folder}: expected AudioSet records with strong labels")

    def _open(self, seed: int, complete: bool, share: float) -> Collection:
        make = self._opened.make_segments
        assert make is not None
        rated = None if complete else 1
        options: dict[str, Any] = {"rating_seed": seed, "rated_per_segment": rated}
        return replace(self._opened, make_segments=functools.partial(make, **options))

    def measure(self, scored: Scored, seed: int) -> dict[str, np.ndarray]:
        """Returns what `measures` describes, see `Experiment.measure`."""
        return {
            "map_rated": rated_precision(scored, self.collection(seed)),
            "map_complete": complete_precision(scored, self.collection(seed, complete=True)),
        }


class GeneratedSample(Experiment):
    """The sample of `pyseg.data.sample`; three tenths of its videos are held out.

    Videos and ratings are the same for every seed, which determines weights and batches.
    Co-occurrence is counted on the labels of training videos.
    """

    name = "sample"
    description = "the generated sample, frames, labels of videos, then rated segments"
    measures: ClassVar = {"map_rated": "MAP@100k over the rated pairs of held-out segments"}
    model = ModelSpec("nextvlad-small")
    pretrain = StageConfig(200, 2e-3, 40)
    finetune = StageConfig(200, 1e-3, noise=0.1)
    has_ceiling = False

    def _open(self, seed: int, complete: bool, share: float) -> Collection:
        return open_collection("sample", test_fraction=TEST_FRACTION, seed=_TEST_SEED)

    def measure(self, scored: Scored, seed: int) -> dict[str, np.ndarray]:
        """Returns what `measures` describes, see `Experiment.measure`."""
        return {"map_rated": rated_precision(scored, self.collection(seed))}


def open_experiment(
    name: str, folder: Path, part: Part = "test", more: Path | None = None
) -> Experiment:
    """Returns an experiment.

    Args:
        name: "yt8m", "audioset" or "sample".
        folder: The folder of its data; the sample needs none.
        part: "test", or "validation": a part of the training videos is held out instead, and the
            test videos are not used at all.
        more: A folder with further shards, for "yt8m" alone.

    Raises:
        FileNotFoundError: A file is missing.
        pyseg.errors.DataError: A file is malformed.
        pyseg.errors.UserError: The experiment takes no further shards.
    """
    if name == IncompleteVideos.name:
        return IncompleteVideos(folder, part, more)
    if more is not None:
        raise UserError(f"--more {more}: expected --data yt8m with it, found {name}")
    return {kind.name: kind for kind in (RatedClips, GeneratedSample)}[name](folder, part)


def rated_precision(scored: Scored, collection: Collection) -> np.ndarray:
    """Returns the average precision of each class over the rated pairs of held-out segments.

    Returns:
        (C,) float64, whose mean is MAP@100k; NaN for classes without a positive.
    """
    segments = collection.segments("test")
    assert segments is not None
    ranked = rank_ratings(scored(segments), collection.num_classes)
    return np.where(ranked.positives > 0, ranked.per_class, np.nan)


def complete_precision(scored: Scored, collection: Collection) -> np.ndarray:
    """Returns the average precision of each class over the complete labels of held-out examples.

    Args:
        scored: See `Experiment.measure`.
        collection: The data, whose segments are rated for all classes.

    Returns:
        (C,) float64; NaN for classes with fewer than `FEWEST_POSITIVES` positives.
    """
    segments = collection.segments("test")
    assert segments is not None
    ranking = MeanAveragePrecisionAtK(collection.num_classes)
    for batch, logits in scored(segments):
        ranking.update_dense(logits, batch.targets(collection.num_classes).numpy() > 0.5)
    result = ranking.compute()
    return np.where(result.positives >= FEWEST_POSITIVES, result.per_class, np.nan)
