"""Backbones in files: ONNX and torch.export."""

from __future__ import annotations

import io
import json
import pickle
import zipfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor, nn

from pyseg.backbones import make_backbone
from pyseg.errors import ArgumentError, DataError, MissingFileError

SIZE = (32, 48)


class Network(nn.Module):
    """Uses what exported networks have: splits, lists, sizes, normalization, attention."""

    def __init__(self) -> None:
        super().__init__()
        self.stem = nn.Conv2d(3, 8, 5, stride=4)
        self.norm = nn.BatchNorm2d(8)
        self.register_buffer("offset", torch.linspace(-1, 1, 8))
        self.out = nn.Linear(8, 6)

    def forward(self, images: Tensor) -> Tensor:
        found = self.norm(self.stem(images)).relu()
        tokens = found.flatten(2).transpose(1, 2) + self.offset.to(found.dtype)
        left, right = tokens.chunk(2, dim=-1)
        tokens = torch.cat([right, left], -1).view(images.shape[0], -1, 8)
        tokens = nn.functional.scaled_dot_product_attention(tokens, tokens, tokens)
        return self.out(tokens.mean(1))


@pytest.fixture(scope="module")
def network() -> Network:
    torch.manual_seed(0)
    return Network().eval()


def export(network: nn.Module, path: Path, batch: bool = True) -> Path:
    dynamic = ({0: torch.export.Dim("batch", min=1, max=512)},) if batch else None
    program = torch.export.export(network, (torch.zeros(2, 3, *SIZE),), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    return path


@pytest.fixture(scope="module")
def exported(network: Network, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return export(network, tmp_path_factory.mktemp("pt2") / "network.pt2")


@pytest.fixture(scope="module")
def images() -> np.ndarray:
    return np.random.default_rng(0).integers(0, 256, (5, *SIZE, 3), np.uint8)


def reference(network: nn.Module, images: np.ndarray) -> np.ndarray:
    mean = torch.tensor([0.485, 0.456, 0.406])
    std = torch.tensor([0.229, 0.224, 0.225])
    pixels = (torch.from_numpy(images) / 255 - mean) / std
    with torch.no_grad():
        return network(pixels.permute(0, 3, 1, 2).contiguous()).numpy()


def test_an_exported_network_gives_the_features_of_the_module(
    network: Network, exported: Path, images: np.ndarray
) -> None:
    backbone = make_backbone(str(exported))
    assert (backbone.features, backbone.size, backbone.crop) == ((("rgb", 6),), SIZE, False)
    np.testing.assert_allclose(backbone(images, None), reference(network, images), atol=1e-5)


def rewritten(source: Path, target: Path, change: Callable[[str, bytes], bytes]) -> str:
    with zipfile.ZipFile(source) as old, zipfile.ZipFile(target, "w") as new:
        for member in old.infolist():
            new.writestr(member.filename, change(member.filename, old.read(member)))
    return str(target)


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file was unpickled",)


def bombs(name: str, content: bytes) -> bytes:
    """Puts pickles into all members that torch.export.load unpickles."""
    if name.endswith("model_weights_config.json"):
        config = json.loads(content)
        for entry in config["config"].values():
            entry["use_pickle"] = True
        return json.dumps(config).encode()
    if "weight_" in name or "sample_inputs" in name:
        buffer = io.BytesIO()
        torch.save(Bomb(), buffer)
        return buffer.getvalue()
    return content


def inputs_only(name: str, content: bytes) -> bytes:
    return pickle.dumps(Bomb()) if "sample_inputs" in name else content


def test_nothing_in_a_file_is_unpickled(exported: Path, tmp_path: Path, images: np.ndarray) -> None:
    with pytest.raises(DataError, match=r"expected a tensor stored as numbers, found a pickled"):
        make_backbone(rewritten(exported, tmp_path / "bomb.pt2", bombs))
    backbone = make_backbone(rewritten(exported, tmp_path / "inputs.pt2", inputs_only))
    expected = make_backbone(str(exported))(images, None)
    np.testing.assert_array_equal(backbone(images, None), expected)


@pytest.mark.parametrize(
    "target",
    [
        "torch.os.system",
        "torch.ops.load_library",
        "_operator.attrgetter",
        "torch.ops.aten.__init__",
    ],
)
def test_only_operators_of_torch_are_called(target: str, exported: Path, tmp_path: Path) -> None:
    def change(name: str, content: bytes) -> bytes:
        return content.replace(b"torch.ops.aten.relu.default", target.encode())

    with pytest.raises(DataError, match=r"expected calls of torch.ops.aten, found"):
        make_backbone(rewritten(exported, tmp_path / "call.pt2", change))


def test_damaged_files_are_errors_of_one_line(exported: Path, tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt2"
    content = exported.read_bytes()
    for damaged in (b"", b"no zip", content[:-100], content[: len(content) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match="damaged.pt2: expected") as caught:
            make_backbone(str(path))
        assert "\n" not in str(caught.value)
    for change in (
        lambda name, content: b"{}" if "models/" in name else content,
        lambda name, content: content[:8] if "weight_" in name else content,
        lambda name, content: content.replace(b'"linear"', b'"nothing"'),
    ):
        with pytest.raises(DataError, match="changed.pt2: "):
            make_backbone(rewritten(exported, tmp_path / "changed.pt2", change))


def test_preprocessing_is_read_from_the_file_beside(
    exported: Path, network: Network, tmp_path: Path, images: np.ndarray
) -> None:
    path = tmp_path / "network.pt2"
    path.write_bytes(exported.read_bytes())
    beside = path.with_suffix(".json")
    values = {"crop": True, "resize": [40, 60], "mean": 0.5, "std": [0.5, 0.5, 0.5]}
    beside.write_text(json.dumps(values))
    backbone = make_backbone(str(path))
    assert (backbone.size, backbone.crop) == ((40, 60), True)
    large = np.random.default_rng(1).integers(0, 256, (2, 40, 60, 3), np.uint8)
    pixels = torch.from_numpy(large[:, 4:36, 6:54]).permute(0, 3, 1, 2) / 127.5 - 1
    with torch.no_grad():
        expected = network(pixels.contiguous()).numpy()
    np.testing.assert_allclose(backbone(large, None), expected, atol=1e-5)
    for wrong, match in (
        ({"sise": 3}, "unknown entry 'sise'"),
        ({"size": [0, 3]}, r"size: expected \[height, width\], found \[0, 3\]"),
        ({"mean": "x"}, "mean: expected a number for each"),
        ({"std": 0}, "std: expected numbers other than 0"),
        ({"crop": 1}, "crop: expected true or false"),
        ({"resize": 16}, "resize: expected at least the size"),
        ([], "expected a JSON object, found list"),
    ):
        beside.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=f"network.json: {match}"):
            make_backbone(str(path))


def test_a_network_of_any_size_needs_the_size(tmp_path: Path) -> None:
    path = tmp_path / "any.pt2"

    class Mean(nn.Module):
        def forward(self, images: Tensor) -> Tensor:
            return images.mean((2, 3))

    auto = torch.export.Dim.DYNAMIC
    program = torch.export.export(
        Mean(), (torch.zeros(2, 3, 8, 9),), dynamic_shapes=({0: auto, 2: auto, 3: auto},)
    )
    torch.export.save(program, path)
    with pytest.raises(DataError, match=r"any.pt2: expected the size of its images"):
        make_backbone(str(path))
    path.with_suffix(".json").write_text('{"size": 4, "mean": 0, "std": 1, "scale": 1}')
    rows = make_backbone(str(path))(np.full((2, 4, 4, 3), 7, np.uint8), None)
    assert rows.tolist() == [[7.0] * 3] * 2


def test_missing_files_and_weights_besides(exported: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no.onnx: expected a network, found no such file"):
        make_backbone("no.onnx")
    with pytest.raises(ArgumentError, match=r"weights: expected none, as .* holds them"):
        make_backbone(str(exported), "other.safetensors")


def onnx_network(
    path: Path, shape: list[Any], kind: str = "FLOAT", output: tuple[Any, ...] = ("batch", 3)
) -> Path:
    """Writes a network whose features are the mean colors."""
    onnx = pytest.importorskip("onnx")
    pytest.importorskip("onnxruntime")
    helper, types = onnx.helper, onnx.TensorProto
    axes = [1, 2] if shape[-1] == 3 else [2, 3]
    nodes = [
        helper.make_node("Cast", ["images"], ["numbers"], to=types.FLOAT),
        helper.make_node("ReduceMean", ["numbers"], ["rows"], axes=axes, keepdims=0),
    ]
    graph = helper.make_graph(
        nodes,
        "means",
        [helper.make_tensor_value_info("images", getattr(types, kind), shape)],
        [helper.make_tensor_value_info("rows", types.FLOAT, output)],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 13)])
    model.ir_version = 8
    onnx.save(model, path)
    return path


@pytest.mark.parametrize("kind", ["FLOAT", "FLOAT16", "UINT8"])
@pytest.mark.parametrize("shape", [["b", 3, 8, 10], ["b", 8, 10, 3], [2, 3, 8, 10]])
def test_an_onnx_network_takes_its_own_form_of_images(
    kind: str, shape: list[Any], tmp_path: Path
) -> None:
    backbone = make_backbone(str(onnx_network(tmp_path / "means.onnx", shape, kind)))
    assert (backbone.features, backbone.size) == ((("rgb", 3),), (8, 10))
    images = np.random.default_rng(0).integers(0, 256, (5, 8, 10, 3), np.uint8)
    expected = images.mean((1, 2))
    if kind != "UINT8":
        expected = (expected / 255 - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    np.testing.assert_allclose(
        backbone(images, None), expected, atol=1e-2 if kind == "FLOAT16" else 1e-4
    )


def test_wrong_onnx_files(tmp_path: Path) -> None:
    path = onnx_network(tmp_path / "means.onnx", ["b", 3, "h", "w"])
    with pytest.raises(DataError, match=r"means.onnx: expected the size of its images"):
        make_backbone(str(path))
    path.with_suffix(".json").write_text('{"size": [8, 8]}')
    digest = make_backbone(str(path)).sha256
    path.with_name("means.onnx.data").write_bytes(b"weights")
    assert make_backbone(str(path)).sha256 != digest
    fixed = onnx_network(tmp_path / "fixed.onnx", ["b", 3, 6, 6])
    fixed.with_suffix(".json").write_text('{"size": [8, 8]}')
    with pytest.raises(DataError, match=r"fixed.json: size: expected \[6, 6\] as fixed.onnx has"):
        make_backbone(str(fixed))
    table = onnx_network(tmp_path / "table.onnx", ["b", 3, 6, 6], "DOUBLE")
    with pytest.raises(DataError, match="expected one input of images"):
        make_backbone(str(table))
    path.write_bytes(b"no network")
    with pytest.raises(DataError, match=r"means.onnx: expected an ONNX network, found"):
        make_backbone(str(path))
    with pytest.raises(ArgumentError, match="device: expected one that ONNX Runtime has here"):
        make_backbone(str(fixed), device="meta")
