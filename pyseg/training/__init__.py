"""Training: losses, stages and their loop, checkpoints, evaluation on the way.

`pyseg.train` decides what is trained on what. This package carries it out, such that a run that is
stopped or killed at any step and then resumed ends with the same weights.
"""

from pyseg.training.identity import flat_options
from pyseg.training.log import Log, summary_writer
from pyseg.training.losses import Loss, make_loss, register_loss
from pyseg.training.stages import Stage, StageRun, Step
from pyseg.training.trainer import Trainer

__all__ = [
    "Log",
    "Loss",
    "Stage",
    "StageRun",
    "Step",
    "Trainer",
    "flat_options",
    "make_loss",
    "register_loss",
    "summary_writer",
]
