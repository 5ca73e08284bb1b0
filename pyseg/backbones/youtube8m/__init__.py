"""``--backbone youtube8m``: YouTube-8M's features; see `YouTube8M`."""

from pyseg.backbones.youtube8m.backbone import YouTube8M

__all__ = ["YouTube8M"]
