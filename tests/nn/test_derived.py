"""DerivedWeights: derived once, and never stale."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor, nn

from pyseg.nn.derived import DerivedWeights


class Doubled(DerivedWeights):
    def __init__(self) -> None:
        super().__init__()
        self.weight = nn.Parameter(torch.zeros(64, 64))
        self.register_buffer("shift", torch.zeros(()))
        self.times = 0

    def _derive(self) -> Tensor:
        self.times += 1
        return 2 * self.weight + self.shift

    def forward(self) -> Tensor:
        return self._cached(self._derive) if self._may_cache() else self._derive()


def value(module: Doubled) -> float:
    with torch.no_grad():
        return module().mean().item()


def test_derived_once() -> None:
    module = Doubled().eval()
    assert (value(module), value(module), module.times) == (0, 0, 1)
    module.shift += 1
    assert (value(module), value(module), module.times) == (1, 1, 2)
    with torch.no_grad():
        module.weight += 1
    assert (value(module), value(module), module.times) == (3, 3, 3)
    other = copy.deepcopy(module)
    assert other._cache is None
    assert value(other) == 3


def test_not_cached_in_training_or_with_gradients() -> None:
    module = Doubled().eval()
    module().sum().backward()
    assert (module.weight.grad == 2).all()
    assert module._cache is None
    assert value(module.train()) == 0
    assert module._cache is None
    module.eval().requires_grad_(False)
    assert module() is module()
    assert module.times == 3


def test_new_weights_at_a_freed_address_are_noticed() -> None:
    """The allocator reuses a freed block for the next tensor of its size."""
    module = Doubled().eval()
    expected = value(module)
    addresses = {module.weight.data_ptr()}
    for step in range(1, 20):
        for content in (-1.0, float(step)):  # two: the first frees what was kept from
            weight = torch.full((64, 64), content)
            module.load_state_dict({"weight": weight, "shift": torch.zeros(())}, assign=True)
            del weight
        again = module.weight.data_ptr() in addresses
        addresses.add(module.weight.data_ptr())
        assert value(module) == 2 * step != expected
    if not again:
        pytest.skip("no address was used again")
