"""The exact metrics as those of torchmetrics, for a `MetricCollection` and for Lightning's `log`.

Each class has the name of a metric over a stream (`pyseg.metrics.streaming`), takes (S, C) scores
and labels, and computes what that metric does, to the last bit, also over several processes. Scores
are kept as float64, so that processes may have scores of any type. Nothing is left out, so that
metrics of one collection may share their states.

This module needs torchmetrics, which no extra but those of tests and benchmarks installs.
"""

from __future__ import annotations

from typing import Any, ClassVar

import numpy as np
import torch
from torch import Tensor

from pyseg._extras import requires_package
from pyseg.metrics import streaming
from pyseg.metrics.mean_average_precision import EmptyClasses, MeanAveragePrecision

with requires_package("torchmetrics", "pyseg.metrics.torchmetrics"):
    import torchmetrics

__all__ = [
    "GlobalAveragePrecisionAtK",
    "HitAt1",
    "MeanAveragePrecisionAtK",
    "PrecisionAtEqualRecallRate",
]


class _Exact(torchmetrics.Metric):
    """A metric over a stream, whose state torchmetrics keeps, gathers and stores.

    Arrays that are empty at the start are concatenated; all others are counts, which are added.
    """

    is_differentiable = False
    higher_is_better = True
    full_state_update = False
    plot_lower_bound = 0.0
    plot_upper_bound = 1.0

    state_names: ClassVar[tuple[str, ...]]  # of what the exact metric's `take` returns

    def __init__(self, exact: Any, more: dict[str, Any]) -> None:
        super().__init__(**more)
        self._exact = exact  # empty except during an update
        self._blocks = {}
        for name, tensor in self._taken().items():
            if len(tensor):
                self.add_state(name, tensor, dist_reduce_fx="sum")
            else:
                self.add_state(name, [], dist_reduce_fx="cat")
                self._blocks[name] = tensor
        self.reset()

    def reset(self) -> None:
        """Clears the state."""
        super().reset()
        # torchmetrics gathers an empty list as float32, whatever other processes hold.
        for name, empty in self._blocks.items():
            setattr(self, name, [empty.to(self.device)])

    def compute(self) -> Tensor:
        """Returns the value, a float64 scalar, of all processes' updates.

        Raises:
            ValueError: No process has a row, and the metric is a mean over rows.
        """
        states = [getattr(self, name) for name in self.state_names]
        tensors = [torch.cat(state) if isinstance(state, list) else state for state in states]
        result = self._exact.result_of([[tensor.cpu().numpy() for tensor in tensors]])
        value = result.map if isinstance(result, MeanAveragePrecision) else result
        return torch.tensor(value, dtype=torch.float64, device=self.device)

    def _add_block(self) -> None:
        """Adds the state of the exact metric, which has seen one block."""
        for name, tensor in self._taken().items():
            if name in self._blocks:
                getattr(self, name).append(tensor)
            else:
                setattr(self, name, getattr(self, name) + tensor)

    def _taken(self) -> dict[str, Tensor]:
        """Returns the exact metric's state by name, and clears it."""
        return {
            name: torch.from_numpy(
                array.astype(np.float64 if array.dtype.kind == "f" else array.dtype, copy=False)
            ).to(self.device)
            for name, array in zip(self.state_names, self._exact.take(), strict=True)
        }


class _OfRows(_Exact):
    def update(self, scores: Tensor, labels: Tensor) -> None:
        """Adds rows.

        Args:
            scores: (S, C) numbers, larger is better.
            labels: (S, C) bools or numbers.

        Raises:
            ValueError: Shapes differ, or an input holds a NaN; see the metric's function.
        """
        self._exact.update(scores, labels)
        self._add_block()


class MeanAveragePrecisionAtK(_Exact):
    """`pyseg.metrics.map_at_k_dense` for torchmetrics; it keeps 13 bytes of every rated pair.

    Args:
        num_classes: Number of classes C.
        k: How many rows of each class are ranked.
        empty_classes: ``"zero"`` or ``"skip"``, see `pyseg.metrics.map_at_k`.
        **more: Arguments of ``torchmetrics.Metric``, as ``process_group``.

    Raises:
        ValueError: An option has a value that it cannot have.

    Example:
        >>> metric = MeanAveragePrecisionAtK(num_classes=2)
        >>> metric.update(torch.tensor([[0.9, 0.1], [0.8, 0.2]]), torch.tensor([[1, 0], [0, 1]]))
        >>> metric.update(torch.tensor([[0.7, 0.3]]), torch.tensor([[1, 0]]))
        >>> round(metric.compute().item(), 4)  # the mean of (1 + 2/3) / 2 and 1/2
        0.6667
    """

    state_names = ("positives", "rated", "classes", "scores", "relevant")

    def __init__(
        self,
        num_classes: int,
        k: int = 100_000,
        empty_classes: EmptyClasses = "zero",
        **more: Any,
    ) -> None:
        super().__init__(streaming.MeanAveragePrecisionAtK(num_classes, k, empty_classes), more)

    def update(self, scores: Tensor, labels: Tensor, rated: Tensor | None = None) -> None:
        """Adds the rated pairs of a matrix.

        Args:
            scores: (S, C) numbers, larger is better.
            labels: (S, C) bools or numbers; relevant where above 0. Read only where rated.
            rated: (S, C) bools or numbers; a pair counts where it is not 0. ``None``: all pairs do.

        Raises:
            ValueError: Shapes differ, or an input holds a NaN.
        """
        self._exact.update_dense(scores, labels, rated)
        self._add_block()


class GlobalAveragePrecisionAtK(_OfRows):
    """`pyseg.metrics.gap_at_k` for torchmetrics; it keeps k scores of every row, 9 bytes each.

    Args:
        num_classes: Number of classes C.
        k: How many predictions of each row are pooled.
        **more: Arguments of ``torchmetrics.Metric``, as ``process_group``.

    Raises:
        ValueError: `num_classes` or `k` is less than 1.

    Example:
        In a collection; what a metric does not take is not given to it:

        >>> metrics = torchmetrics.MetricCollection(
        ...     {"map": MeanAveragePrecisionAtK(2), "gap": GlobalAveragePrecisionAtK(2)}
        ... )
        >>> scores, labels = torch.tensor([[0.9, 0.5], [0.2, 0.8]]), torch.tensor([[1, 0], [1, 0]])
        >>> metrics.update(scores=scores, labels=labels, rated=torch.ones(2, 2))
        >>> {name: round(value.item(), 4) for name, value in metrics.compute().items()}
        {'gap': 0.75, 'map': 0.5}
    """

    state_names = ("scores", "hits", "total")

    def __init__(self, num_classes: int, k: int = 20, **more: Any) -> None:
        super().__init__(streaming.GlobalAveragePrecisionAtK(num_classes, k), more)


class HitAt1(_OfRows):
    """`pyseg.metrics.hit_at_1` for torchmetrics.

    Args:
        num_classes: Number of classes C.
        **more: Arguments of ``torchmetrics.Metric``, as ``process_group``.

    Raises:
        ValueError: `num_classes` is less than 1.

    Example:
        >>> metric = HitAt1(num_classes=2)
        >>> metric(torch.tensor([[0.9, 0.5], [0.2, 0.8]]), torch.tensor([[1, 0], [1, 0]])).item()
        0.5
    """

    state_names = ("values", "counts")

    def __init__(self, num_classes: int, **more: Any) -> None:
        super().__init__(streaming.HitAt1(num_classes), more)


class PrecisionAtEqualRecallRate(_OfRows):
    """`pyseg.metrics.perr` for torchmetrics: give probabilities, not logits.

    Args:
        num_classes: Number of classes C.
        **more: Arguments of ``torchmetrics.Metric``, as ``process_group``.

    Raises:
        ValueError: `num_classes` is less than 1.

    Example:
        >>> metric = PrecisionAtEqualRecallRate(num_classes=3)
        >>> scores = torch.tensor([[0.9, 0.5, 0.1], [0.2, 0.8, 0.3]])
        >>> metric(scores, torch.tensor([[1, 0, 1], [0, 1, 0]])).item()
        0.75
    """

    state_names = ("right", "rows")

    def __init__(self, num_classes: int, **more: Any) -> None:
        super().__init__(streaming.PrecisionAtEqualRecallRate(num_classes), more)
