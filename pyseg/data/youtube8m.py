"""YouTube-8M: its two formats, frames with rated segments and mean features of whole videos.

The schemas of `pyseg.data.records` have its features as defaults.
"""

from __future__ import annotations

import functools
import os
import re

from pyseg.data.collection import open_records
from pyseg.data.formats import Format
from pyseg.data.records import FrameSchema, VideoSchema

NUM_CLASSES = 3862  # labels of videos since the release of 2018


def is_train(path: str) -> bool:
    """Returns whether a file is of the published train partition, by its name or its folder's.

    Example:
        >>> is_train("yt8m/train0093.tfrecord"), is_train("yt8m/trailers.tfrecord")
        (True, False)
    """
    folder, name = os.path.split(path)
    # Shards are named train0000 and so on, in the first releases train and two letters or digits.
    shard = re.match(r"train([^A-Za-z]|[\w-]{2}\.)", name)
    return bool(shard or re.match(r"train(ing)?(?![A-Za-z])", os.path.basename(folder)))


_open = functools.partial(
    open_records, name="youtube8m", num_classes=NUM_CLASSES, is_train=is_train
)
VIDEOS = Format(
    "youtube8m-videos", "YouTube-8M mean features (mean_rgb, mean_audio)", VideoSchema(), _open
)
FRAMES = Format("youtube8m", "YouTube-8M frames (rgb, audio)", FrameSchema(), _open)
