"""Training: losses, stages and their loop, checkpoints, evaluation during training.

`pyseg.train` decides what to train on which data. This package does it, such that a run that is
stopped or killed at any step and then resumed ends with the same weights.
"""

from pyseg.training.log import Log
from pyseg.training.losses import Loss, make_loss, register_loss
from pyseg.training.optimization import Optimization, Step
from pyseg.training.ridge import RidgeRegression, RidgeSolution
from pyseg.training.stages import Stage, StageRun
from pyseg.training.trackers import Tracker, make_tracker, register_tracker
from pyseg.training.trainer import Trainer

__all__ = [
    "Log",
    "Loss",
    "Optimization",
    "RidgeRegression",
    "RidgeSolution",
    "Stage",
    "StageRun",
    "Step",
    "Tracker",
    "Trainer",
    "make_loss",
    "make_tracker",
    "register_loss",
    "register_tracker",
]
