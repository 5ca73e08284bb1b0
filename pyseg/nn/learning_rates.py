"""Learning rates of a model's parts, relative to that of the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Protocol, runtime_checkable

from torch import nn

from pyseg.errors import ArgumentError


@runtime_checkable
class OwnLearningRates(Protocol):
    """A module some of whose parameters learn at other rates than the rest of the model."""

    def learning_rate_factors(self) -> Mapping[str, float]:
        """Returns the factor of the learning rate, above 0, by the name of the parameter in it."""
        ...


def learning_rate_groups(model: nn.Module) -> list[tuple[float, list[nn.Parameter]]]:
    """Returns the parameters of a model by the factor of their learning rate.

    An optimizer like Adam changes every number by about its learning rate, whatever that does to
    the output. A module whose parameters are shared by many outputs can ask for smaller steps in a
    method ``learning_rate_factors() -> {name of a parameter: factor}``, as `LabelGCN` does;
    `pyseg.train` multiplies the learning rate of these parameters, at every step.

    Args:
        model: the model, or a part of it.

    Returns:
        Pairs of a factor and the parameters that have it, in the order of the model, first those
        with the factor 1. Every parameter is in one of them, once.

    Raises:
        ValueError: a factor is not above 0 and finite, or a module has no such parameter.

    Example:
        >>> import torch
        >>> class Scaled(nn.Linear):
        ...     def learning_rate_factors(self) -> dict[str, float]:
        ...         return {"bias": 0.1}
        >>> groups = learning_rate_groups(nn.Sequential(nn.Linear(3, 2), Scaled(2, 2)))
        >>> [(factor, len(parameters)) for factor, parameters in groups]
        [(1.0, 3), (0.1, 1)]
        >>> optimizer = torch.optim.Adam([{"params": p, "lr": 1e-3 * f} for f, p in groups])
    """
    factors: dict[nn.Parameter, float] = {}
    for name, module in model.named_modules():
        asked = module.learning_rate_factors() if isinstance(module, OwnLearningRates) else {}
        own = dict(module.named_parameters()) if asked else {}
        for key, factor in asked.items():
            where = f"learning_rate_factors: {'.'.join(filter(None, (name, key)))}"
            if key not in own:
                raise ArgumentError(f"{where}: expected a parameter, found none of that name")
            if not 0.0 < factor < float("inf"):
                raise ArgumentError(f"{where}: expected a finite number above 0, found {factor}")
            factors[own[key]] = float(factor)
    groups: dict[float, list[nn.Parameter]] = {1.0: []}
    for parameter in model.parameters():
        groups.setdefault(factors.get(parameter, 1.0), []).append(parameter)
    return [(factor, parameters) for factor, parameters in groups.items() if parameters]
