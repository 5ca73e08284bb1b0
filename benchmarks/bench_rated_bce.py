"""Speed of rated_bce_with_logits, against its alternatives.

    pytest benchmarks/bench_rated_bce.py [-k "1024-3862 and float32"] [--max-autotune]
                                         [--benchmark-json FILE]
    python benchmarks/bench_rated_bce.py --memory      only peak memory, a line per shape

It runs on the GPU if there is one with its kernels, else on the CPU, with one rating per row, as in
segments, and a P' of 1 to 5 relations per class, as in YouTube-8M after thresholding. Results are
medians of contenders that take turns; ratios are the peer's time over that of pyseg:

- plain PyTorch makes dense targets and weights, the targets by a product with the dense P';
- gathering PyTorch adds up the rated classes' rows of the dense P' instead;
- torch.compile of either; both have the dense P' ready, in the dtype of the sums;
- one sigmoid of the logits, as a yardstick.

The floor is reading the logits and writing the gradient once, at the rate of a large copy in the
same run. Memory is the peak beyond inputs, loss and gradient.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import numpy as np
import pytest
import torch
from measure import (
    DEVICE,
    DIRECTIONS,
    DTYPES,
    Work,
    compilations,
    name_of,
    needs_kernels,
    peak_of,
    return_memory_at_once,
)
from torch import Tensor
from torch.nn import functional

from pyseg.labels import LabelCorrelation
from pyseg.ops import rated_bce_with_logits

SHAPES = [(80, 1000), (80, 3862), (1024, 1000), (1024, 3862)]  # B, C


def thresholded_correlation(classes: int) -> LabelCorrelation:
    random = np.random.default_rng(0)
    sizes = random.integers(1, 6, classes)
    rows = [set(random.integers(0, classes, n).tolist()) - {i} for i, n in enumerate(sizes)]
    columns = torch.tensor([j for row in rows for j in sorted(row)])
    values = torch.from_numpy(random.uniform(0.5, 1.0, len(columns)))
    offsets = torch.tensor([0, *map(len, rows)]).cumsum(0)
    return LabelCorrelation(offsets, columns, values)


def operands(shape: tuple[int, int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Returns logits and ratings."""
    torch.manual_seed(0)
    batch, classes = shape
    logits = torch.randn(shape, device=DEVICE, dtype=dtype).requires_grad_()
    offsets = torch.arange(batch + 1, device=DEVICE)
    rated = torch.randint(classes, (batch,), device=DEVICE)
    return logits, offsets, rated, torch.randint(2, (batch,), device=DEVICE).float()


def weighted(logits: Tensor, given: Tensor, rated: Tensor, related: Tensor) -> Tensor:
    targets = torch.where(rated, given, related.clamp(max=1.0))
    weights = torch.full_like(targets, 0.1).masked_fill(rated, 2.5)
    losses = functional.binary_cross_entropy_with_logits(
        logits.float(), targets, weights, reduction="sum"
    )
    return losses / logits.shape[0]


def given_scores(logits: Tensor, rows: Tensor, classes: Tensor, scores: Tensor) -> tuple:
    given = torch.zeros(logits.shape, device=logits.device)
    rated = torch.zeros_like(given, dtype=torch.bool)
    yes = torch.ones_like(classes, dtype=torch.bool)
    return given.index_put((rows, classes), scores), rated.index_put((rows, classes), yes)


def rows_of(offsets: Tensor, classes: Tensor) -> Tensor:
    rows = torch.arange(len(offsets) - 1, device=offsets.device)
    return torch.repeat_interleave(rows, offsets.diff(), output_size=len(classes))


def plain(
    logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor, dense: Tensor
) -> Tensor:
    given, rated = given_scores(logits, rows_of(offsets, classes), classes, scores)
    return weighted(logits, given, rated, given @ dense)


def gathering(
    logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor, dense: Tensor
) -> Tensor:
    rows = rows_of(offsets, classes)
    given, rated = given_scores(logits, rows, classes, scores)
    related = torch.zeros_like(given).index_add(0, rows, scores[:, None] * dense[classes])
    return weighted(logits, given, rated, related)


@needs_kernels
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES, ids=lambda shape: "{}-{}".format(*shape))
def test_rated_bce(compare, request, shape, dtype, direction):
    backward = direction != "forward"
    arguments = operands(shape, dtype)
    logits = arguments[0]
    correlation = thresholded_correlation(shape[1]).to(DEVICE)
    dense = correlation.dense()

    def contender(function: Callable, relations: object) -> Callable[[], object]:
        def run() -> object:
            with torch.set_grad_enabled(backward):
                loss = function(*arguments, relations)
            return torch.autograd.grad(loss, logits) if backward else loss

        return run

    peers = {"plain PyTorch": plain, "gathering PyTorch": gathering}
    peers |= compilations(request, plain)
    peers |= {f"{name}, gathering": f for name, f in compilations(request, gathering).items()}
    contenders = {"pyseg": contender(rated_bce_with_logits, correlation)}
    contenders |= {name: contender(f, dense) for name, f in peers.items()}
    contenders["one sigmoid"] = lambda: torch.sigmoid(logits.detach())
    compare(contenders, Work(0, (1 + backward) * logits.nbytes, dtype))


# ---- memory --------------------------------------------------------------------------------------


def extra_memory(function: Callable, shape: tuple[int, int], relations: object) -> float:
    """Returns the megabytes of a forward and backward pass beyond inputs and results."""
    arguments = operands(shape, torch.float32)

    def step() -> tuple[Tensor, ...]:
        loss = function(*arguments, relations)
        return loss, *torch.autograd.grad(loss, arguments[0])

    results = sum(tensor.nbytes for tensor in step())
    return max(min(peak_of(step) for _ in range(3)) - results, 0) / 1e6


def measure_memory() -> None:
    """Prints a line per shape: forward and backward in float32, and the size of the gradient."""
    return_memory_at_once()
    for batch, classes in SHAPES:
        correlation = thresholded_correlation(classes).to(DEVICE)
        own = extra_memory(rated_bce_with_logits, (batch, classes), correlation)
        peer = extra_memory(gathering, (batch, classes), correlation.dense())
        gradient = 4 * batch * classes / 1e6
        print(
            f"{batch}-{classes} | {own:.1f} MB | gathering PyTorch {peer:.1f} MB | "
            f"gradient {gradient:.1f} MB"
        )


@needs_kernels
def test_memory(lines):
    """Runs in a fresh process: memory cached by other benchmarks would hide the peak."""
    command = [sys.executable, __file__, "--memory"]
    done = subprocess.run(command, capture_output=True, text=True, check=True)
    lines.extend(
        [f"memory[{line.split(' | ')[0]}]", *line.split(" | ")[1:]]
        for line in done.stdout.splitlines()
    )


if __name__ == "__main__":
    if sys.argv[1:] != ["--memory"]:
        sys.exit(__doc__)
    measure_memory()
