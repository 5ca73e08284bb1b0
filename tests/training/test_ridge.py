"""Ridge regressions, and training by them."""

from __future__ import annotations

import os
import signal
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest
import torch
from sklearn.linear_model import Ridge
from torch import Tensor, nn

from pyseg import models, train
from pyseg.config import LossConfig, StageConfig, TrainConfig
from pyseg.data import Ratings, ReadReport, encode_frames, open_collection, write_records
from pyseg.errors import UserError
from pyseg.labels import LabelCorrelation
from pyseg.reproduce import PLAIN
from pyseg.runs import Run
from pyseg.train._stages import make_stages
from pyseg.training import Loss, RidgeRegression, RidgeSolution, Trainer, losses
from pyseg.training.ridge import _Calibration


def data(count: int, inputs: int = 6, outputs: int = 3) -> tuple[Tensor, Tensor]:
    """Inputs that are far from 0 and of unlike deviations, and outputs that depend on them."""
    generator = torch.Generator().manual_seed(count)
    x = torch.randn(count, inputs, generator=generator, dtype=torch.float64)
    x = x * torch.logspace(0, -2, inputs) + 3
    true = torch.randn(inputs, outputs, generator=generator, dtype=torch.float64)
    noise = torch.randn(count, outputs, generator=generator, dtype=torch.float64)
    return x, x @ true + noise


def solved(x: Tensor, y: Tensor, weight: Tensor | None = None, parts: int = 3) -> RidgeSolution:
    regression = RidgeRegression(x.shape[1], y.shape[1])
    for each in zip(x.tensor_split(parts), y.tensor_split(parts), strict=True):
        regression.update(*each)
    return regression.solve(weight)


def score(x: Tensor, y: Tensor, penalty: float) -> float:
    """Generalised cross-validation by its definition, with the matrix of the predictions."""
    centred = x - x.mean(0)
    moments = centred.T @ centred + penalty * torch.eye(x.shape[1], dtype=x.dtype)
    hat = centred @ torch.linalg.solve(moments, centred.T) + 1 / len(x)
    errors = (y - hat @ y).square().sum() / len(x)
    return float(errors / (1 - hat.trace() / len(x)) ** 2)


@pytest.mark.parametrize("count", [4, 7, 100])
def test_solves_what_scikit_learn_does_with_the_best_penalty(count: int) -> None:
    """Also with fewer examples than inputs."""
    x, y = data(count)
    solution = solved(x, y)
    reference = Ridge(alpha=solution.penalty).fit(x.numpy(), y.numpy())
    np.testing.assert_allclose(solution.weight, reference.coef_, rtol=1e-7, atol=1e-9)
    np.testing.assert_allclose(solution.bias, reference.intercept_, rtol=1e-7)
    largest = torch.linalg.eigvalsh((x - x.mean(0)).T @ (x - x.mean(0)))[-1]
    scores = [score(x, y, float(largest) * 10**power) for power in np.linspace(-5, 3, 49)]
    assert score(x, y, solution.penalty) <= min(scores) * (1 + 1e-6)


def test_more_noise_takes_a_larger_penalty() -> None:
    x, y = data(200)
    noise = torch.randn(y.shape, generator=torch.Generator().manual_seed(0))
    penalties = [solved(x, y + strength * noise).penalty for strength in (0, 3, 30)]
    assert penalties[0] < penalties[1] < penalties[2]


def test_shrinks_to_weights_whose_scale_it_finds() -> None:
    x, _ = data(12, inputs=40)
    true = torch.randn(2, 40, dtype=torch.float64, generator=torch.Generator().manual_seed(1))
    y = x @ true.T
    known = solved(x, y, 5 * true)
    torch.testing.assert_close(known.weight, true, rtol=1e-6, atol=1e-8)
    unknown, opposite = solved(x, y), solved(x, y, -true)
    torch.testing.assert_close(opposite.weight, unknown.weight)
    assert (unknown.weight - true).norm() > 0.1 * true.norm()
    torch.testing.assert_close(solved(x, y, torch.zeros(2, 40)).weight, unknown.weight)


def test_edges() -> None:
    with pytest.raises(ValueError, match="RidgeRegression: expected examples, found none"):
        RidgeRegression(2, 1).solve()
    one = solved(torch.tensor([[1.0, 2.0]]), torch.tensor([[0.5]]), parts=1)
    assert (one.weight.tolist(), one.bias.tolist()) == ([[0.0, 0.0]], [0.5])
    x, y = data(9)
    constant = solved(torch.full_like(x, 0.1), y)
    torch.testing.assert_close(constant.bias + 0.1 * constant.weight.sum(1), y.mean(0))
    nothing = solved(x, torch.zeros_like(y))
    assert not nothing.weight.any()
    assert not nothing.bias.any()


def test_probabilities_come_from_examples_that_were_left_out() -> None:
    x, _ = data(30, outputs=1)
    y = (x[:, :1] > 3).double()
    solution = solved(x, y)
    found = []
    for left_out in range(len(x)):
        rest = torch.arange(len(x)) != left_out
        model = Ridge(alpha=solution.penalty).fit(x[rest].numpy(), y[rest].numpy())
        found.append(float(model.predict(x[~rest].numpy()).item()))
    calibration = _Calibration(solution, len(x))
    calibration.update(x, y)
    expected = np.histogram(found, 3000, (-1.0, 2.0))[0]
    assert np.abs(np.cumsum(calibration._counted[0].numpy()) - np.cumsum(expected)).max() <= 1
    slope, bias = calibration.fit()
    logits = torch.tensor(found) * slope + bias
    assert float(logits.sigmoid().mean()) == pytest.approx(float(y.mean()), abs=0.02)
    assert slope > 2


@pytest.mark.parametrize("value", [0.0, 1.0])
def test_probabilities_of_targets_that_are_all_the_same(value: float) -> None:
    x, _ = data(20)
    y = torch.full((20, 2), value)
    solution = solved(x, y)
    calibration = _Calibration(solution, 20)
    calibration.update(x, y)
    slope, bias = calibration.fit()
    assert np.isfinite([slope, bias]).all()
    assert abs(1 / (1 + np.exp(-(slope * value + bias))) - value) < 0.1


# ---------------------------------------------------------------- training

STAGES = {"pretrain": StageConfig(1, 1.0, 8), "finetune": StageConfig(1, 1.0, 8)}


@pytest.fixture(scope="module")
def folder(tmp_path_factory) -> Path:
    """60 videos of 10 frames; class c is present where bytes 4c to 4c + 3 of a frame are large."""
    folder = tmp_path_factory.mktemp("segments")
    rng = np.random.default_rng(0)
    records = []
    for video in range(60):
        frames = rng.integers(100, 156, (10, 1152)).astype(np.uint8)
        label = video % 4
        frames[:5, 4 * label : 4 * label + 4] = 255
        scores = np.array([1, 0], np.float32)
        ratings = Ratings(np.array([0, 5]), np.array([label, label]), scores)
        records.append(encode_frames(f"v{video:03d}", frames, [label], ratings))
    write_records(folder / "validate0000.tfrecord", records)
    lines = ["Index,Name", *(f"{number},class {number}" for number in range(4))]
    (folder / "vocabulary.csv").write_text("\n".join(lines) + "\n")
    return folder


def ridge(folder: Path, run: Path, **changes) -> TrainConfig:
    return TrainConfig(str(folder), run=str(run), **({"recipe": "best"} | STAGES | changes))


def test_trains_both_stages(folder: Path, tmp_path: Path, capsys) -> None:
    run = train.train(ridge(folder, tmp_path / "run"))
    output = capsys.readouterr().out
    assert "pretrain: ridge regression on 4" in output
    assert "finetune: ridge regression on 9" in output
    assert "classes; ridge counts an unrated class as absent, so that with so few" in output
    model = models.load(run)
    assert model.unit_length
    segments = np.full((2, 5, 1152), 128, np.uint8)
    segments[0, :, 8:12] = 255
    probabilities = model(torch.from_numpy(segments)).sigmoid()
    assert probabilities[0].argmax() == 2
    assert probabilities[0, 2] > 0.5 > probabilities[1, 2]
    config = Run(run).config()
    assert (config.model, config.solver, config.loss.threshold) == ("ridge", "ridge", 0.0)
    assert train.train(ridge(folder, tmp_path / "again")).is_dir()
    again = models.load(tmp_path / "again")
    assert torch.equal(model.head.linear.weight, again.head.linear.weight)


def test_targets_are_those_of_the_loss(folder: Path, tmp_path: Path) -> None:
    """Its correlation counts, its weights do not."""

    def weight(name: str, loss: LossConfig) -> Tensor:
        run = train.train(ridge(folder, tmp_path / name, loss=loss, stage="finetune"))
        return models.load(run).head.linear.weight

    plain = weight("plain", PLAIN)
    assert torch.equal(plain, weight("weighted", replace(PLAIN, rated_weight=100.0)))
    counted = LabelCorrelation(torch.arange(5).clamp(max=1), torch.tensor([1]), torch.tensor([0.9]))
    counted.save(tmp_path / "correlation.npz")  # whoever has class 0 often has class 1
    correlated = weight("correlated", replace(PLAIN, correlation=str(tmp_path / "correlation.npz")))
    assert correlated[1, :4].mean() > plain[1, :4].mean()
    torch.testing.assert_close(
        correlated[2:] / plain[2:], (correlated / plain)[2, 0].expand(2, 1152)
    )


def test_bayes_rule_for_classes_that_are_rated_0(folder: Path, tmp_path: Path) -> None:
    """Steps take the same targets as a regression, and the weights of the loss."""
    stages = make_stages(
        ridge(folder, tmp_path, stage="finetune"),
        open_collection(folder),
        None,
        None,
        torch.device("cpu"),
        ReadReport(),
    )[0]
    loss = stages[0].loss
    assert isinstance(loss, Loss)
    assert loss.absent_evidence == 0
    loss.correlation = related = LabelCorrelation(
        torch.tensor([0, 1, 2, 2, 2]), torch.tensor([1, 0]), torch.tensor([0.5, 0.25])
    )
    loss.absent = related.when_absent()
    ratings = torch.tensor([0, 1]), torch.tensor([0]), torch.tensor([0.0])
    assert loss.targets(*ratings, 4).tolist() == [[0, 1, 0, 0]]
    logits = torch.randn(1, 4, requires_grad=True)
    weights = torch.tensor([[1.0, 0.2, 0.2, 0.2]])
    expected = nn.functional.binary_cross_entropy_with_logits(
        logits, loss.targets(*ratings, 4), weights, reduction="sum"
    )
    torch.testing.assert_close(loss(logits, *ratings), expected)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"model": "mlp"}, "--solver ridge: expected a linear model .* found MLP"),
        (
            {"finetune": StageConfig(1, 1.0, 8, loss="mine")},
            "--solver ridge: expected --finetune.loss rated-bce, .* found mine",
        ),
    ],
)
def test_only_for_linear_models_and_the_papers_targets(
    folder: Path, tmp_path: Path, monkeypatch, changes, message: str
) -> None:
    monkeypatch.setitem(losses._LOSSES, "mine", torch.nn.MSELoss)
    with pytest.raises(UserError, match=message):
        train.train(ridge(folder, tmp_path / "run", solver="ridge", **changes))
    assert not (tmp_path / "run").exists()


def test_an_interrupted_stage_starts_again(
    folder: Path, tmp_path: Path, monkeypatch, capsys, ctrl_c
) -> None:
    whole = train.train(ridge(folder, tmp_path / "whole"))
    evaluations = []

    def interrupting(trainer, model):
        evaluations.append(1)
        os.kill(os.getpid(), signal.SIGINT)
        return save(trainer, model)

    save = Trainer.save_weights
    with monkeypatch.context() as patch:
        patch.setattr(
            Trainer,
            "save_weights",
            lambda trainer, model, folder=None: (
                interrupting(trainer, model)
                if model.head.linear.weight.any() and not evaluations
                else save(trainer, model, folder)
            ),
        )
        with pytest.raises(KeyboardInterrupt):
            train.train(ridge(folder, tmp_path / "run"))
    assert "stopped at finetune, which starts again: " in capsys.readouterr().out
    train.train(TrainConfig(resume=str(tmp_path / "run")))
    assert "continuing from finetune, step 0" in capsys.readouterr().out
    logs = [(run / "metrics.jsonl").read_text() for run in (whole, tmp_path / "run")]
    assert logs[0] == logs[1]
    weights = [models.load(run).head.linear.weight for run in (whole, tmp_path / "run")]
    assert torch.equal(*weights)


def test_a_final_fit_uses_the_held_out_segments_too(folder: Path, tmp_path: Path, capsys) -> None:
    train.train(ridge(folder, tmp_path / "run", final_fit=True))
    printed = capsys.readouterr().out
    assert "final: ridge regression on 120 examples" in printed
    assert "the evaluation above is of the weights before the final fit" in printed
    assert "evaluate again" not in printed


def test_options_that_only_steps_use_are_named(folder: Path, tmp_path: Path, capsys) -> None:
    default = TrainConfig(model="ridge")
    stage = replace(default.finetune, steps=7, learning_rate=0.1, ema=0.5)
    given = {"pretrain": default.pretrain, "finetune": stage, "precision": "bf16", "compile": True}
    train.train(ridge(folder, tmp_path / "run", **given))
    expected = "--finetune.steps, --finetune.learning_rate, --finetune.ema, --compile, --precision"
    assert (
        f"solver: ridge takes no steps, and has no use for {expected}\n" in capsys.readouterr().out
    )
    used = {
        "pretrain": replace(default.pretrain, steps=0, batch_size=7),
        "finetune": default.finetune,
    }
    train.train(ridge(folder, tmp_path / "none", **used))
    assert "has no use for" not in capsys.readouterr().out


def test_copies_of_a_solution_are_refused(folder: Path, tmp_path: Path) -> None:
    with pytest.raises(UserError, match="--copies 2: expected 1 with --solver ridge"):
        train.train(ridge(folder, tmp_path / "run", copies=2))
