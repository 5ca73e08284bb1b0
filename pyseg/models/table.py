"""The costs of the presets: ``python -m pyseg.models`` prints them as a Markdown table."""

from __future__ import annotations

import math
import statistics
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.utils.flop_counter import FlopCounterMode

from pyseg import _cli, models
from pyseg._table import Table
from pyseg.errors import ArgumentError
from pyseg.nn import FrameClassifier

VIDEO, SEGMENT = 300, 5  # frames
_BATCHES = {VIDEO: 8, SEGMENT: 80}
_TIMED_CALLS = 3


@dataclass
class TableConfig:
    """The options of the table.

    Args:
        num_classes: Classes of the models.
        presets: Presets to list; default: all.
        timing: Measure times.

    Raises:
        ValueError: A value is out of its range.
    """

    num_classes: int = 3862
    presets: list[str] | None = None
    timing: bool = True

    def __post_init__(self) -> None:
        """Checks the values."""
        if self.num_classes < 1:
            raise ArgumentError(f"num_classes: expected at least 1, found {self.num_classes}")


def count_operations(model: FrameClassifier, length: int) -> int:
    """Counts the multiplications and additions of the matrix products of one inference.

    As `torch.utils.flop_counter` counts them, those inside pyseg's fused operators included: a
    product of (m, k) with (k, n) is 2 m k n. What a model derives from its weights once (see
    `pyseg.nn.NeXtVLAD`) does not count, nor does any operation but a product.

    Args:
        model: the model, in eval mode.
        length: number of frames T.

    Returns:
        Operations for one video of T frames.

    Example:
        >>> model = models.create("attention-gru", num_classes=10, feature_sizes=(8,), gru_size=4,
        ...                       attention_size=2, hidden_size=4, reduction=2).eval()
        >>> layers = 3 * 4 * (8 + 4), 2 * 4 + 2 + 4  # of every frame: GRU; W h_t, v and the sum
        >>> 2 * (5 * sum(layers) + 4 * 2 + 8 * 4 + 2 * 4 * 2 + 4 * 10) == count_operations(model, 5)
        True
    """
    frames = _frames(model, 1, length)
    with torch.no_grad():
        model(frames)  # derives what later calls reuse
        with FlopCounterMode(display=False, custom_mapping=_formulas()) as counter:
            model(frames)
    return counter.get_total_flops()


def time_inference(model: FrameClassifier, batch: int, length: int) -> float:
    """Returns the median time of a batch of B videos of T frames in seconds."""
    frames = _frames(model, batch, length)
    seconds = []
    with torch.no_grad():
        model(frames)
        for _ in range(_TIMED_CALLS):
            start = time.perf_counter()
            model(frames)
            seconds.append(time.perf_counter() - start)
    return statistics.median(seconds)


def table(config: TableConfig) -> str:
    """Returns the table, and notes on its columns.

    Raises:
        ValueError: a preset is unknown.
    """
    headings = ["preset", "parameters", "GFLOP a video", "GFLOP a segment"]
    if config.timing:
        headings += ["ms a video", "ms a segment"]
    rows = []
    for name in models.names() if config.presets is None else config.presets:
        model = _make(name, config.num_classes)
        row = [f"`{name}`", f"{sum(p.numel() for p in model.parameters()):,}"]
        row += [_rounded(count_operations(model, length) / 1e9) for length in _BATCHES]
        if config.timing:
            for length, batch in _BATCHES.items():
                row.append(_rounded(time_inference(model, batch, length) / batch * 1e3))
        rows.append(row)
    notes = [
        f"{config.num_classes} classes; a video has {VIDEO} frames, a segment {SEGMENT}. GFLOP: "
        "multiplications and additions of the matrix products at inference.",
    ]
    if config.timing:
        notes.append(
            f"Times: inference on this CPU, {torch.get_num_threads()} threads, float32, in batches "
            f"of {_BATCHES[VIDEO]} videos or {_BATCHES[SEGMENT]} segments, medians of "
            f"{_TIMED_CALLS}."
        )
    numbers = Table(headings, rows, numeric=range(1, len(headings)))
    return "\n".join([numbers.markdown(), "", *notes])


def _make(name: str, num_classes: int) -> FrameClassifier:
    with torch.device("meta"):
        model = models.create(name, num_classes=num_classes)
    model = model.to_empty(device="cpu").eval()
    # The values of the weights do not matter, and drawing them would take most of the time.
    with torch.no_grad():
        for tensor in model.state_dict().values():
            tensor.fill_(0.01)
    return model


def _frames(model: FrameClassifier, batch: int, length: int) -> Tensor:
    shape = batch, length, sum(model.feature_sizes)
    return torch.randint(0, 256, shape, dtype=torch.uint8)


def _rounded(value: float) -> str:
    """Formats a number with three significant digits."""
    digits = 2 - math.floor(math.log10(value)) if value > 0 else 0
    return f"{round(value, digits):.{max(0, digits)}f}"


def _formulas() -> dict[Any, Callable[..., int]]:
    """Returns functions that count the operations of pyseg's operators from argument shapes."""

    def product(left: Sequence[int], columns: int) -> int:
        return 2 * math.prod(left) * columns

    formulas: dict[str, Callable[..., int]] = {
        "frame_linear": lambda frames, mask, weight, *_, **__: product(frames, weight[0]),
        "frame_pool": lambda frames, weights, maps, *_, **__: (
            product(frames, weights[2] * weights[3]) + product(maps, weights[0] * weights[3])
        ),
        "gru_recurrence": lambda gates, weight, *_, **__: product(gates, weight[1]),
        "vlad_aggregate": lambda features, assignment, *_, **__: product(features, assignment[3]),
    }
    # Without a library plain PyTorch runs instead, whose operations PyTorch counts.
    return {
        getattr(torch.ops.pyseg, name): formula
        for name, formula in formulas.items()
        if hasattr(torch.ops.pyseg, name)
    }


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.models``."""
    parser = _cli.make_parser(TableConfig, "pyseg.models", "Prints the costs of the presets.")
    config = _cli.parse(parser, TableConfig, argv)
    with _cli.option("presets"):
        for name in config.presets or ():
            models.options(name)
    print(table(config))
