"""Scores of all segments: ``python -m pyseg.predict --run <folder> --data <...>``.

Every video is cut into segments of the length that the model was trained on (YouTube-8M: five
frames). All of them are scored, and the best 100,000 of each class are written as a submission of
the YouTube-8M segment challenge (`pyseg.submission`).

With ``--video ID --timeline out.png`` the command draws the scores of one video over time instead;
with ``--video_file a.mp4`` it computes the features of a video file, and prints and exports when
classes occur in it. `Predictor` does so from Python.

While it runs, its state is saved in ``<out>.partial``: after an interruption the same command
resumes there. Only one command at a time works in that folder.

Under torchrun the shards are divided among the processes, each of which saves its state in a
subfolder of its own; the first process merges them (`pyseg.distributed`).
"""

from pyseg.predict.cli import main
from pyseg.predict.config import PredictConfig
from pyseg.predict.predictor import Predictor
from pyseg.predict.ranking import predict
from pyseg.predict.scorer import Scorer
from pyseg.predict.videos import file_timelines, timeline, timelines

__all__ = [
    "PredictConfig",
    "Predictor",
    "Scorer",
    "file_timelines",
    "main",
    "predict",
    "timeline",
    "timelines",
]
