"""Speed of vlad_aggregate and the NeXtVLAD layer, against their alternatives.

    pytest benchmarks/bench_vlad.py [-k "aggregate and segments and float32"] [--max-autotune]
                                    [--keep-memory] [--benchmark-json FILE]
    python benchmarks/bench_vlad.py --memory      only peak memory, a line per shape

It runs on the GPU if there is one with its kernels, else on the CPU. Results are medians of
contenders that take turns; ratios are the peer's time over that of pyseg. The floor is the larger
of the operations at the rate of a large matrix product and the bytes at the rate of a large copy,
both measured in the same run. It counts only the operations of the products, in the order that a
layer takes, and every input, output and gradient once.

Layers, pyseg's and the peers', run in a process that keeps its memory, like pyseg's commands. The
op runs before them without that: its large results cause page faults in every round, which vary
most on a machine where these are slow. --keep-memory applies to the op too.

Memory is the peak beyond inputs, outputs and gradients.
"""

from __future__ import annotations

import subprocess
import sys
from collections.abc import Callable

import pytest
import torch
from measure import (
    DEVICE,
    DIRECTIONS,
    DTYPES,
    GPU,
    Work,
    compilations,
    name_of,
    needs_kernels,
    peak_of,
    return_memory_at_once,
    tensorflow,
)
from plain import PlainNeXtVLAD
from torch import Tensor

from pyseg._memory import keep_memory
from pyseg.nn import NeXtVLAD
from pyseg.ops import vlad_aggregate, vlad_aggregate_reference

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


def operands(shape: tuple[int, ...], dtype: torch.dtype, backward: bool) -> tuple[list, Tensor]:
    torch.manual_seed(0)
    b, t, g, f, k = shape
    inputs = [
        torch.randn(b, t, g, f, device=DEVICE, dtype=dtype),
        torch.randn(b, t, g, k, device=DEVICE, dtype=dtype),
        torch.rand(b, t, g, device=DEVICE, dtype=dtype),
        torch.randn(f, k, device=DEVICE, dtype=dtype),
    ]
    grad = torch.randn(b, f, k, device=DEVICE, dtype=dtype)
    return [tensor.requires_grad_(backward) for tensor in inputs], grad


@needs_kernels
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_vlad_aggregate(compare, request, shape, dtype, direction):
    backward = direction != "forward"
    inputs, grad = operands(shape, dtype, backward)

    def contender(function):
        if backward:
            return lambda: torch.autograd.grad(function(*inputs), inputs, grad)
        return lambda: function(*inputs)

    b, t, g, f, k = shape
    products = 3 if backward else 1
    least = sum(tensor.nbytes for tensor in inputs) + grad.nbytes  # read; output written
    if backward:  # the same again, the gradients written, and the output read
        least = 3 * sum(tensor.nbytes for tensor in inputs) + 3 * grad.nbytes
    work = Work(products * 2.0 * b * t * g * f * k, least, dtype)
    peers = {"plain PyTorch": vlad_aggregate_reference}
    peers |= compilations(request, vlad_aggregate_reference)
    compare({name: contender(f) for name, f in {"pyseg": vlad_aggregate, **peers}.items()}, work)


LAYER_SHAPES = {  # B, T, N, G, K
    "segments": (80, 5, 1152, 8, 112),
    "videos": (VIDEOS, 300, 1152, 8, 112),
    "9600-rows": (32, 300, 1152, 8, 112),
    "audio-videos": (VIDEOS, 300, 128, 4, 56),
}


@needs_kernels
@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("shape", LAYER_SHAPES.values(), ids=LAYER_SHAPES)
def test_layer(compare, benchmark, request, shape, dtype, direction):
    """Inference, or a training step without the optimiser; 16-bit types mean autocast."""
    keep_memory()
    backward = direction != "forward"
    b, t, n, g, k = shape
    torch.manual_seed(0)
    layer = NeXtVLAD(n, clusters=k, groups=g).to(DEVICE).train(backward)
    plain = PlainNeXtVLAD(layer).to(DEVICE).train(backward)
    frames = torch.randn(b, t, n, device=DEVICE)
    grad = torch.randn(b, layer.out_features, device=DEVICE)

    def contender(module, weights):
        def run():
            with (
                torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32),
                torch.set_grad_enabled(backward),
            ):
                output = module(frames)
            if backward:
                torch.autograd.grad(output, weights, grad.to(output.dtype))

        return run

    contenders = {"pyseg": contender(layer, list(layer.parameters()))}
    weights = list(plain.parameters())
    peers = {"plain PyTorch": plain} | compilations(request, plain)
    contenders |= {name: contender(module, weights) for name, module in peers.items()}
    if not GPU and dtype == torch.float32 and tensorflow() is not None:
        from plain_tensorflow import layer_step

        contenders["TensorFlow"] = layer_step(layer, frames, grad if backward else None)
    counts = layer.operations(b, t, backward=backward, formed=not backward)
    with (
        torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32),
        torch.set_grad_enabled(backward),
    ):
        order = layer.cheapest_order(frames)
    size = 4 if dtype == torch.float32 else 2
    parameters = sum(p.numel() for p in layer.parameters()) * 4
    least = frames.numel() * size * (2 if backward else 1) + parameters * (2 if backward else 1)
    benchmark.extra_info |= {
        "order": order,
        "flop of the direct order": layer.operations(b, t, backward=backward)["direct"],
    }
    compare(contenders, Work(counts[order], least, dtype))


# ---- memory --------------------------------------------------------------------------------------


def extra_memory(function: Callable, shape: tuple[int, ...]) -> float:
    """Returns the megabytes of a forward and backward pass beyond inputs and results."""
    inputs, grad = operands(shape, torch.float32, backward=True)

    def step() -> tuple[Tensor, ...]:
        output = function(*inputs)
        return output, *torch.autograd.grad(output, inputs, grad)

    results = sum(tensor.nbytes for tensor in step())
    return max(min(peak_of(step) for _ in range(3)) - results, 0) / 1e6


def measure_memory() -> None:
    """Prints a line per shape: forward and backward in float32."""
    return_memory_at_once()
    for name, shape in SHAPES.items():
        own, plain = (extra_memory(f, shape) for f in (vlad_aggregate, vlad_aggregate_reference))
        print(f"{name} | {own:.1f} MB | plain PyTorch {plain:.1f} MB | {own / plain:.2f}")


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
