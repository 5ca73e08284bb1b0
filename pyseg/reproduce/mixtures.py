"""The table "mixtures": three models that are alike, or not, trained together or apart."""

from __future__ import annotations

import functools
from collections.abc import Iterator, Sequence
from dataclasses import replace
from typing import Any, cast

import torch
from torch import Tensor, nn

from pyseg.evaluate import predictions
from pyseg.models import register
from pyseg.nn import MLP, Mixture
from pyseg.reproduce.comparisons import COPIES, Variant, recipe_variant
from pyseg.reproduce.experiments import Experiment, ModelSpec, Scored
from pyseg.reproduce.runner import Runner
from pyseg.reproduce.ways import Ways


@register("mlp-of-feature")
class MLPOfFeature(MLP):
    """The perceptron `MLP`, which sees one of the features alone and takes the others as 0.

    Args:
        num_classes: The number of classes C.
        feature: The number of that feature.
        **more: See `MLP`.
    """

    def __init__(self, num_classes: int, *, feature: int = 0, **more: Any) -> None:
        super().__init__(num_classes, **more)
        self.feature = feature

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        parts = enumerate(x.split(self.feature_sizes, -1))
        kept = [part if n == self.feature else torch.zeros_like(part) for n, part in parts]
        return super().classify(torch.cat(kept, -1), mask)


class MeanOfLogits(nn.Module):
    """The mean of the logits of several models.

    Args:
        members: The models.
    """

    def __init__(self, members: Sequence[nn.Module]) -> None:
        super().__init__()
        self.members = nn.ModuleList(members)

    def forward(self, frames: Tensor, num_frames: Tensor) -> Tensor:
        """Returns the mean (B, C)."""
        return torch.stack([member(frames, num_frames) for member in self.members]).mean(0)


def mixture_tables(experiment: Experiment) -> list[Ways]:
    """Returns the table, with the targets of ``--recipe best``."""
    title = f"three models, with the targets of --recipe best, beside one {experiment.model.name}"
    return [Ways("mixtures", title, _rows)]


def _rows(runner: Runner, seed: int) -> Iterator[tuple[Variant, Scored]]:
    experiment, best = runner.experiment, functools.partial(recipe_variant, recipe="best")

    def trained(variant: Variant) -> nn.Module:
        return runner.load(runner.trained(variant, seed)[0])

    def row(variant: Variant, *members: Variant) -> tuple[Variant, Scored]:
        """Returns a row of one model, or of the mean of several."""
        found = [trained(member) for member in members or [variant]]
        return variant, functools.partial(predictions, MeanOfLogits(found))

    one = best(f"one {experiment.model.name}", experiment.model)
    yield row(one)
    together = best(
        f"{COPIES} of it, trained together (--copies {COPIES})", one.model, copies=COPIES
    )
    mixture = cast(Mixture, trained(together))
    branch = mixture.branches[0]
    yield together, functools.partial(predictions, mixture)
    yield replace(together, name="  its first branch alone"), functools.partial(predictions, branch)
    yield row(_undistilled(replace(one, model=_mixture([one] * COPIES))))
    apart = replace(one, name=f"{COPIES} of it, trained apart, mean of the logits")
    yield row(apart, *_draws(one))
    for difference, others in experiment.unlike.items():
        members = [one]
        for name, model in others.items():
            members.append(best(f"one {name}", model))
            yield row(members[-1])
            apart = replace(members[-1], name=f"  {COPIES} of it, trained apart")
            yield row(apart, *_draws(members[-1]))
        together = best(f"one of each, {difference}, trained together", _mixture(members))
        yield row(together)
        yield row(_undistilled(together))
        yield row(replace(together, name="  trained apart, mean of the logits"), *members)


def _draws(variant: Variant) -> list[Variant]:
    return [replace(variant, draw=number) for number in range(COPIES)]


def _mixture(members: Sequence[Variant]) -> ModelSpec:
    branches = [{"name": each.model.name, **each.model.overrides} for each in members]
    return ModelSpec("mixture", {"branches": branches})


def _undistilled(variant: Variant) -> Variant:
    overrides = {**variant.model.overrides, "distillation": 0.0}
    return replace(
        variant, name="  without distillation", model=replace(variant.model, overrides=overrides)
    )
