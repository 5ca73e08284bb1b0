"""Backbones of packages that users install: skipped where these are missing or do not work."""

from __future__ import annotations

import importlib
import json
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyseg.backbones import make_backbone
from pyseg.backbones.transformers import read_processor
from pyseg.errors import ArgumentError, DataError, MissingFileError


def installed(name: str) -> Any:
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            return importlib.import_module(name)
    except Exception as error:  # such as torchvision for another torch
        pytest.skip(f"{name} cannot be imported: {str(error)[:100]}")


def random_images(size: tuple[int, int] | None) -> np.ndarray:
    assert size is not None
    return np.random.default_rng(0).integers(0, 256, (2, *size, 3), np.uint8)


def test_timm(tmp_path: Path) -> None:
    timm = installed("timm")
    name = "timm:mobilenetv3_small_050"
    with pytest.raises(
        ArgumentError, match=r"weights: expected a .safetensors file .*; found none"
    ):
        make_backbone(name)
    with pytest.raises(ArgumentError, match=r"found 'mobilnetv3_small' \(did you mean mobilenet"):
        make_backbone("timm:mobilnetv3_small")
    drawn = make_backbone(name, "random")
    assert drawn.sha256 == make_backbone(name, "random").sha256
    torch.manual_seed(1)
    whole = timm.create_model("mobilenetv3_small_050", pretrained=False).eval()
    file = str(tmp_path / "model.safetensors")
    save_file(whole.state_dict(), file)
    backbone = make_backbone(name, file)
    assert backbone.sha256 != drawn.sha256
    assert (backbone.size, backbone.crop) == ((256, 256), True)  # 224 / 0.875
    images = random_images(backbone.size)
    center = torch.from_numpy(images[:, 16:-16, 16:-16]).permute(0, 3, 1, 2) / 255
    mean, std = (torch.tensor(whole.pretrained_cfg[key]).view(3, 1, 1) for key in ("mean", "std"))
    with torch.no_grad():
        expected = whole.forward_head(
            whole.forward_features((center - mean) / std), pre_logits=True
        )
    np.testing.assert_allclose(backbone(images, None), expected.numpy(), atol=1e-3)


def test_open_clip(tmp_path: Path) -> None:
    open_clip = installed("open_clip")
    config = {
        "embed_dim": 8,
        "vision_cfg": {
            "image_size": 32,
            "layers": 1,
            "width": 16,
            "patch_size": 16,
            "head_width": 8,
        },
        "text_cfg": {"context_length": 4, "vocab_size": 8, "width": 8, "heads": 1, "layers": 1},
    }
    folder = tmp_path / "configs"
    folder.mkdir()
    (folder / "tiny.json").write_text(json.dumps(config))
    open_clip.add_model_config(folder)
    torch.manual_seed(1)
    model = open_clip.create_model("tiny").eval()
    file = str(tmp_path / "open_clip_model.safetensors")
    save_file(model.state_dict(), file)
    backbone = make_backbone("open_clip:tiny", file)
    assert (backbone.features, backbone.size, backbone.crop) == ((("rgb", 8),), (32, 32), True)
    images = random_images(backbone.size)
    mean, std = (
        torch.tensor(model.visual.preprocess_cfg[key]).view(3, 1, 1) for key in ("mean", "std")
    )
    pixels = (torch.from_numpy(images).permute(0, 3, 1, 2) / 255 - mean) / std
    with torch.no_grad():
        expected = model.encode_image(pixels).numpy()
    np.testing.assert_allclose(backbone(images, None), expected, atol=1e-4)
    assert make_backbone("open_clip:tiny", "random").width == 8
    with pytest.raises(ArgumentError, match="expected a model of open_clip, found 'hf-hub:x'"):
        make_backbone("open_clip:hf-hub:x")


def test_transformers(tmp_path: Path) -> None:
    transformers = installed("transformers")
    installed("transformers.models.vit.modeling_vit")
    sizes = {"hidden_size": 8, "num_hidden_layers": 1, "num_attention_heads": 1, "image_size": 32}
    config = transformers.ViTConfig(**sizes, intermediate_size=8, patch_size=16)
    torch.manual_seed(1)
    model = transformers.ViTForImageClassification(config).eval()
    folder = tmp_path / "vit"
    model.save_pretrained(folder)
    name = f"transformers:{folder}"
    with pytest.raises(MissingFileError, match=r"preprocessor_config.json: expected how images"):
        make_backbone(name)
    values = {"size": {"height": 32, "width": 32}, "image_mean": [0.5] * 3, "image_std": [0.5] * 3}
    (folder / "preprocessor_config.json").write_text(json.dumps(values))
    backbone = make_backbone(name)
    assert (backbone.features, backbone.size, backbone.crop) == ((("rgb", 8),), (32, 32), False)
    images = random_images(backbone.size)
    pixels = torch.from_numpy(images).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():  # a classifier has no pooled output: its weights would be random
        expected = model.vit(pixels).last_hidden_state.mean(1).numpy()
    np.testing.assert_allclose(backbone(images, None), expected, atol=1e-4)
    assert backbone.description.location == str(folder)
    assert make_backbone(name, "random").sha256 != backbone.sha256
    (folder / "model.safetensors").rename(folder / "pytorch_model.bin")
    with pytest.raises(DataError, match=r"vit: expected a model of transformers with"):
        make_backbone(name)
    with pytest.raises(MissingFileError, match=r"expected a folder with config.json"):
        make_backbone("transformers:google/vit-base-patch16-224")


@pytest.mark.parametrize(
    ("content", "size", "images", "crop"),
    [
        ({"size": 224}, (224, 224), (224, 224), True),
        (
            {"size": {"shortest_edge": 256}, "do_center_crop": True, "crop_size": 224},
            (224, 224),
            (256, 256),
            True,
        ),
        ({"size": {"height": 32, "width": 48}}, (32, 48), (32, 48), False),
        ({"size": {"shortest_edge": 224}, "crop_pct": 0.875}, (224, 224), (256, 256), True),
    ],
)
def test_processors_of_transformers(
    content: Any, size: Any, images: Any, crop: bool, tmp_path: Path
) -> None:
    path = tmp_path / "preprocessor_config.json"
    path.write_text(json.dumps({**content, "do_normalize": False}))
    found = read_processor(path)
    assert (found.size, found.image_size, found.crop) == (size, images, crop)
    assert (found.mean, found.std) == ((0.0,) * 3, (1.0,) * 3)
