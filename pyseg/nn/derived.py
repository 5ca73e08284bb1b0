"""Weights that are computed from parameters and buffers, and cached."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class _Cache(NamedTuple):
    tensors: list[weakref.ref[Tensor]]  # an address may belong to another tensor by now
    states: list[tuple[int, int | None]]  # address and version of each
    value: Any


class DerivedWeights(nn.Module):
    """A module that computes weights from its parameters, in eval mode only once.

    Subclasses ask `_may_cache` whether derived weights may outlive the call, and if so get them
    from `_cached`, which derives them anew after a parameter or buffer has changed. A change that
    autograd does not see (through ``.data``) needs another ``eval()``. The cache is neither copied
    nor saved with the module. What is computed from buffers alone may be cached in training too.
    """

    _cache: _Cache | None

    def __init__(self, *args: Any, **options: Any) -> None:
        """Starts with an empty cache; another base class gets the arguments."""
        super().__init__(*args, **options)
        self._cache = None

    def train(self, mode: bool = True) -> DerivedWeights:
        """Sets the mode and clears the cache."""
        self._cache = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves the cache out."""
        return super().__getstate__() | {"_cache": None}

    def _may_cache(self) -> bool:
        """Whether derived weights may outlive this call: no gradient flows through them."""
        if self.training or torch.compiler.is_compiling():
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()))

    def _cached(self, derive: Callable[[], T]) -> T:
        """Returns `derive()` for the current parameters and buffers."""
        tensors = list(itertools.chain(self.parameters(), self.buffers()))
        states = [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
        cache = self._cache
        if (
            cache is None
            or cache.states != states
            or any(ref() is not tensor for ref, tensor in zip(cache.tensors, tensors, strict=True))
        ):
            with (  # an inference tensor could not take part in the gradient of an input
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(tensors[0].device.type, enabled=False),
            ):
                cache = _Cache([weakref.ref(tensor) for tensor in tensors], states, derive())
            self._cache = cache
        return cache.value
