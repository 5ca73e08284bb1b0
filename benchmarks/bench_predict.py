"""Speed of scoring and ranking segments, as `pyseg.predict` does it, without reading them.

    pytest benchmarks/bench_predict.py [--benchmark-json FILE]

A block of 512 segments of 5 frames goes from host memory through nextvlad1 to the best 100,000 of
each of 1,000 classes, in a process that keeps its memory, like pyseg.predict. Contenders that take
turns: the default precision of the device and the others; on a GPU also scores that are copied to
the host and ranked there. The last lines extrapolate to the 2,062,258 segments of the challenge.
On a CPU times are those of all cores together, so that other work on the machine counts less.
"""

from __future__ import annotations

import time
from collections.abc import Callable

import pytest
import torch
from measure import DEVICE, GPU, needs_kernels

from pyseg import models
from pyseg._copies import Upload
from pyseg._memory import keep_memory
from pyseg._precision import Precision, PrecisionName
from pyseg.metrics import TopKPerClass
from pyseg.submission import TOP

BLOCK, CLASSES, SEGMENTS = 512, 1000, 2_062_258
CLOCK = time.perf_counter if GPU else time.process_time


@needs_kernels
@pytest.mark.benchmark(timer=CLOCK)
def test_predict(compare, benchmark, lines: list[list[str]]) -> None:
    keep_memory()
    torch.manual_seed(0)
    device = torch.device(DEVICE)
    model = models.create("nextvlad1", num_classes=CLASSES).eval().to(device)
    frames = torch.randint(0, 256, (BLOCK, 5, 1152), dtype=torch.uint8)
    counts = torch.full((BLOCK,), 5)

    def contender(precision: Precision, best: TopKPerClass) -> Callable[[], None]:
        number = 0

        @torch.inference_mode()
        def score() -> None:
            nonlocal number
            with precision.used_on(device):
                scores = model(*Upload(device, frames, counts).tensors()).float()
            best.update(range(number, number + BLOCK), scores)  # from a GPU it copies if it must
            number += BLOCK

        return score

    def best() -> TopKPerClass:
        return TopKPerClass(CLASSES, TOP, device=device)

    own = Precision.on(device)
    others: list[PrecisionName] = ["fp32"] if GPU else ["bf16", "int8"]
    contenders = {"pyseg": contender(own, best())}
    contenders |= {name: contender(Precision.on(device, name), best()) for name in others}
    if GPU:
        contenders["ranked on the host"] = contender(own, TopKPerClass(CLASSES, TOP))
    compare(contenders, rounds=15, timer=CLOCK)
    for name in contenders:
        median = benchmark.extra_info.get(name, benchmark.stats.stats.median)
        each = f"{1e3 * median / BLOCK:.3f} ms a segment"
        minutes = f"{median * SEGMENTS / BLOCK / 60:.1f} min{'' if GPU else ' of a core'}"
        whole = f"{minutes}, without reading and writing"
        lines.append([f"{SEGMENTS:,} segments, {name}", f"{each}, {whole}"])
