"""Networks that compute the features of frames.

`make_backbone` makes the one that ``--backbone`` of `pyseg.extract` names; all of them are a
`pyseg.backbones.Backbone`; `register_backbone` adds a kind of your own.
"""

from pyseg.backbones import module, onnx, open_clip, pt2, timm, transformers
from pyseg.backbones.base import AudioWindows, Backbone
from pyseg.backbones.module import ModuleBackbone
from pyseg.backbones.preprocessing import Preprocessing
from pyseg.backbones.registry import Request, find_backbone, make_backbone, register_backbone
from pyseg.backbones.youtube8m import YouTube8M

__all__ = [
    "AudioWindows",
    "Backbone",
    "ModuleBackbone",
    "Preprocessing",
    "Request",
    "YouTube8M",
    "find_backbone",
    "make_backbone",
    "module",
    "onnx",
    "open_clip",
    "pt2",
    "register_backbone",
    "timm",
    "transformers",
]
