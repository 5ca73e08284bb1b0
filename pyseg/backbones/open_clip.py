"""Image towers of the package open_clip: ``--backbone open_clip:ViT-B-32``."""

from __future__ import annotations

from typing import Any

from pyseg._extras import requires_package
from pyseg._registry import suggestion
from pyseg.backbones.base import Backbone
from pyseg.backbones.module import ModuleBackbone, load_weights, seeded
from pyseg.backbones.preprocessing import Preprocessing
from pyseg.backbones.registry import Request, register_backbone
from pyseg.errors import ArgumentError

_TOWER = "visual."


@register_backbone("open_clip")
def make(request: Request) -> Backbone:
    """Makes a network of open_clip; ``--weights`` is its open_clip_model.safetensors.

    The features are those that are compared with texts, not normalized.
    """
    with requires_package("open_clip", f"--backbone {request.name}", "open_clip_torch"):
        import open_clip
    name = request.argument
    if name not in open_clip.list_models():
        hint = suggestion(name, open_clip.list_models(), "{}")
        raise ArgumentError(f"backbone: expected a model of open_clip, found {name!r}{hint}")
    if "hf_model_name" in open_clip.get_model_config(name)["text_cfg"]:
        raise ArgumentError(
            f"backbone: expected a model that needs no download, found {name}, whose text tower "
            "does"
        )

    def tower() -> Any:
        return open_clip.create_model(name, pretrained=None, pretrained_text=False).visual

    visual: Any = seeded(tower)
    digest = load_weights(visual, request, prefix=_TOWER)
    config = visual.preprocess_cfg
    if (mode := config["resize_mode"]) not in ("shortest", "squash"):
        raise ArgumentError(
            f"backbone: expected a model that crops or stretches images, found {name}, whose "
            f"resize_mode is {mode}"
        )
    size = config["size"]
    preprocessing = Preprocessing(
        (size, size) if isinstance(size, int) else tuple(size),
        crop=mode == "shortest",
        mean=tuple(config["mean"]),
        std=tuple(config["std"]),
    )

    def forward(images: Any) -> Any:
        found = visual(images)
        return found[0] if isinstance(found, tuple) else found

    return ModuleBackbone(visual, preprocessing, request.device, sha256=digest, forward=forward)
