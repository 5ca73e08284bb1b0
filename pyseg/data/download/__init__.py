"""Fetches YouTube-8M: ``python -m pyseg.data download --subset segment --partition validate``.

YouTube-8M is published on three mirrors as one plan per partition, which lists its shards with
their MD5 checksums, and the shards themselves, together with a script that fetches them
(https://research.google.com/youtube8m/download.html):

=========  ===========================  ========================================================
subset     partitions                   on the server
=========  ===========================  ========================================================
frame      train, validate, test        2/frame/...: frame features, release of 2018, 1.5 TB
video      train, validate, test        2/video/...: their means over each video
segment    validate, test               3/frame/...: frames with rated segments, release of 2019
=========  ===========================  ========================================================

Shards are written to ``<folder>/<subset>-<partition>/`` under the names that the script gives them
(``trainaa.tfrecord`` becomes ``train0000.tfrecord``); an existing one with its published name keeps
it. A shard appears under its name when it is complete and has the plan's checksum; until then it is
``<name>.part``, which the next try, or the next run, continues. The servers use plain HTTP: the
checksums protect against damage, not against forgery.

Source: the script, http://data.yt8m.org/download.py, takes a partition in three parts, such as
2/video/train; its plan is http://data.yt8m.org/<1>/download_plans/<2>_<3>.json, and a shard
http://<mirror>.data.yt8m.org/<1>/<2>/<3>/<name>, for every release. The source for the partitions
of 2019, 3/frame/validate and 3/frame/test, and for the places of both vocabularies is
https://medium.com/google-cloud/youtube-8m-dataset-c2ee9c79d136.
"""

from pyseg.data.download.config import DownloadConfig
from pyseg.data.download.fetch import DownloadReport, download, main
from pyseg.data.download.plan import Shard, read_plan

__all__ = ["DownloadConfig", "DownloadReport", "Shard", "download", "main", "read_plan"]
