"""Custom data, losses and metrics, registered by ``--plugin`` as in the examples."""

from __future__ import annotations

import dataclasses
import json
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from torch import nn

from pyseg import cooccur, evaluate, models, predict, train
from pyseg import nn as nn_of_pyseg
from pyseg._registry import Registry
from pyseg.config import TrainConfig
from pyseg.data import (
    FeatureSet,
    Format,
    encode_frames,
    formats,
    open_collection,
    open_records,
    register_format,
    register_source,
    write_records,
)
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.training import make_loss, register_loss

EXAMPLE = Path(__file__).parents[1] / "examples" / "python" / "own_data.py"
STEPS = ["--pretrain.steps", "2", "--finetune.steps", "4", "--finetune.batch_size", "8"]


@pytest.fixture
def plugin(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[list[str]]:
    """The options that import the example, in the folder of the commands."""
    (tmp_path / "stranger.py").write_bytes(EXAMPLE.read_bytes())
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    yield ["--plugin", "stranger"]
    sys.modules.pop("stranger", None)


def test_commands_know_a_plugins_data_loss_and_metric(
    plugin: list[str], capsys: pytest.CaptureFixture[str]
) -> None:
    wanted = ["--data", "ticks", "--model", "mlp", *STEPS, "--finetune.loss", "focal"]
    gamma = ["--finetune.loss_overrides.gamma", "1.5"]
    with pytest.raises(FileNotFoundError, match="ticks"):
        train.main(wanted)
    train.main([*plugin, *wanted, *gamma])
    run = Path("runs", "ticks-mlp-1")
    printed = capsys.readouterr().out
    assert "data: ticks, 3 classes" in printed
    evaluate.main([*plugin, "--run", str(run)])
    assert "; accuracy " in capsys.readouterr().out
    last = json.loads((run / "metrics.jsonl").read_text().splitlines()[-1])
    assert 0 <= last["accuracy"] <= 1
    predict.main([*plugin, "--run", str(run), "--out", "submission.csv"])
    best = Path("submission.csv").read_text().splitlines()[1].split(",")[1].split()
    assert len(best) == 4 * 50 * 6
    assert {int(segment.partition(":")[2]) for segment in best} == set(range(0, 60, 10))


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (
            ["--finetune.loss", "focus"],
            "--finetune.loss: .* unknown loss 'focus' .did you",
        ),
        (
            ["--pretrain.loss", "focal", "--pretrain.loss_overrides.gama", "1"],
            "--pretrain.loss_overrides: .* unknown argument of focal 'gama' .did you mean 'gamma'",
        ),
        (
            ["--finetune.loss", "focal", "--finetune.loss_overrides.gamma", "much"],
            "--finetune.loss_overrides.gamma: expected float, found 'much'",
        ),
    ],
)
def test_losses_are_checked(plugin: list[str], options: list[str], message: str) -> None:
    with pytest.raises(UserError, match=f"^{message}"):
        train.main([*plugin, "--data", "ticks", "--model", "mlp", *options])
    assert not Path("runs").exists()


@pytest.mark.parametrize(
    ("result", "found"),
    [
        (lambda x: x.sum(1), r"shape \(8,\)"),
        (lambda x: x.sum().detach(), "shape"),
        (lambda x: 0.5, "<class 'float'>"),
    ],
    ids=["a row", "detached", "a number"],
)
def test_a_loss_is_a_scalar_with_a_gradient(plugin: list[str], result, found: str) -> None:
    @register_loss("odd")
    class Odd(nn.Module):  # without an __init__ of its own
        def forward(self, logits, offsets, classes, scores):
            return result(logits)

    steps = ["--pretrain.steps", "0", "--finetune.batch_size", "8", "--finetune.loss", "odd"]
    with pytest.raises(UserError, match=f"^Odd: expected a loss that is a scalar .* {found}"):
        train.main([*plugin, "--data", "ticks", "--model", "mlp", *steps])


def test_a_loss_gets_the_arguments_that_it_has_parameters_for() -> None:
    @register_loss("own")
    class Own(nn.Module):
        def __init__(self, margin: float, rated_weight: float = 1.0) -> None:
            super().__init__()
            self.margin, self.rated_weight = margin, rated_weight

    made = make_loss("own", {"margin": 2.0}, rated_weight=2.5, unrated_weight=0.1)
    assert (made.margin, made.rated_weight) == (2.0, 2.5)
    with pytest.raises(ArgumentError, match="loss_overrides: expected margin, which own needs"):
        make_loss("own", {})


def own_format(name: str, **changes: Any) -> Format:
    features = FeatureSet((("rgb", 3), ("audio", 2)), frame_seconds=0.5)
    return Format(name, "own records (rgb, audio)", features, open_records, **changes)


def test_the_last_matching_format_is_used(tmp_path: Path) -> None:
    register_format(own_format("own"))
    frames, schema = np.zeros((5, 5), np.uint8), own_format("own").features.schema
    write_records(tmp_path / "a.tfrecord", [encode_frames("a", frames, [1], schema=schema)])
    with pytest.raises(DataError, match=r"a.tfrecord: expected a vocabulary.csv beside it"):
        open_collection(tmp_path)
    (tmp_path / "vocabulary.csv").write_text("Index,Name\n0,a\n1,b\n")
    collection = open_collection(tmp_path, test_fraction=0.0)
    assert (collection.name, collection.feature_sizes) == ("own", (3, 2))
    assert collection.features == own_format("own").features
    assert [example.classes.tolist() for example in collection.videos("train")] == [[1]]
    register_format(own_format("none", recognize=lambda kind: False))
    register_format(own_format("id", recognize=lambda kind: "id" in kind.context))
    assert open_collection(tmp_path).name == "id"


def test_registries_refuse_registered_names() -> None:
    kinds = {registry.kind for registry in Registry.every}
    assert {"preset", "head", "format", "source of data", "metric", "loss"} <= kinds
    assert [format.name for format in formats()] == [
        "youtube8m-videos",
        "youtube8m",
        "audioset",
        "features",
    ]
    with pytest.raises(ArgumentError, match=r"name: expected .* new format, found 'audioset'"):
        register_format(own_format("audioset"))
    with pytest.raises(
        ArgumentError, match=r"name: expected .* new source of data, found 'sample'"
    ):
        register_source("sample", Path)
    for name in ("map", "gap", "step", "stage", "after"):
        with pytest.raises(ArgumentError, match=rf"name: expected .* new metric, found '{name}'"):
            evaluate.register_metric(name, on="labels")(lambda num_classes: None)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"features": None}, "features: expected a FeatureSet, found None"),
        ({"level": "clip"}, 'level: expected "frame" or "video", found \'clip\''),
        ({"described_by": 3}, "described_by: expected a name, found 3"),
        ({"open": 3}, "open: expected a function, found 3"),
        ({"recognize": "x"}, "recognize: expected a function, found 'x'"),
        ({"describe": 3}, "describe: expected a function, found 3"),
    ],
)
def test_what_is_no_format(changes: dict[str, Any], message: str) -> None:
    with pytest.raises(ArgumentError, match=f"^{message}"):
        register_format(dataclasses.replace(own_format("own"), **changes))
    with pytest.raises(ArgumentError, match=r"^format: expected a Format, found None"):
        register_format(None)
    assert len(formats()) == 4


def test_only_what_can_be_called_is_registered() -> None:
    for register in (
        models.register("own"),
        models.register_head("own"),
        register_loss("own"),
        evaluate.register_metric("own", on="labels"),
        lambda make: register_source("own", make),
    ):
        with pytest.raises(ArgumentError, match=r"own: expected a class or function, found 3"):
            register(3)
    with pytest.raises(ArgumentError, match=r"^on: expected 'ratings' or 'labels', found 'rating'"):
        evaluate.register_metric("own", on="rating")(lambda num_classes: None)


def test_the_console_script_finds_a_plugin_beside_it(
    plugin: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys
) -> None:
    monkeypatch.setattr(sys, "path", [p for p in sys.path if p not in ("", str(tmp_path))])
    train.main([*plugin, "--data", "ticks", "--model", "mlp", *STEPS])
    run = Path("runs", "ticks-mlp-1")
    again = f"evaluate again: python -m pyseg.evaluate --run {run} --plugin stranger"
    assert again in capsys.readouterr().out.splitlines()
    cooccur.main([*plugin, "--data", "ticks", "--num_classes", "3", "--out", "c.npz"])
    with pytest.raises(
        FileNotFoundError, match=r"^tocks: no such .*sources sample, ticks; .*plugin"
    ):
        train.main([*plugin, "--data", "tocks"])


def test_metrics_are_numbers(plugin: list[str]) -> None:
    class Text:
        def __init__(self, num_classes: int) -> None:
            pass

        def update(self, batch, logits) -> None:
            pass

        def compute(self) -> str:
            return "much"

    evaluate.register_metric("text", on="ratings")(Text)
    with pytest.raises(
        UserError, match=r"^metric text: expected a number of compute\(\), found 'mu"
    ):
        train.main([*plugin, "--data", "ticks", "--model", "mlp", *STEPS])
    with pytest.raises(UserError, match=r"^--truth x.csv: expected --submission with it"):
        evaluate.main(["--run", "run", "--truth", "x.csv"])


def test_a_plugins_preset_has_defaults_of_training(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    (tmp_path / "slow_preset.py").write_text(
        "from pyseg import models, nn\n"
        "defaults = {'finetune.learning_rate': 0.5, 'pretrain.steps': 3, 'max_frames': 7}\n"
        "models.register('slow', training_defaults=defaults)(nn.MLP)\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    words = ["--plugin", "slow_preset", "--model", "slow", "--pretrain.steps", "4"]
    found = train.parse_options(words)
    assert (found.finetune.learning_rate, found.pretrain.steps, found.max_frames) == (0.5, 4, 7)
    assert found.pretrain.learning_rate == train.parse_options([]).pretrain.learning_rate
    assert TrainConfig(model="slow").finetune.learning_rate == 0.5  # in Python too
    assert TrainConfig(model="slow", recipe="paper").pretrain.steps == 200_000
    assert models.create("slow", num_classes=2, hidden_size=3).config.overrides == {
        "hidden_size": 3
    }
    sys.modules.pop("slow_preset")

    models.register("wrong", training_defaults={"finetune.rate": 1})(nn_of_pyseg.MLP)
    with pytest.raises(ArgumentError, match=r"'finetune\.rate' of the preset wrong"):
        TrainConfig(model="wrong")
