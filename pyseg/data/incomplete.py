"""Videos with a single rated class, made from videos whose labels are complete.

The unrated classes of a YouTube-8M segment are unknown. If ratings are hidden on purpose,
predictions can be compared with the truth. See :class:`IncompleteVideoDataset`.
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from typing import TYPE_CHECKING, Any

import numpy as np

from pyseg.data.batch import Example
from pyseg.data.datasets import VideoDataset
from pyseg.data.hashing import held_out, stable_hash
from pyseg.data.records import ReadReport
from pyseg.data.shards import Paths
from pyseg.errors import ArgumentError

if TYPE_CHECKING:
    from pyseg.labels import LabelCorrelation

POSITIVE_SHARE = 132_442 / 237_788
"""The share of positive ratings in the 2019 release of YouTube-8M."""


_SHARE_SEED = 2  # those of splits are others


class IncompleteVideoDataset(VideoDataset):
    """Video-level features with one rated class per video, as segments of YouTube-8M have.

    With probability `positive_share`, a video is rated 1 for one of its labels, drawn uniformly.
    Otherwise it is rated 0 for a class that is easily confused with them: a label is drawn, and
    then a class that the video does not have, by that label's row of `confusable`. If the row has
    no such class, the rating is positive. The choice depends only on `rating_seed` and the video's
    id. Videos without a label in `among` are left out.

    Args:
        paths: See `RecordDataset`.
        among: The classes of the data set, by their numbers in the records; they are renumbered by
            their position in this list.
        confusable: P of these classes, in this order, with a low threshold.
        complete: Rate all classes instead: an example then has all its labels, with scores of 1.
        positive_share: In [0, 1].
        rating_seed: Another seed draws other classes to rate.
        share: The share of the videos to keep, chosen by their ids; a larger one has the same
            videos and others.
        options: See `VideoDataset`; classes have their new numbers.

    Raises:
        ValueError: `confusable` has another number of classes, or `positive_share` is not in
            [0, 1], or `share` is not.

    Example:
        >>> import os, tempfile
        >>> from pyseg.data import encode_video, write_records
        >>> from pyseg.labels import LabelCorrelation, count_cooccurrence
        >>> path = os.path.join(tempfile.mkdtemp(), "train0000.tfrecord")
        >>> videos = [encode_video(f"{n:04d}", np.zeros(1152), [7, 9]) for n in range(100)]
        >>> write_records(path, videos)
        100
        >>> counted = count_cooccurrence([0, 2, 4], [0, 1, 0, 2], num_classes=3)
        >>> confusable = LabelCorrelation.from_counts(counted, threshold=0.0)
        >>> rated = list(IncompleteVideoDataset(path, [7, 8, 9], confusable, positive_share=0.6))
        >>> sorted({(int(video.classes[0]), float(video.scores[0])) for video in rated})
        [(0, 1.0), (1, 0.0), (2, 1.0)]
    """

    _unrated_examples = False

    def __init__(
        self,
        paths: Paths,
        among: Sequence[int],
        confusable: LabelCorrelation,
        *,
        complete: bool = False,
        positive_share: float = POSITIVE_SHARE,
        rating_seed: int = 0,
        share: float = 1.0,
        **options: Any,
    ) -> None:
        if confusable.num_classes != len(among):
            raise ArgumentError(
                f"confusable: expected {len(among)} classes, found {confusable.num_classes}"
            )
        if not 0 <= positive_share <= 1:
            raise ArgumentError(
                f"positive_share: expected a number in [0, 1], found {positive_share}"
            )
        self._confusable = tuple(
            tensor.numpy() for tensor in (confusable.offsets, confusable.columns, confusable.values)
        )
        self.complete = complete
        self.positive_share = positive_share
        self.rating_seed = rating_seed
        if not 0 <= share <= 1:
            raise ArgumentError(f"share: expected a number in [0, 1], found {share}")
        self.share = share
        self._places = {number: place for place, number in enumerate(among)}
        super().__init__(paths, **options)

    def _read(
        self, path: str, shard: tuple[int, int], report: ReadReport
    ) -> Iterator[tuple[str, Example]]:
        for id, example in super()._read(path, shard, report):
            labels = (self._places.get(label) for label in example.classes.tolist())
            present = np.array([label for label in labels if label is not None], np.int64)
            if not len(present) or not held_out(id, self.share, _SHARE_SEED):
                continue
            if self.complete:
                classes, scores = present, np.ones(len(present), np.float32)
            else:
                rated, score = self._rate(id, present)
                classes, scores = np.array([rated]), np.array([score], np.float32)
            yield id, example._replace(classes=classes, scores=scores)

    def _rate(self, id: str, present: np.ndarray) -> tuple[int, float]:
        """Returns the rated class of a video, and its score."""
        random = np.random.default_rng(stable_hash(id, self.rating_seed))
        positive = random.random() < self.positive_share
        label = int(random.choice(present))
        offsets, columns, values = self._confusable
        row = slice(offsets[label], offsets[label + 1])
        absent = ~np.isin(columns[row], present)
        if positive or not absent.any():
            return label, 1.0
        chances = values[row][absent].astype(np.float64)
        return int(random.choice(columns[row][absent], p=chances / chances.sum())), 0.0
