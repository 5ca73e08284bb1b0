"""Networks that compute the features of frames.

`make_backbone` makes the one that ``--backbone`` of `pyseg.extract` names; `Backbone` is what all
of them are; `register_backbone` adds a kind of your own.
"""

from pyseg.backbones.base import AudioWindows, Backbone
from pyseg.backbones.registry import Request, make_backbone, register_backbone

__all__ = ["AudioWindows", "Backbone", "Request", "make_backbone", "register_backbone"]
