"""Weights that are made of others."""

from __future__ import annotations

import itertools
import weakref
from collections.abc import Callable
from typing import Any, NamedTuple, TypeVar

import torch
from torch import Tensor, nn

T = TypeVar("T")


class _Kept(NamedTuple):
    tensors: list[weakref.ref[Tensor]]  # an address alone may be that of another tensor by now
    states: list[tuple[int, int | None]]  # address and version of each
    value: Any


class DerivedWeights(nn.Module):
    """A module that works with products of its parameters and, in eval mode, makes them once.

    Subclasses ask `_may_keep` whether what they derive may outlive the call, and if so get it from
    `_kept`, which derives it anew where a parameter or buffer has changed. Weights that are changed
    behind autograd's back (through ``.data``) need another ``eval()``. What is kept is neither
    copied nor saved with the module.
    """

    _cache: _Kept | None

    def __init__(self) -> None:
        """Keeps nothing yet."""
        super().__init__()
        self._cache = None

    def train(self, mode: bool = True) -> DerivedWeights:
        """Sets the mode; what was derived from the weights is derived anew when next needed."""
        self._cache = None
        return super().train(mode)

    def __getstate__(self) -> dict[str, Any]:
        """Leaves out what can be derived."""
        return super().__getstate__() | {"_cache": None}

    def _may_keep(self) -> bool:
        """Whether derived weights may outlive this call: nothing will ask for their gradient."""
        if self.training or torch.compiler.is_compiling():
            return False
        return not (torch.is_grad_enabled() and any(p.requires_grad for p in self.parameters()))

    def _kept(self, derive: Callable[[], T]) -> T:
        """Returns what `derive` returned for the present parameters and buffers."""
        tensors = list(itertools.chain(self.parameters(), self.buffers()))
        states = [(t.data_ptr(), None if t.is_inference() else t._version) for t in tensors]
        kept = self._cache
        if (
            kept is None
            or kept.states != states
            or any(ref() is not tensor for ref, tensor in zip(kept.tensors, tensors, strict=True))
        ):
            with (  # an inference tensor could not take part in the gradient of an input
                torch.inference_mode(False),
                torch.no_grad(),
                torch.autocast(tensors[0].device.type, enabled=False),
            ):
                kept = _Kept([weakref.ref(tensor) for tensor in tensors], states, derive())
            self._cache = kept
        return kept.value
