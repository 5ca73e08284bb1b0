"""YouTube-8M: its two formats, frames with rated segments and mean features of whole videos.

The schemas of `pyseg.data.records` have its features as defaults.
"""

from __future__ import annotations

import os
import re

from pyseg._urls import split
from pyseg.data.collection import Collection, open_records
from pyseg.data.features import FeatureSet
from pyseg.data.formats import Format, Found, OpenOptions
from pyseg.data.records import FrameSchema, VideoSchema

NUM_CLASSES = 3862  # labels of videos since the release of 2018
FEATURE_SIZES = (1024, 128)


def is_train(path: str) -> bool:
    """Returns whether a file is of the published train partition, by its name or its folder's.

    Example:
        >>> is_train("yt8m/train0093.tfrecord"), is_train("yt8m/trailers.tfrecord")
        (True, False)
    """
    folder, name = split(path)
    # Shards are named train0000 and so on, in the first releases train and two letters or digits.
    shard = re.match(r"train([^A-Za-z]|[\w-]{2}\.)", name)
    return bool(shard or re.match(r"train(ing)?(?![A-Za-z])", os.path.basename(folder)))


def _open(found: Found, options: OpenOptions) -> Collection:
    """Opens records; those of other widths, which are not YouTube-8M's, must have a vocabulary."""
    published = found.features.feature_sizes == FEATURE_SIZES
    return open_records(
        found,
        options,
        name="youtube8m",
        num_classes=NUM_CLASSES if published else None,
        is_train=is_train,
    )


VIDEOS = Format(
    "youtube8m-videos",
    "YouTube-8M mean features (mean_rgb, mean_audio)",
    FeatureSet(VideoSchema().features),
    _open,
    level="video",
)
FRAMES = Format(
    "youtube8m", "YouTube-8M frames (rgb, audio)", FeatureSet(FrameSchema().features), _open
)
