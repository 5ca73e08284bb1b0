"""Backbones in files: ONNX and torch.export."""

from __future__ import annotations

import io
import json
import math
import zipfile
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
    network: Network, images: np.ndarray, tmp_path: Path
) -> None:
    path = tmp_path / "network.pt2"
    dynamic = ({0: torch.export.Dim("batch", min=1, max=512)},)
    program = torch.export.export(network, (torch.zeros(2, 3, *SIZE),), dynamic_shapes=dynamic)
    torch.export.save(program, path)
    backbone = make_backbone(str(path))
    assert (backbone.features, backbone.size, backbone.crop) == ((("rgb", 6),), SIZE, False)
    np.testing.assert_allclose(backbone(images, None), reference(network, images), atol=1e-5)


def node(target: str, inputs: dict[str, Any], output: str) -> dict[str, Any]:
    given = [{"name": name, "arg": value, "kind": 1} for name, value in inputs.items()]
    return {"target": target, "inputs": given, "outputs": [tensor(output)], "metadata": {}}


def tensor(name: str) -> dict[str, Any]:
    return {"as_tensor": {"name": name}}


def meta(*sizes: int) -> dict[str, Any]:
    strides = [math.prod(sizes[i + 1 :]) for i in range(len(sizes))]
    numbers = {"sizes": sizes, "strides": strides}
    listed = {key: [{"as_int": n} for n in some] for key, some in numbers.items()}
    return {"dtype": 7, "requires_grad": False, "storage_offset": {"as_int": 0}, **listed}


def members() -> dict[str, Any]:
    """Returns what torch.export.save writes of a linear layer on mean colors, in essence."""
    nodes = [
        node("torch.ops.aten.mean.dim", {"self": tensor("x"), "dim": {"as_ints": [2, 3]}}, "mean"),
        node("torch.ops.aten.linear.default", {"a": tensor("mean"), "b": tensor("p_w")}, "out"),
    ]
    graph = {"nodes": nodes, "outputs": [tensor("out")], "tensor_values": {"x": meta(2, 3, 4, 6)}}
    specs = [
        {"parameter": {"arg": {"name": "p_w"}, "parameter_name": "w"}},
        {"user_input": {"arg": tensor("x")}},
    ]
    program = {"graph": graph, "signature": {"input_specs": specs}}
    weight = {"path_name": "weight_0", "is_param": True, "use_pickle": False}
    return {
        "models/model.json": {"graph_module": program, "schema_version": {"major": 8}},
        "data/weights/model_weights_config.json": {
            "config": {"w": {**weight, "tensor_meta": meta(5, 3)}}
        },
        "data/weights/weight_0": np.arange(15, dtype=np.float32).tobytes(),
        "data/constants/model_constants_config.json": {"config": {}},
        "data/sample_inputs/model.pt": pickled(),
    }


class Bomb:
    def __reduce__(self) -> tuple[Any, ...]:
        return pytest.fail, ("a file was unpickled",)


def pickled() -> bytes:
    buffer = io.BytesIO()
    torch.save(Bomb(), buffer)
    return buffer.getvalue()


def archive(path: Path, content: dict[str, Any]) -> str:
    with zipfile.ZipFile(path, "w") as file:
        for name, value in content.items():
            data = value if isinstance(value, bytes) else json.dumps(value)
            file.writestr(f"{path.stem}/{name}", data)
    return str(path)


def test_nothing_in_a_file_is_unpickled(tmp_path: Path) -> None:
    content = members()
    backbone = make_backbone(archive(tmp_path / "inputs.pt2", content))
    prepared = (np.zeros(3) - [0.485, 0.456, 0.406]) / [0.229, 0.224, 0.225]
    found = backbone(np.zeros((1, 4, 6, 3), np.uint8), None)[0]
    np.testing.assert_allclose(found, np.arange(15).reshape(5, 3) @ prepared, rtol=1e-4)
    content["data/weights/weight_0"] = pickled()
    content["data/weights/model_weights_config.json"]["config"]["w"]["use_pickle"] = True
    with pytest.raises(DataError, match=r"w: expected a tensor stored as numbers, found a pickled"):
        make_backbone(archive(tmp_path / "bomb.pt2", content))


@pytest.mark.parametrize(
    "target",
    [
        *("torch.os.system", "torch.ops.load_library", "torch.ops.higher_order.cond"),
        *("_operator.attrgetter", "torch.ops.aten.__init__.x", "torch.ops.aten.name.upper"),
    ],
)
def test_only_operators_of_torch_are_called(target: str, tmp_path: Path) -> None:
    content = members()
    content["models/model.json"]["graph_module"]["graph"]["nodes"][0]["target"] = target
    with pytest.raises(DataError, match=r"call.pt2: expected calls of torch.ops.aten, found"):
        make_backbone(archive(tmp_path / "call.pt2", content))


def test_damaged_files_are_errors_of_one_line(tmp_path: Path) -> None:
    path = tmp_path / "damaged.pt2"
    whole = Path(archive(path, members())).read_bytes()
    for damaged in (b"", b"no zip", whole[:-100], whole[: len(whole) // 2]):
        path.write_bytes(damaged)
        with pytest.raises(DataError, match=r"damaged.pt2: expected") as caught:
            make_backbone(str(path))
        assert "\n" not in str(caught.value)
    for name, value, match in (
        ("models/model.json", {}, "expected a network that torch.export.save wrote"),
        ("models/model.json", {"schema_version": {"major": 9}}, "expected version 8 of the format"),
        ("data/weights/weight_0", b"1234", "w: expected 60 bytes, found 4"),
        ("data/weights/model_weights_config.json", {"config": {}}, "expected tensors as inputs"),
    ):
        with pytest.raises(DataError, match=f"changed.pt2: {match}"):
            make_backbone(archive(tmp_path / "changed.pt2", {**members(), name: value}))


def test_preprocessing_is_read_from_the_file_beside(tmp_path: Path) -> None:
    path = tmp_path / "network.pt2"
    archive(path, members())
    beside = path.with_suffix(".json")
    values = {"crop": True, "resize": [6, 10], "mean": 0.5, "std": [0.5, 0.5, 0.5]}
    beside.write_text(json.dumps(values))
    backbone = make_backbone(str(path))
    assert (backbone.size, backbone.crop) == ((6, 10), True)
    images = np.random.default_rng(1).integers(0, 256, (2, 6, 10, 3), np.uint8)
    means = (images[:, 1:5, 2:8] / 127.5 - 1).mean((1, 2))
    expected = means @ np.arange(15).reshape(5, 3).T
    np.testing.assert_allclose(backbone(images, None), expected, rtol=1e-3, atol=1e-4)
    for wrong, match in (
        ({"sise": 3}, "unknown entry 'sise'"),
        ({"size": [0, 3]}, r"size: expected \[height, width\], found \[0, 3\]"),
        ({"mean": "x"}, "mean: expected a number for each"),
        ({"std": 0}, "std: expected numbers other than 0"),
        ({"crop": 1}, "crop: expected true or false"),
        ({"resize": 3}, "resize: expected at least the size"),
        ([], "expected a JSON object, found list"),
    ):
        beside.write_text(json.dumps(wrong))
        with pytest.raises(DataError, match=f"network.json: .*{match}"):
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


def test_missing_files_and_weights_besides(tmp_path: Path) -> None:
    with pytest.raises(MissingFileError, match=r"no.onnx: expected a network, found no such file"):
        make_backbone("no.onnx")
    with pytest.raises(ArgumentError, match=r"weights: expected none, as .* holds them"):
        make_backbone(archive(tmp_path / "a.pt2", members()), "other.safetensors")


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
