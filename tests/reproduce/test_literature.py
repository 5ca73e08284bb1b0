"""The losses of the literature, against loops over their pairs in float64."""

from __future__ import annotations

import io
import math
import os
import signal
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path

import pytest
import torch
from torch import Tensor, nn

from pyseg import models
from pyseg.config import StageConfig
from pyseg.errors import ArgumentError, UserError
from pyseg.metrics import MeanAveragePrecisionAtK
from pyseg.reproduce import (
    ModelSpec,
    Runner,
    Variant,
    literature,
    make_comparisons,
    open_experiment,
)
from pyseg.reproduce.comparisons import PLAIN
from pyseg.reproduce.experiments import GeneratedSample
from pyseg.reproduce.literature import (
    METHODS,
    EntropyMaximization,
    JointEstimation,
    LargeLoss,
    SelfPacedCorrection,
)
from pyseg.training import StageRun, make_loss

Ratings = list[dict[int, float]]
CLASSES = 6
ALL = dict.fromkeys(range(CLASSES), 0.0)
# One class rated, none, both kinds, all, and a score between 0 and 1.
RATINGS: Ratings = [{2: 1.0}, {4: 0.0}, {}, {0: 1.0, 5: 0.0}, ALL | {1: 1.0}, {3: 0.25}]
IDS = [f"v{number}" for number in range(len(RATINGS))]


def ragged(ratings: Ratings) -> tuple[Tensor, Tensor, Tensor]:
    """Returns offsets, classes and scores."""
    offsets = torch.tensor([0, *(len(row) for row in ratings)]).cumsum(0)
    classes = [number for row in ratings for number in row]
    scores = [score for row in ratings for score in row.values()]
    return offsets, torch.tensor(classes, dtype=torch.int64), torch.tensor(scores)


def probability(z: Tensor) -> Tensor:
    return 1 / (1 + torch.exp(-z))


def entropy(z: Tensor, q: Tensor | float) -> Tensor:
    """Returns the cross-entropy of the probability of a logit z and a target q."""
    return -q * torch.log(probability(z)) - (1 - q) * torch.log(probability(-z))


def batches(
    count: int, examples: Sequence[int] = range(len(RATINGS))
) -> Iterator[tuple[list[str], Ratings, Tensor]]:
    """Yields ids, ratings and logits of steps, each of which has the examples in another order.

    The later an example is in `RATINGS`, the larger its logits are as a rule.
    """
    generator = torch.Generator().manual_seed(0)
    for step in range(count):
        chosen = [examples[(place + step) % len(examples)] for place in range(len(examples))]
        logits = torch.randn(len(chosen), CLASSES, generator=generator, dtype=torch.float64)
        logits += torch.tensor(chosen).unsqueeze(1) / 2 - 1
        yield [IDS[n] for n in chosen], [RATINGS[n] for n in chosen], logits.requires_grad_()


def compare(
    loss: nn.Module,
    naive: Callable[[list[str], Ratings, Tensor], Tensor],
    steps: int,
    examples: Sequence[int] = range(len(RATINGS)),
) -> None:
    """Compares values and gradients of a loss with a loop, over steps."""
    for ids, ratings, logits in batches(steps, examples):
        if hasattr(loss, "set_examples"):
            loss.set_examples(ids)
        expected = naive(ids, ratings, logits)
        (wanted,) = torch.autograd.grad(expected, logits)
        found = loss(logits, *ragged(ratings))
        torch.testing.assert_close(found, expected, rtol=1e-8, atol=1e-10)
        torch.testing.assert_close(
            torch.autograd.grad(found, logits)[0], wanted, rtol=1e-8, atol=1e-10
        )


@pytest.mark.parametrize("boost", [1.0, 5.0])
@pytest.mark.parametrize("scheme", ["reject", "correct", "correct-permanently"])
@pytest.mark.parametrize("examples", [range(6), [2, 2, 2], [4, 4], [0]])
def test_large_losses(scheme: str, boost: float, examples: Sequence[int]) -> None:
    delta, epoch_steps, corrected, step = 7.0, 2, set(), 0

    def naive(ids: list[str], ratings: Ratings, logits: Tensor) -> Tensor:
        nonlocal step
        epoch, step = step // epoch_steps, step + 1
        losses, opposite, unrated = {}, {}, []
        for n, row in enumerate(ratings):
            for c in range(CLASSES):
                z = boost * logits[n, c] if logits[n, c] > 0 else logits[n, c]
                target = row.get(c, float((ids[n], c) in corrected))
                losses[n, c] = entropy(z, target)
                opposite[n, c] = entropy(z, 1.0)
                if c not in row and (ids[n], c) not in corrected:
                    unrated.append((n, c))
        rate = delta / 100 * (1 if scheme == "correct-permanently" else epoch)
        count = math.ceil(rate * len(ids) * CLASSES) if epoch else 0
        largest = sorted(unrated, key=lambda pair: -losses[pair].item())[:count]
        for n, c in largest:
            losses[n, c] = torch.zeros(()).double() if scheme == "reject" else opposite[n, c]
            if scheme == "correct-permanently":
                corrected.add((ids[n], c))
        return sum(losses.values()) / len(ids)

    compare(
        LargeLoss(scheme, delta=delta, epoch_steps=epoch_steps, boost=boost), naive, 9, examples
    )
    assert (scheme == "correct-permanently" and examples != [4, 4]) == bool(corrected)


def test_boosting_a_single_position_leaves_rankings_as_they_are() -> None:
    logits = torch.randn(200, 20, generator=torch.Generator().manual_seed(1))
    truth = (torch.rand(200, 20, generator=torch.Generator().manual_seed(2)) < 0.2).numpy()
    found = []
    for scores in (logits, torch.where(logits > 0, 5 * logits, logits)):
        ranking = MeanAveragePrecisionAtK(20)
        ranking.update_dense(scores, truth)
        found.append(ranking.compute().per_class.tolist())
    assert found[0] == found[1]


@pytest.mark.parametrize("examples", [range(6), [2, 2, 2], [4, 4]])
def test_self_paced_correction(examples: Sequence[int]) -> None:
    tau, margin, gamma, epoch_steps, step = 0.6, 0.7, 2.0, 2, 0

    def naive(ids: list[str], ratings: Ratings, logits: Tensor) -> Tensor:
        nonlocal step
        total = torch.zeros(()).double()
        for n, row in enumerate(ratings):
            for c in range(CLASSES):
                p, p_m = probability(logits[n, c]), probability(logits[n, c] - margin)
                positive = -((1 - p_m) ** gamma) * torch.log(p_m)
                negative = -(p**gamma) * torch.log(1 - p)
                sure = step >= epoch_steps and c not in row and p > tau
                target = 1.0 if sure else row.get(c, 0.0)
                total = total + target * positive + (1 - target) * negative
        step += 1
        return total / len(ids)

    loss = SelfPacedCorrection(tau=tau, margin=margin, gamma=gamma, epoch_steps=epoch_steps)
    compare(loss, naive, 5, examples)


@pytest.mark.parametrize("examples", [range(6), [2, 0, 2], [4], [1, 3]])
def test_joint_estimation(examples: Sequence[int]) -> None:
    expected, rate = 1.5, 0.3
    loss = JointEstimation(expected=expected, learning_rate=rate)
    start = torch.randn(len(IDS), CLASSES, dtype=torch.float64)
    loss.set_examples(IDS)
    loss.recall(theta=start, first=torch.zeros_like(start), second=torch.zeros_like(start))
    theta, step = start.clone().requires_grad_(), 0
    optimizer = torch.optim.Adam([theta], lr=rate)

    def half(z: Tensor, other: Tensor, ratings: Ratings) -> Tensor:
        total, number = torch.zeros(()).double(), torch.zeros(()).double()
        for n, row in enumerate(ratings):
            for c in range(CLASSES):
                p = probability(z[n, c])
                total = total + entropy(z[n, c], probability(other[n, c]))
                number = number + p
                if c in row:
                    total = total + entropy(z[n, c], row[c])
        return (total + (number / len(z) - expected) ** 2 * len(z) / CLASSES) / len(z) / 2

    def naive(ids: list[str], ratings: Ratings, logits: Tensor) -> Tensor:
        nonlocal step
        if step:
            torch.testing.assert_close(loss.kept["theta"], theta.detach())
        step += 1
        own = theta[[IDS.index(id) for id in ids]]
        value = half(logits, own.detach(), ratings) + half(own, logits.detach(), ratings)
        optimizer.zero_grad()
        (theta.grad,) = torch.autograd.grad(value, theta, retain_graph=True)
        optimizer.step()
        return value

    compare(loss, naive, 5, examples)
    torch.testing.assert_close(loss.kept["theta"], theta.detach())


def test_estimates_start_at_what_is_rated() -> None:
    loss = JointEstimation(expected=2.0, learning_rate=1e-9)
    loss.set_examples(IDS)
    loss(torch.zeros(len(IDS), CLASSES), *ragged(RATINGS))
    start = loss.kept["theta"].sigmoid()
    torch.testing.assert_close(start[0, 2], torch.tensor(0.995))
    torch.testing.assert_close(start[1, 4], torch.tensor(0.005))
    unknown = start[2]
    assert bool(((unknown > 0.4) & (unknown < 0.6)).all())
    assert len(set(unknown.tolist())) == CLASSES


@pytest.mark.parametrize("pseudo", [0.0, 0.9])
@pytest.mark.parametrize("examples", [range(6), [2, 0], [4]])
def test_entropy_maximization(pseudo: float, examples: Sequence[int]) -> None:
    alpha, beta, warmup, epoch_steps = 0.1, 0.4, 8, 2
    latest: dict[tuple[str, int], float] = {}
    labels: dict[tuple[str, int], float] = {}
    step = 0

    def relabel() -> None:
        for c in range(CLASSES):
            unrated = [pair for pair in latest if pair[1] == c]
            free = sorted((pair for pair in unrated if pair not in labels), key=latest.__getitem__)
            for pair in free[: int(pseudo * len(unrated) / (10 - warmup))]:
                labels[pair] = latest[pair]

    def naive(ids: list[str], ratings: Ratings, logits: Tensor) -> Tensor:
        nonlocal step
        if step in (16, 18):  # the ends of the epochs 8 and 9
            relabel()
        step += 1
        total = torch.zeros(()).double()
        for n, row in enumerate(ratings):
            for c in range(CLASSES):
                z, pair = logits[n, c], (ids[n], c)
                p = probability(z)
                if c in row:
                    total = total + entropy(z, row[c])
                elif pair in labels:
                    total = total + beta * entropy(z, labels[pair])
                else:
                    total = total - alpha * entropy(z, p)
                if c not in row:
                    latest[pair] = p.item()
        return total / len(ids)

    loss = EntropyMaximization(
        alpha=alpha, beta=beta, pseudo=pseudo, warmup=warmup, epoch_steps=epoch_steps
    )
    compare(loss, naive, 20, examples)
    assert bool(labels) == (pseudo > 0 and examples == range(6))


LOSSES = {
    "large-loss": {"scheme": "correct-permanently", "delta": 5.0, "epoch_steps": 1},
    "self-paced-correction": {"epoch_steps": 3},
    "joint-estimation": {"expected": 1.0},
    "entropy-maximization": {"pseudo": 0.9, "warmup": 9, "epoch_steps": 1},
}


@pytest.mark.parametrize("name", LOSSES)
def test_a_checkpoint_goes_on(name: str) -> None:
    def values(loss: nn.Module, steps: list) -> list[float]:
        found = []
        for ids, ratings, logits in steps:
            if hasattr(loss, "set_examples"):
                loss.set_examples(ids)
            found.append(loss(logits, *ragged(ratings)).item())
        return found

    every = list(batches(14))
    torch.manual_seed(0)
    loss = make_loss(name, LOSSES[name])
    values(loss, every[:10])
    file = io.BytesIO()
    torch.save(loss.state_dict(), file)
    expected = values(loss, every[10:])
    other = make_loss(name, LOSSES[name])
    other.load_state_dict(torch.load(io.BytesIO(file.getvalue()), weights_only=True))
    assert values(other, every[10:]) == expected
    assert values(make_loss(name, LOSSES[name]), every[10:]) != expected


def test_an_interrupted_run_remembers_examples(
    tiny: ModelSpec, tmp_path, monkeypatch, ctrl_c
) -> None:
    options = {"scheme": "correct-permanently", "delta": 5.0, "epoch_steps": 5}
    stage = StageConfig(8, 1e-3, 8, loss="large-loss", loss_overrides=options)
    row = Variant("row", tiny, PLAIN, finetune=stage)
    experiment = open_experiment("sample", tmp_path)
    Runner(experiment, tmp_path / "whole").run(row, 0)
    take, taken = StageRun._take_step, []

    def interrupted(self, batch):
        taken.append((self.stage.name, self.step))
        if taken.count(("finetune", 4)) == 1 and taken[-1] == ("finetune", 4):
            os.kill(os.getpid(), signal.SIGINT)
        return take(self, batch)

    monkeypatch.setattr(StageRun, "_take_step", interrupted)
    with pytest.raises(KeyboardInterrupt):
        Runner(experiment, tmp_path / "runs").run(row, 0)
    Runner(experiment, tmp_path / "runs").run(row, 0)
    assert taken[-4:] == [("finetune", step) for step in range(4, 8)]
    (found,), (expected,) = ((tmp_path / name).glob("*-0") for name in ("runs", "whole"))
    wanted = models.load(expected).state_dict()
    torch.testing.assert_close(models.load(found).state_dict(), wanted, rtol=0, atol=0)


def test_the_table(monkeypatch) -> None:
    assert "literature" not in {t.name for t in make_comparisons(GeneratedSample(Path(), "test"))}
    monkeypatch.setattr(GeneratedSample, "labels_per_example", 2.0)
    monkeypatch.setattr(GeneratedSample, "finetune", StageConfig(200, 1e-3, 8))
    table = make_comparisons(GeneratedSample(Path(), "test"))[-1]
    assert (table.name, table.ceiling, table.variants[-1].complete) == ("literature", True, True)
    stages = [row.finetune for row in table.variants if row.finetune is not None]
    assert len(stages) == len(METHODS)
    for stage in stages:
        loss = make_loss(stage.loss, stage.loss_overrides)
        assert loss.epoch_steps == (1 if isinstance(loss, JointEstimation) else 20)


def test_errors(monkeypatch) -> None:
    for name, options, message in (
        ("large-loss", {"epoch_steps": 0}, "epoch_steps: expected at least 1, found 0"),
        ("large-loss", {"epoch_steps": 1, "delta": 0.0}, "delta: expected a finite number above 0"),
        ("large-loss", {"epoch_steps": 1, "scheme": "no"}, "scheme: expected .*, found 'no'"),
        ("joint-estimation", {"expected": -1.0}, "expected: expected a finite number above 0"),
        (
            "entropy-maximization",
            {"epoch_steps": 1, "pseudo": 2.0},
            r"pseudo: expected .* \[0, 1\]",
        ),
        ("entropy-maximization", {"epoch_steps": 1, "warmup": 10}, "warmup: expected 1 to 9"),
    ):
        with pytest.raises(ArgumentError, match=message):
            make_loss(name, options)
    loss = JointEstimation(expected=1.0)
    with pytest.raises(ArgumentError, match="set_examples: expected 6 ids, found 0"):
        loss(torch.zeros(6, CLASSES), *ragged(RATINGS))
    monkeypatch.setattr(literature.distributed, "world_size", lambda: 2)
    with pytest.raises(UserError, match=r"JointEstimation: expected one process, .* found 2"):
        loss(torch.zeros(6, CLASSES), *ragged(RATINGS))
