"""Custom models and heads, registered in Python and by ``--plugin``."""

from __future__ import annotations

import sys
from pathlib import Path
from typing import Any, Literal

import pytest
import torch
from torch import Tensor, nn

from pyseg import evaluate, models, predict, report, train
from pyseg.errors import ArgumentError, UserError
from pyseg.nn import FrameClassifier, LogisticHead

OWN_MODEL = Path(__file__).parents[2] / "examples" / "python" / "own_model.py"


class Mean(FrameClassifier):
    def __init__(
        self, num_classes: int, *, scale: float = 1.0, mode: Literal["a", "b"] = "a", **more: Any
    ) -> None:
        super().__init__(num_classes, **more)
        self.scale, self.mode = scale, mode
        self.head = nn.Linear(sum(self.feature_sizes), num_classes)

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        return self.scale * self.head(x.mean(1))


def test_a_model_of_ones_own(tmp_path: Path) -> None:
    assert models.register("mean", scale=2.0)(Mean) is Mean
    assert "mean" in models.names()
    base = ["feature_sizes", "normalization", "eigenvalues", "ranges", "mean", "deviation", "noise"]
    assert models.options("mean") == ["scale", "mode", *base]
    model = models.create("mean", num_classes=3, feature_sizes=(4,), noise=0.5)
    assert (model.scale, model.noise.sigma) == (2.0, 0.5)
    models.save(model, tmp_path)
    again = models.load(tmp_path)
    frames = torch.rand(2, 5, 4)
    assert torch.equal(model.eval()(frames), again(frames))
    assert again.config == model.config
    branches = ["mean", {"name": "mean", "scale": 3.0}]
    mixed = models.create("mixture", num_classes=3, feature_sizes=(4,), branches=branches)
    assert [branch.scale for branch in mixed.branches] == [2.0, 3.0]


@pytest.mark.parametrize(
    ("overrides", "message"),
    [
        ({"scale": "much"}, "scale: expected float, found 'much'"),
        ({"noise": None}, "noise: expected float, found None"),
        ({"width": 3}, "overrides: expected one of .*; found the unknown argument of mean 'width'"),
        ({"head": "moe"}, "overrides: .* unknown argument of mean 'head'"),
    ],
)
def test_its_arguments_are_checked(overrides: dict[str, Any], message: str) -> None:
    models.register("mean")(Mean)
    with pytest.raises(ArgumentError, match=f"^{message}"):
        models.create("mean", num_classes=3, **overrides)


def test_a_head_of_ones_own() -> None:
    @models.register_head("scaled")
    class Scaled(LogisticHead):
        def __init__(self, in_features: int, num_classes: int, factor: int = 1) -> None:
            super().__init__(in_features, num_classes)
            self.factor = factor

    assert models.options("mlp", head="scaled")[-1] == "factor"
    model = models.create("nextvlad-small", num_classes=3, head="scaled", factor=4)
    assert isinstance(model.head, Scaled)
    assert model.head.factor == 4


@pytest.mark.parametrize(
    ("name", "arguments", "message"),
    [
        ("mlp", {}, "name: expected the name of a new preset, found 'mlp', which is registered"),
        ("", {}, "name: expected the name of a preset, found ''"),
        (3, {}, "name: expected the name of a preset, found 3"),
        ("mean", {"scales": 2}, "arguments: .*unknown argument of mean 'scales' .did you mean 's"),
    ],
)
def test_what_cannot_be_registered(name: Any, arguments: dict[str, Any], message: str) -> None:
    before = models.names()
    with pytest.raises(ArgumentError, match=message):
        models.register(name, **arguments)(Mean)
    with pytest.raises(ArgumentError, match="name: expected the name of a new head, found 'moe'"):
        models.register_head("moe")(LogisticHead)
    assert models.names() == before


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> str:
    """A module with a model in the current folder."""
    (tmp_path / "stranger.py").write_bytes(OWN_MODEL.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield "stranger"
    sys.modules.pop("stranger", None)


def test_commands_know_a_plugins_model(plugin: str, capsys: pytest.CaptureFixture[str]) -> None:
    """It is trained, resumed, evaluated, reported and used, without an edit of pyseg."""
    steps = ["--pretrain.steps", "0", "--finetune.steps", "4", "--finetune.batch_size", "8"]
    small = ["--overrides.channels", "8", "--overrides.head", "moe", "--device", "cpu"]
    wanted = ["--model", "temporal-conv", *steps, *small]
    with pytest.raises(UserError, match=r"^--model temporal-conv: expected one of .*\(--plugin\)$"):
        train.main([*wanted, "--run", "run"])
    train.main([*wanted, "--plugin", plugin, "--run", "run", "--checkpoint_steps", "2"])
    assert models.load("run").convolution.out_channels == 8
    with pytest.raises(UserError, match=r"^--resume run: expected a checkpoint, found none"):
        train.main(["--plugin", plugin, "--resume", "run"])
    capsys.readouterr()
    evaluate.main(["--plugin", plugin, "--run", "run"])
    assert "MAP@100k" in capsys.readouterr().out
    predict.main(["--plugin", plugin, "--run", "run", "--out", "submission.csv"])
    report.main(["--plugin", plugin, "--run", "run", "--out", "report.html"])
    assert "temporal-conv" in Path("report.html").read_text()
    assert "plugin" not in Path("run", "config.yaml").read_text()


@pytest.mark.parametrize("name", ["strangers", "stranger.py", "a b", ".x", "", "-"])
def test_a_missing_plugin(plugin: str, name: str) -> None:
    with pytest.raises(UserError, match=rf"^--plugin{f' {name}' if name else ''}: expected a "):
        evaluate.main([f"--plugin={name}", "--run", "run"])


def test_a_plugin_that_is_broken(plugin: str) -> None:
    """This is not a user error: the traceback shows its cause."""
    Path("stranger.py").write_text("import no_such_module")
    with pytest.raises(ModuleNotFoundError, match="No module named 'no_such_module'"):
        evaluate.main(["--plugin", plugin, "--run", "run"])


def test_plugins_of_installed_packages(plugin: str, tmp_path: Path) -> None:
    folder = tmp_path / "strange_package-1.0.dist-info"
    folder.mkdir()
    (folder / "METADATA").write_text("Metadata-Version: 2.1\nName: strange-package\nVersion: 1.0\n")
    (folder / "entry_points.txt").write_text("[pyseg.plugins]\nmodels = stranger\n")
    with pytest.raises(UserError, match="no-run is not a run folder"):
        evaluate.main(["--run", "no-run"])
    assert "temporal-conv" in models.names()
