"""Speed of scoring and ranking segments, as `pyseg.predict` does it, without reading them.

    pytest benchmarks/bench_predict.py [--benchmark-json FILE]

A block of 512 segments of 5 frames goes from host memory through nextvlad1 to the best 100,000 of
each of 1,000 classes. Contenders that take turns: the defaults of the device (bfloat16 and ranking
where the scores are, on a GPU), float32, and scores that are copied to the host and ranked there.
The last lines extrapolate to the 2,062,258 segments of the challenge.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from measure import DEVICE, needs_kernels

from pyseg import models
from pyseg._copies import Upload
from pyseg._precision import Precision
from pyseg.metrics import TopKPerClass
from pyseg.submission import TOP

BLOCK, CLASSES, SEGMENTS = 512 if DEVICE == "cuda" else 64, 1000, 2_062_258


@needs_kernels
def test_predict(compare, benchmark, lines: list[list[str]]) -> None:
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

    contenders = {
        "pyseg": contender(Precision.on(device), TopKPerClass(CLASSES, TOP, device=device)),
        "float32": contender(Precision(), TopKPerClass(CLASSES, TOP, device=device)),
        "ranked on the host": contender(Precision.on(device), TopKPerClass(CLASSES, TOP)),
    }
    compare(contenders)
    seconds = benchmark.stats.stats.median * SEGMENTS / BLOCK
    lines.append([f"{SEGMENTS:,} segments", f"{seconds:.0f} s, without reading and writing"])
