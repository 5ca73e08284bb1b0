"""Where the time of a training step on segments goes, on a CPU.

    OMP_NUM_THREADS=1 python benchmarks/measure_step.py

A step of nextvlad1 on 80 segments of 5 frames and 3,862 classes, in float32 and under bfloat16
autocast; the products of its hidden layer, and the update of its weights; and what is left of the
last product and the update if the gradient is never whole: Adam takes it in blocks of rows that fit
a cache (--rows). Times are those of all cores together, medians of contenders that take turns.
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from torch import Tensor

from pyseg import _cli, models
from pyseg._memory import keep_memory
from pyseg._table import Table
from pyseg.training import Loss

CLASSES, BATCH, FRAMES, RATE = 3862, 80, 5, 2e-4


def steps(times: dict[str, list[float]]) -> Callable[[], None]:
    """Returns what takes a step in each precision, and notes the times of its parts."""
    model = models.create("nextvlad1", num_classes=CLASSES)
    frames = torch.randint(0, 256, (BATCH, FRAMES, 1152), dtype=torch.uint8)
    counts = torch.full((BATCH,), FRAMES)
    offsets = torch.arange(BATCH + 1) * 3
    classes = torch.rand(BATCH, CLASSES).argsort(1)[:, :3].flatten()
    targets = offsets, classes, torch.ones(len(classes))
    optimizer = torch.optim.Adam(model.parameters(), lr=RATE, fused=True)
    loss_of = Loss()

    def take() -> None:
        for dtype in (torch.float32, torch.bfloat16):
            name = f"step, {str(dtype).removeprefix('torch.')}"
            optimizer.zero_grad(set_to_none=True)
            clock = [time.process_time()]
            with torch.autocast("cpu", dtype, enabled=dtype != torch.float32):
                loss = model.training_loss(frames, counts, lambda z: loss_of(z, *targets))
            clock.append(time.process_time())
            loss.backward()
            clock.append(time.process_time())
            optimizer.step()
            clock.append(time.process_time())
            times.setdefault(name, []).append(clock[-1] - clock[0])
            for part, index in (("forward", 1), ("backward", 2), ("optimiser", 3)):
                times.setdefault(f"{name}: {part}", []).append(clock[index] - clock[index - 1])

    return take


def parts(rows: int) -> dict[str, Callable[[], object]]:
    """Returns the products of the hidden layer and the update of its weights, by name."""
    layer = models.create("nextvlad1", num_classes=1).hidden
    weight = layer.weight.detach()
    x, gradient = torch.randn(BATCH, layer.in_features), torch.randn(BATCH, layer.out_features)
    whole, block = torch.empty_like(weight), torch.empty(rows, layer.in_features)
    first, second, step = torch.zeros_like(weight), torch.zeros_like(weight), torch.tensor(1.0)

    def update(found: Tensor, part: slice = slice(None)) -> None:
        torch._fused_adam_(
            [weight[part]], [found], [first[part]], [second[part]], [], [step],
            lr=RATE, beta1=0.9, beta2=0.999, weight_decay=0.0, eps=1e-8,
            amsgrad=False, maximize=False,
        )  # fmt: skip

    def in_blocks() -> None:
        for start in range(0, len(weight), rows):
            part = slice(start, start + rows)
            left = gradient[:, part].t()
            update(torch.mm(left, x, out=block[: len(left)]), part)

    return {
        "hidden layer, forward": lambda: x @ weight.t(),
        "hidden layer, gradient of the input": lambda: gradient @ weight,
        "hidden layer, gradient of the weights": lambda: torch.mm(gradient.t(), x, out=whole),
        "hidden layer, Adam": lambda: update(whole),
        f"hidden layer, gradient and Adam of {rows} rows at a time": in_blocks,
    }


def main() -> None:
    """Prints a table of the times."""
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    parser.add_argument("--rows", type=int, default=64, help="rows of a block")
    parser.add_argument("--rounds", type=int, default=9, help="how often each is measured")
    args = parser.parse_args()
    keep_memory()
    torch.manual_seed(0)
    times: dict[str, list[float]] = {}
    take, products = steps(times), parts(args.rows)
    for _ in range(args.rounds):
        take()
        with torch.no_grad():
            for name, run in products.items():
                start = time.process_time()
                run()
                times.setdefault(name, []).append(time.process_time() - start)
    rows = [(name, f"{1e3 * statistics.median(each[1:]):.0f} ms") for name, each in times.items()]
    print(Table(("part", "processor time"), rows, numeric=[1]).markdown())


if __name__ == "__main__":
    _cli.run(main)
