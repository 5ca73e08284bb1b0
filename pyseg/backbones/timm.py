"""Backbones of the package timm: ``--backbone timm:vit_small_patch14_dinov2``."""

from __future__ import annotations

import math
from typing import Any

from pyseg._extras import requires_package
from pyseg._registry import suggestion
from pyseg.backbones.base import Backbone
from pyseg.backbones.module import ModuleBackbone, load_weights, seeded
from pyseg.backbones.preprocessing import Preprocessing
from pyseg.backbones.registry import Request, register_backbone
from pyseg.errors import ArgumentError


@register_backbone("timm")
def make(request: Request) -> Backbone:
    """Makes a network of timm without its classifier; ``--weights`` is its model.safetensors."""
    with requires_package("timm", f"--backbone {request.name}"):
        import timm
    name = request.argument
    if not timm.is_model(name):
        hint = suggestion(name, timm.list_models(), "{}")
        raise ArgumentError(f"backbone: expected a model of timm, found {name!r}{hint}")
    module: Any = seeded(lambda: timm.create_model(name, pretrained=False, num_classes=0))
    config = timm.data.resolve_model_data_config(module)
    _, height, width = config["input_size"]
    classifier = module.pretrained_cfg.get("classifier") or ()
    heads = (classifier,) if isinstance(classifier, str) else tuple(classifier)
    known = module.state_dict().keys()
    digest = load_weights(
        module,
        request,
        keep=lambda key: key in known or key.rpartition(".")[0] not in heads,
    )
    stretched = config.get("crop_mode") == "squash"
    share = config["crop_pct"]
    preprocessing = Preprocessing(
        (height, width),
        crop=not stretched,
        resize=(math.floor(height / share), math.floor(width / share)),
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )
    return ModuleBackbone(module, preprocessing, request.device, sha256=digest)
