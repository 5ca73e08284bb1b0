"""python -m pyseg.export: files that give the model's probabilities without pyseg."""

from __future__ import annotations

import dataclasses
import importlib.util
import io
import json
import logging
import re
import runpy
import subprocess
import sys
import urllib.request
from collections.abc import Callable
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
import torch
from torch import Tensor, nn

from pyseg import export, models
from pyseg.calibration import Calibration
from pyseg.data import FeatureSet
from pyseg.errors import UserError
from pyseg.export.cli import compare
from pyseg.export.formats import FORMATS
from pyseg.export.program import Source
from pyseg.models.registry import _preset
from pyseg.nn import MLP
from pyseg.predict import Predictor
from pyseg.runs import Run

WIDTH, CLASSES = 6, ["dog", "cat\n", "é", "d"]
FEATURES = FeatureSet((("clip", WIDTH),), segment_size=4, ranges=((-1.0, 3.0),))

_MLP = {"hidden_size": 8}
_NEXTVLAD = _MLP | {"clusters": 4, "groups": 2, "reduction": 2, "expansion": 1, "dropout": 0.0}
_NEXTVLAD |= {"batch_norm_momentum": 0.1}
_DBOF = _MLP | {"clusters": 8}
_GCN = {"node_size": 4, "gcn_size": 8}
# A mixture is small with other branches, which are presets themselves.
_MIXTURE = _MLP | {"branches": ("mlp", "mlp")}
SMALL: dict[str, dict[str, Any]] = {
    "3nextvlad-diff": _MIXTURE,
    "3nextvlad-same": _MIXTURE,
    "attention-gru": _MLP | {"gru_size": 4, "attention_size": 4, "reduction": 2},
    "dbof": _DBOF,
    "dbof-gcn": _DBOF | _GCN,
    "linear": {},
    "mixture": _MIXTURE,
    "mlp": _MLP,
    "nextvlad-small": _NEXTVLAD,
    "nextvlad1": _NEXTVLAD,
    "nextvlad1-gcn": _NEXTVLAD | _GCN,
    "nextvlad2": _NEXTVLAD,
    "nextvlad3": _NEXTVLAD,
    "paper-mixture": _MIXTURE,
    "ridge": {},
}
UNLIKE = (
    "attention-gru",
    "dbof",
    "dbof-gcn",
    "linear",
    "mixture",
    "mlp",
    "nextvlad1",
    "nextvlad1-gcn",
    "paper-mixture",
    "ridge",
)


def make_preset(name: str, **more: Any) -> nn.Module:
    torch.manual_seed(0)
    made = SMALL[name] | {"ranges": FEATURES.ranges} | more
    model = models.create(name, num_classes=len(CLASSES), feature_sizes=(WIDTH,), **made)
    with torch.no_grad():
        for parameter in model.parameters():  # some start at 0
            parameter.add_(0.3 * torch.randn_like(parameter))
    model(torch.randint(0, 256, (8, 4, WIDTH), dtype=torch.uint8))  # for running statistics
    return model.eval()


def make_run(folder: Path, name: str, **more: Any) -> Path:
    models.save(make_preset(name, **more), folder, class_names=CLASSES)
    FEATURES.write(folder / "features.json")
    return folder


@pytest.fixture
def mlp(tmp_path: Path) -> Path:
    return make_run(tmp_path / "run", "mlp")


def batch(size: int, length: int) -> tuple[Tensor, Tensor]:
    generator = torch.Generator().manual_seed(1)
    shape = size, length, WIDTH
    frames = torch.randint(0, 256, shape, generator=generator, dtype=torch.uint8)
    return frames, torch.randint(1, length + 1, (size,), generator=generator)


def calibration_of(run: Path) -> Calibration:
    rng = np.random.default_rng(0)
    logits, labels = rng.normal(0, 4, 400), np.arange(400) % len(CLASSES)
    scores = rng.random(400) < 1 / (1 + np.exp(-0.3 * logits - labels))
    found = Calibration.fit(logits, labels, scores, num_classes=len(CLASSES))
    return Calibration(**vars(found) | {"weights": Run(run).weights_digest()})


def test_every_preset_is_tested() -> None:
    """Those that are left out are small like one that is not: each takes seconds.

    Other tests may have registered presets of plugins.
    """
    places = ("pyseg.models.", "pyseg.nn.")
    own = [name for name in models.names() if _preset(name).make.__module__.startswith(places)]
    assert {repr(make_preset(name)) for name in own} == {repr(make_preset(name)) for name in UNLIKE}


@pytest.mark.filterwarnings("ignore")  # of torch about its own parts
@pytest.mark.parametrize("name", UNLIKE)
def test_preset(name: str, tmp_path: Path) -> None:
    source = Source.of_run(Run(make_run(tmp_path, name)), calibrate=True)
    program = source.trace()
    assert not any("pyseg" in str(node.target) for node in program.graph.nodes)
    for format, suffix in (("pt2", ".pt2"), ("onnx", ".onnx")):
        path = tmp_path / f"model{suffix}"
        FORMATS[format].write(program, path, source.metadata)
        run = FORMATS[format].open(path)
        assert compare(source, run, path).difference < 1e-5
        # Another length than any so far, and what lies past the end of a video.
        frames, num_frames = batch(5, 9)
        expected = source.module(frames, num_frames)
        assert expected.std() > 0.01
        padded = torch.arange(9) >= num_frames.unsqueeze(1)
        frames[padded] = 255 - frames[padded]
        torch.testing.assert_close(run(frames, num_frames), expected, atol=1e-5, rtol=0)


ALONE = """
import json, sys
sys.modules["pyseg"] = None
import torch
path, inputs, out = sys.argv[1:]
texts = {"class_names.json": "", "features.json": ""}
program = torch.export.load(path, extra_files=texts)
probabilities = program.module()(*torch.load(inputs))
torch.save((probabilities, texts, [name for name in sys.modules if name[:6] == "pyseg."]), out)
"""


def test_a_program_needs_torch_only(
    mlp: Path, tmp_path: Path, python: Callable[..., subprocess.CompletedProcess[str]]
) -> None:
    calibration_of(mlp).write(mlp / "calibration.json")
    Run(mlp).write_rated_classes([3, 1], CLASSES)
    path, inputs, out = tmp_path / "own.pt2", tmp_path / "inputs.pt", tmp_path / "out.pt"
    export.main(["--run", str(mlp), "--format", "pt2", "--out", str(path)])
    frames = batch(1, 4)[0]
    torch.save((frames, torch.tensor([4])), inputs)
    ran = python("-c", ALONE, str(path), str(inputs), str(out))
    assert ran.returncode == 0, ran.stderr
    found, texts, imported = torch.load(out)
    assert not imported
    assert json.loads(texts["class_names.json"]) == [CLASSES[3], CLASSES[1]]
    assert texts["features.json"] == (mlp / "features.json").read_text()
    for calibrate, agrees in ((True, True), (False, False)):
        predictor = Predictor(mlp, device="cpu", calibrate=calibrate)
        scores = predictor.predict(frames[0]).scores
        assert np.allclose(found, scores, atol=1e-6) == agrees


def test_onnx_says_what_it_is(mlp: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (mlp / "model.onnx").write_bytes(b"an older one")
    export.main(["--run", str(mlp), "--format", "onnx"])
    said = r"/model\.onnx: \d+\.\d MB; probabilities differ from the model's by at most \d\.\de-"
    assert re.search(said, capsys.readouterr().out)
    model = onnx.load(mlp / "model.onnx")
    assert {node.domain for node in model.graph.node} == {""}
    assert [(each.domain, each.version) for each in model.opset_import] == [("", 20)]
    texts = {entry.key: entry.value for entry in model.metadata_props}
    assert json.loads(texts["class_names.json"]) == CLASSES
    assert texts["features.json"] == (mlp / "features.json").read_text()
    session = onnxruntime.InferenceSession(mlp / "model.onnx")
    frames, num_frames = session.get_inputs()
    [probabilities] = session.get_outputs()
    described = [(each.name, each.type, each.shape) for each in (frames, num_frames, probabilities)]
    assert described == [
        ("frames", "tensor(uint8)", ["batch", "frames", WIDTH]),
        ("num_frames", "tensor(int64)", ["batch"]),
        ("probabilities", "tensor(float)", ["batch", len(CLASSES)]),
    ]


def test_onnx_is_written_without_idle_warnings(
    mlp: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """As where torchvision is not installed; other warnings are kept."""
    find = importlib.util.find_spec
    monkeypatch.setattr(
        importlib.util, "find_spec", lambda name: None if name == "torchvision" else find(name)
    )
    write = torch.onnx.export

    def warned(*values: Any, **options: Any) -> Any:
        converter = logging.getLogger("onnxscript.version_converter")
        converter.warning("The model version conversion is not supported by the onnxscript ...")
        converter.warning("Failed to convert the model")
        return write(*values, **options)

    monkeypatch.setattr(torch.onnx, "export", warned)
    registry = logging.getLogger("torch.onnx._internal.exporter._registration")
    monkeypatch.setattr(registry, "handlers", [caplog.handler])
    monkeypatch.setattr(registry, "propagate", False)
    caplog.handler.setLevel(logging.WARNING)
    export.main(["--run", str(mlp), "--format", "onnx"])
    assert caplog.messages == ["Failed to convert the model"]
    registry.warning("torchvision is not installed")
    assert caplog.messages[1:] == ["torchvision is not installed"]


def test_aoti_says_first_that_it_takes_long(
    mlp: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def compile(*_: object, **__: object) -> None:
        assert capsys.readouterr().out == "compiling the model, which may take minutes\n"
        raise RuntimeError("stopped")

    monkeypatch.setattr(torch._inductor, "aoti_compile_and_package", compile)
    with pytest.raises(UserError, match="found: stopped"):
        export.main(["--run", str(mlp), "--format", "aoti"])


def test_a_run_of_mean_features_takes_floats(mlp: Path) -> None:
    model = models.load(mlp)
    model.config = dataclasses.replace(model.config, level="video")
    models.save(model, mlp)
    export.main(["--run", str(mlp), "--format", "pt2"])
    module = torch.export.load(mlp / "model.pt2").module()
    frames = torch.randn(3, 1, WIDTH)
    num_frames = torch.ones(3, dtype=torch.long)
    torch.testing.assert_close(module(frames, num_frames), model(frames, num_frames).sigmoid())


def test_what_differs_is_refused(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    classify = MLP.classify

    def other(self: MLP, x: Tensor, mask: Tensor | None) -> Tensor:
        return classify(self, x, mask) + 0.01 * torch.compiler.is_exporting()

    monkeypatch.setattr(MLP, "classify", other)
    with pytest.raises(
        UserError,
        match=r"^--run .*/run: expected probabilities within 0\.0001 of the model's, found a "
        r"difference of 0\.00\d+; nothing was written$",
    ):
        export.main(["--run", str(mlp), "--format", "pt2"])
    assert not (mlp / "model.pt2").exists()


def test_what_cannot_be_traced_is_refused(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def classify(self: MLP, x: Tensor, mask: Tensor | None) -> Tensor:
        return x.float().mean(1)[:, :4] * (2.0 if x.sum() > 0 else 1.0)

    monkeypatch.setattr(MLP, "classify", classify)
    with pytest.raises(
        UserError,
        match=r"^--run .*/run: expected a model that torch\.export can trace for batches and "
        r"videos of any size, found: Could not guard on data-dependent",
    ):
        export.main(["--run", str(mlp), "--format", "pt2"])


def test_what_torch_cannot_write_is_refused(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def save(*_: Any, **__: Any) -> None:
        raise AssertionError("a loop\nand a graph")

    monkeypatch.setattr(torch.export, "save", save)
    with pytest.raises(
        UserError, match=r"^--format pt2: expected a model that torch 2.* found: a loop$"
    ):
        export.main(["--run", str(mlp), "--format", "pt2"])


def test_too_large_for_onnx(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(export.formats, "_LARGEST_ONNX", 100)
    with pytest.raises(UserError, match=r"onnx: expected at most 100 bytes of weights, .* found "):
        export.main(["--run", str(mlp), "--format", "onnx"])


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["--format", "tflite"], "--format.*tflite"),
        (["--format", "onnx", "--out", "a.pt2"], "--out: expected a .onnx file .* found a.pt2"),
        (["--format", "pt2", "--out", "no/a.pt2"], "--out no/a.pt2: expected a folder no, found"),
        (["--format", "pt2", "--out", "f.pt2"], "--out f.pt2: expected a file, found a folder"),
        (["--format", "pt2"], "f.pt2 is not a run folder: it has no model.json"),
        (["--format", "pt2", "--run", "none"], "none is not a run folder: it has no model.json"),
    ],
)
def test_options(
    words: list[str], message: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    (tmp_path / "f.pt2").mkdir()
    with pytest.raises(UserError, match=message):
        export.main(["--run", "f.pt2", *words])


def test_what_is_missing(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "onnxscript", None)
    with pytest.raises(
        UserError, match=r"--format onnx needs onnxscript: pip install .*\[export\]"
    ):
        export.main(["--run", str(mlp), "--format", "onnx"])
    from torch._inductor import config

    with (
        config.patch({"cpp.cxx": ("no-compiler",)}),
        pytest.raises(
            UserError, match=r"--format aoti: expected a C\+\+ compiler, .*found none .*no-compiler"
        ),
    ):
        export.main(["--run", str(mlp), "--format", "aoti"])


def test_the_example_of_a_server(mlp: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Its configuration fits the file; a stand-in for the server answers its client with that."""
    folder = Path(__file__).parents[2] / "examples" / "triton"
    config = (folder / "pyseg" / "config.pbtxt").read_text()
    named = re.findall(r'name: "(\w+)"\s+data_type: TYPE_(\w+)\s+dims: \[ ([^]]*) \]', config)
    assert named == [
        ("frames", "UINT8", "-1, 1152"),
        ("num_frames", "INT64", "1"),
        ("probabilities", "FP32", "1000"),
    ]
    export.main(["--run", str(mlp), "--format", "onnx"])
    session = onnxruntime.InferenceSession(mlp / "model.onnx")

    def answer(request: urllib.request.Request) -> io.BytesIO:
        assert request.full_url == "http://host:1/v2/models/name/infer"
        given = {}
        for tensor, (name, dtype, _) in zip(
            json.loads(request.data)["inputs"], named[:2], strict=True
        ):
            assert (tensor["name"], tensor["datatype"]) == (name, dtype)
            given[name] = np.array(tensor["data"], dtype.lower()).reshape(tensor["shape"])
        given["num_frames"] = given["num_frames"].reshape(-1)  # as reshape in the configuration
        [found] = session.run(None, given)
        output = {"name": "probabilities", "datatype": "FP32", "shape": found.shape}
        return io.BytesIO(
            json.dumps({"outputs": [output | {"data": found.ravel().tolist()}]}).encode()
        )

    monkeypatch.setattr(urllib.request, "urlopen", answer)
    client = runpy.run_path(str(folder / "score.py"))
    frames = batch(1, 10)[0][0].numpy()
    found = client["score"]("http://host:1", "name", *client["cut"](frames, FEATURES.segment_size))
    predicted = Predictor(mlp, device="cpu").predict(frames[-2:])  # the last, shorter segment
    assert found.shape == (3, len(CLASSES))
    np.testing.assert_allclose(found[-1], predicted.scores[0], atol=1e-6)
