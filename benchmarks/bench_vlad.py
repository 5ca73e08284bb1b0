"""How fast vlad_aggregate is beside plain PyTorch and torch.compile of it.

    pytest benchmarks/bench_vlad.py [-k "segments and float32"] [--benchmark-json FILE]

Runs on the GPU where there is one with its kernels, else on the CPU. Medians of contenders that
take turns; the ratios are times of the peer over times of the op.
"""

from __future__ import annotations

import pytest
import torch

from pyseg import _ext
from pyseg.ops import vlad_aggregate, vlad_aggregate_reference

GPU = _ext.HAS_CUDA_OPS and torch.cuda.is_available()
DEVICE = "cuda" if GPU else "cpu"
DTYPES = [torch.float32, torch.bfloat16, *([torch.float16] if GPU else [])]
VIDEOS = 80 if GPU else 8
SHAPES = {  # B, T, G, F, K
    "segments": (80, 5, 8, 288, 112),
    "videos": (VIDEOS, 300, 8, 288, 112),
    "segments-K136": (80, 5, 8, 288, 136),
    "videos-K136": (VIDEOS, 300, 8, 288, 136),
    "audio-segments": (80, 5, 4, 64, 56),
    "audio-videos": (VIDEOS, 300, 4, 64, 56),
    "netvlad-segments": (80, 5, 1, 1152, 64),
    "netvlad-videos": (VIDEOS, 300, 1, 1152, 64),
}


@pytest.mark.parametrize("direction", ["forward", "forward+backward"])
@pytest.mark.parametrize("dtype", DTYPES, ids=lambda dtype: str(dtype).removeprefix("torch."))
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_vlad_aggregate(compare, benchmark, shape, dtype, direction):
    if not (GPU or _ext.HAS_CPU_OPS):
        pytest.skip(f"no kernel to measure: {_ext.CPU_REASON}")
    torch.manual_seed(0)
    b, t, g, f, k = shape
    inputs = [
        torch.randn(b, t, g, f, device=DEVICE, dtype=dtype),
        torch.randn(b, t, g, k, device=DEVICE, dtype=dtype),
        torch.rand(b, t, g, device=DEVICE, dtype=dtype),
        torch.randn(f, k, device=DEVICE, dtype=dtype),
    ]
    grad = torch.randn(b, f, k, device=DEVICE, dtype=dtype)
    backward = direction != "forward"
    inputs = [tensor.requires_grad_(backward) for tensor in inputs]
    torch._dynamo.reset()

    def contender(function):
        if backward:
            return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
        return lambda: function(*inputs)

    products = 3 if backward else 1
    benchmark.extra_info["flop"] = products * 2 * b * t * g * f * k
    compare(
        {
            "pyseg": contender(vlad_aggregate),
            "plain PyTorch": contender(vlad_aggregate_reference),
            "torch.compile": contender(torch.compile(vlad_aggregate_reference, dynamic=False)),
        }
    )
