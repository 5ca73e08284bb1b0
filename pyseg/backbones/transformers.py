"""Backbones of the package transformers: ``--backbone transformers:FOLDER``."""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import Any

from torch import Tensor

from pyseg._containers import read_json, text_error
from pyseg._extras import requires_package
from pyseg.backbones.base import Backbone
from pyseg.backbones.module import (
    RANDOM,
    ModuleBackbone,
    file_digest,
    seeded,
    state_digest,
)
from pyseg.backbones.preprocessing import MEAN, STD, Preprocessing, parse_preprocessing
from pyseg.backbones.registry import Request, register_backbone
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError

_PROCESSOR = "preprocessor_config.json"
_POOLER = "pooler."


@register_backbone("transformers")
def make(request: Request) -> Backbone:
    """Loads a folder that ``save_pretrained`` wrote, with model.safetensors.

    The features are those of ``get_image_features`` where the model has it (CLIP, SigLIP), else the
    pooled output, else the mean of the last hidden state. No code in the folder is run.
    """
    folder = Path(request.argument)
    if not (folder / "config.json").is_file():
        raise MissingFileError(
            f"--backbone {request.name}: expected a folder with config.json, found none"
        )
    if request.weights not in (None, RANDOM):
        raise ArgumentError(
            f"weights: expected none, as {folder} holds them, or random; found {request.weights}"
        )
    preprocessing = read_processor(folder / _PROCESSOR)
    with requires_package("transformers", f"--backbone {request.name}"):
        from transformers import AutoConfig, AutoModel
    local: dict[str, Any] = {"local_files_only": True, "trust_remote_code": False}
    missing: list[str] = []
    try:
        if request.weights == RANDOM:
            config = AutoConfig.from_pretrained(folder, **local)
            module: Any = seeded(lambda: AutoModel.from_config(config))
            digest = state_digest(module.state_dict())
        else:
            module, info = AutoModel.from_pretrained(
                folder, use_safetensors=True, output_loading_info=True, **local
            )
            missing = sorted(info["missing_keys"])
            digest = file_digest(*sorted(folder.glob("*.safetensors")))
    except ImportError as error:  # transformers imports a model's code when it is used
        raise UserError(
            f"--backbone {request.name}: transformers cannot import the model: {text_error(error)}"
        ) from error
    except (OSError, ValueError, RuntimeError, KeyError) as error:
        raise DataError(
            f"{folder}: expected a model of transformers with .safetensors weights, found: "
            f"{text_error(error)}"
        ) from error
    if wrong := [key for key in missing if not key.startswith(_POOLER)]:
        raise DataError(f"{folder}: expected the weights of the model, found none of {wrong[0]}")
    module.eval()
    pooled = not missing

    def forward(images: Tensor) -> Any:
        return _features(module, images.to(module.dtype), pooled)

    return ModuleBackbone(module, preprocessing, request.device, sha256=digest, forward=forward)


def _features(module: Any, images: Tensor, pooled: bool) -> Any:
    """Returns the features (B, N) of images."""
    if hasattr(module, "get_image_features"):
        found = module.get_image_features(pixel_values=images)
    else:
        found = module(pixel_values=images)
    if isinstance(found, Tensor):
        return found
    output = getattr(found, "pooler_output", None) if pooled else None
    if output is None:
        output = found.last_hidden_state
        output = output.flatten(2).mean(2) if output.ndim == 4 else output.mean(1)
    return output.flatten(1)


def read_processor(path: Path) -> Preprocessing:
    """Returns the preprocessing that transformers stores in preprocessor_config.json.

    Raises:
        pyseg.errors.DataError: It is something else; the message names the file.
        pyseg.errors.MissingFileError: There is no such file.
    """
    if not path.is_file():
        raise MissingFileError(f"{path}: expected how images are preprocessed, found no such file")
    content = read_json(path)
    if not isinstance(content, Mapping):
        raise DataError(f"{path}: expected a JSON object, found {type(content).__name__}")
    resize, shortest = _size(content.get("size"))
    size, _ = _size(content.get("crop_size")) if content.get("do_center_crop") else (None, False)
    crops = shortest or size is not None
    if resize is not None and "crop_pct" in content and size is None:  # of ConvNeXt
        size, crops = resize, True
        height, width = resize
        resize = (int(height / content["crop_pct"]), int(width / content["crop_pct"]))
    given: dict[str, Any] = {
        "size": size or resize,
        "resize": resize or size,
        "crop": crops,
        "mean": content.get("image_mean", MEAN),
        "std": content.get("image_std", STD),
        "scale": content.get("rescale_factor", 1 / 255),
    }
    if not content.get("do_normalize", True):
        given |= {"mean": (0.0,) * 3, "std": (1.0,) * 3}
    if not content.get("do_rescale", True):
        given["scale"] = 1.0
    return parse_preprocessing(given, str(path))


def _size(value: Any) -> tuple[Any, bool]:
    """Returns (H, W) of an entry, and whether it is only the shortest edge that has this length."""
    if isinstance(value, int):
        return (value, value), True
    if not isinstance(value, Mapping):
        return None, False
    if "shortest_edge" in value:
        return (value["shortest_edge"],) * 2, True
    return (value.get("height"), value.get("width")), False
