"""How backbones are named and made."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest
import torch
from safetensors.torch import save_file

from pyseg.backbones import make_backbone, register_backbone
from pyseg.errors import ArgumentError, DataError, MissingFileError, UserError

NETWORKS = "tests.extract.networks"
IMAGES = np.full((2, 4, 6, 3), [1, 2, 3], np.uint8)


@pytest.mark.parametrize("name", ["", "resnet50", "no such:thing", "timm:", "a.jpg", "youtube9m"])
def test_an_unknown_backbone_is_told_the_forms(name: str) -> None:
    with pytest.raises(ArgumentError, match=r"backbone: expected one of .*timm:NAME.*; found"):
        make_backbone(name)


def test_a_factory_returns_a_module_or_a_backbone() -> None:
    backbone = make_backbone(f"{NETWORKS}:means")
    assert (backbone.features, backbone.size, backbone.width) == ((("rgb", 3),), (4, 6), 3)
    assert backbone(IMAGES, None).tolist() == [[1, 2, 3]] * 2
    assert backbone.name == f"{NETWORKS}:means"
    assert backbone.description.preprocessing["mean"] == [0, 0, 0]
    own = make_backbone(f"{NETWORKS}:numbers")
    assert own.description.preprocessing == {"size": [48, 64], "crop": False, "reads": "bars"}


def test_weights_of_a_factory(tmp_path: Path) -> None:
    plain = make_backbone(f"{NETWORKS}:means")
    file = str(tmp_path / "means.safetensors")
    save_file({"weight": torch.full((3,), 2.0)}, file)
    loaded = make_backbone(f"{NETWORKS}:means", file)
    assert loaded(IMAGES, None).tolist() == [[2, 4, 6]] * 2
    given = make_backbone(f"{NETWORKS}:weighted", "2")
    assert given(IMAGES, None).tolist() == [[2, 4, 6]] * 2
    assert given.sha256 == loaded.sha256 != plain.sha256


def test_wrong_weights(tmp_path: Path) -> None:
    name = f"{NETWORKS}:means"
    with pytest.raises(MissingFileError, match=r"--weights no.safetensors: expected"):
        make_backbone(name, "no.safetensors")
    file = tmp_path / "w.safetensors"
    file.write_bytes(b"\x80\x04.")
    with pytest.raises(DataError, match=r"w.safetensors: expected a .safetensors file, found"):
        make_backbone(name, str(file))
    save_file({"other": torch.ones(3)}, file)
    with pytest.raises(DataError, match=r"expected the weights of .*:means, found others: Missing"):
        make_backbone(name, str(file))
    with pytest.raises(ArgumentError, match="weights: expected a parameter weights of"):
        make_backbone(f"{NETWORKS}:numbers", str(file))


@pytest.mark.parametrize(
    ("name", "match"),
    [
        ("no_such_module:make", "expected a module no_such_module that can be imported"),
        ("no.such.module:make", "expected a module no.such.module that can be imported"),
        (f"{NETWORKS}:nothing", "expected a function nothing in"),
        (f"{NETWORKS}:sizelss", r"expected a function sizelss in .* \(did you mean sizeless\?\)$"),
        (f"{NETWORKS}:IMAGE", "expected that IMAGE in .* is a function .*, found int$"),
        (f"{NETWORKS}:MODULE", "expected that MODULE in .* is a function .*, found Identity$"),
        ("my_networks.py:make", "expected a module without .py, my_networks:make, that can be im"),
        ("a/my_networks.py:make", "expected a module without .py, my_networks:make, that can be"),
        (f"{NETWORKS}:number", "expected that .* returns a pyseg.backbones.Backbone or"),
        (f"{NETWORKS}:sizeless", "expected size, as"),
        (
            f"{NETWORKS}:needy",
            r"no arguments but weights, found needy\(width: .*\) -> .* in .*: name a function that",
        ),
        ("builtins:print", "expected that builtins:print returns .*, found NoneType$"),
    ],
)
def test_wrong_factories(name: str, match: str) -> None:
    with pytest.raises(ArgumentError, match=f"backbone: .*{match}"):
        make_backbone(name)


def test_a_module_with_other_output_is_refused() -> None:
    @register_backbone("flat")
    def make(request):  # type: ignore[no-untyped-def]
        from pyseg.backbones import ModuleBackbone, Preprocessing

        return ModuleBackbone(torch.nn.Flatten(0), Preprocessing((2, 2)), request.device)

    with pytest.raises(ArgumentError, match=r"backbone: expected features of shape \(B, N\)"):
        make_backbone("flat")
    with pytest.raises(ArgumentError, match="found 'flat', which is registered"):
        register_backbone("flat")(make)


@pytest.mark.parametrize(
    ("name", "package"),
    [
        ("timm:resnet18", "timm"),
        ("open_clip:RN50", "open_clip"),
        ("transformers:{folder}", "transformers"),
        ("{folder}/network.onnx", "onnxruntime"),
    ],
)
def test_a_missing_package_is_named(
    name: str, package: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    (tmp_path / "network.onnx").write_bytes(b"")
    (tmp_path / "config.json").write_text("{}")
    (tmp_path / "preprocessor_config.json").write_text('{"size": 224}')
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"needs {package}: pip install {package}"):
        make_backbone(name.format(folder=tmp_path))
