"""Speed of a whole training step: loss, gradients and optimiser of nextvlad1, 3,862 classes.

    pytest benchmarks/bench_step.py [-k "segments and float32"] [--benchmark-json FILE]

A step takes bytes and gives new weights, from values in [-2, 2] or, "standardised", from features
with ranges, mean and deviation. The peers are the plain formula in PyTorch, with dense
targets and `torch.optim.Adam`, torch.compile of it, and in float32 on a CPU the same in TensorFlow,
which must give the same loss. On a GPU "pyseg, CUDA graph" is the step as pyseg.train takes it by
default. 16-bit types mean autocast. The floor is that of the products in the
order of the layers, or of the weights: Adam reads four numbers per weight and writes three. The
process keeps its memory, like pyseg.train; the peers would be slower without that. Results are
medians of contenders that take turns. The last lines extrapolate to the paper's schedule (200,000
and 250,000 steps of 80 examples) for one nextvlad1; the paper's mixture has three and a GRU.
"""

from __future__ import annotations

from collections.abc import Callable

import pytest
import torch
from measure import DEVICE, DTYPES, GPU, Work, compilations, name_of, needs_kernels, tensorflow
from plain import PlainClassifier
from torch import Tensor, nn

from pyseg import models
from pyseg._memory import keep_memory
from pyseg.config import StageConfig, TrainConfig
from pyseg.data import Batch
from pyseg.training import Loss, Optimization
from pyseg.training.graph import CudaRecorder, GraphedSteps

CLASSES = 3862
SHAPES = {"videos": (80 if GPU else 16, 300), "segments": (80, 5)}
STEPS = {"videos": 200_000, "segments": 250_000}
PAPER_BATCH = 80
RATE = 2e-4
STANDARDISED = {
    "normalization": "standardize",
    "ranges": ((-1.0, 3.0), (0.0, 30.0)),
    "mean": torch.linspace(0.0, 1.0, 1152),
    "deviation": torch.linspace(0.5, 2.0, 1152),
}


def flop_of(model: nn.Module, batch: int, length: int) -> float:
    """Operations of the products, forward and backward; the first ones need no gradient of x."""
    aggregate = 0
    for branch in model.branches:
        aggregate += min(branch.operations(batch, length, backward=True).values())
    dense = [model.hidden, model.gate.squeeze, model.gate.excite, model.head.linear]
    return aggregate + sum(3 * 2.0 * batch * layer.weight.numel() for layer in dense)


def graphed(batch: Batch, dtype: torch.dtype) -> Callable[[], None]:
    """Returns a step of nextvlad1 as pyseg.train takes it on a GPU, as a CUDA graph."""
    model = models.create("nextvlad1", num_classes=CLASSES).to(DEVICE)
    precision = {torch.float32: "fp32", torch.bfloat16: "bf16"}[dtype]
    options = TrainConfig(precision=precision)
    optimization = Optimization(model, Loss(), StageConfig(1, RATE), options)
    optimization.keep_rate_on_device()
    steps = GraphedSteps(optimization.step, CudaRecorder(torch.device(DEVICE)))

    def step() -> None:
        with steps.stream():
            steps(batch)

    return step


@needs_kernels
@pytest.mark.parametrize("dtype", DTYPES, ids=name_of)
@pytest.mark.parametrize("name", SHAPES)
def test_step(compare, benchmark, request, lines, name, dtype):
    keep_memory()
    batch, length = SHAPES[name]
    torch.manual_seed(0)
    model = models.create("nextvlad1", num_classes=CLASSES).to(DEVICE)
    standardised = models.create("nextvlad1", num_classes=CLASSES, **STANDARDISED).to(DEVICE)
    plain = PlainClassifier(models.create("nextvlad1", num_classes=CLASSES)).to(DEVICE)
    frames = torch.randint(0, 256, (batch, length, 1152), dtype=torch.uint8, device=DEVICE)
    num_frames = torch.randint(length // 2 + 1, length + 1, (batch,), device=DEVICE)
    offsets = torch.arange(batch + 1, device=DEVICE) * 3  # three labels a video
    classes = torch.rand(batch, CLASSES, device=DEVICE).argsort(1)[:, :3].flatten()
    scores = torch.ones(len(classes), device=DEVICE)
    rows = torch.arange(batch, device=DEVICE).repeat_interleave(3)
    targets = torch.zeros(batch, CLASSES, device=DEVICE).index_put((rows, classes), scores)
    loss_of = Loss()

    def own_loss(module: nn.Module):
        def loss() -> Tensor:
            return module.training_loss(
                frames, num_frames, lambda logits: loss_of(logits, offsets, classes, scores)
            )

        return loss

    def plain_loss(classify):
        def loss() -> Tensor:
            logits = classify(frames, num_frames)
            entropy = nn.functional.binary_cross_entropy_with_logits
            return entropy(logits, targets, reduction="sum") / batch

        return loss

    def contender(loss, module: nn.Module, **options):
        optimizer = torch.optim.Adam(module.parameters(), lr=RATE, **options)

        def step() -> None:
            optimizer.zero_grad(set_to_none=True)
            with torch.autocast(DEVICE, dtype, enabled=dtype != torch.float32):
                value = loss()
            value.backward()
            optimizer.step()

        return step

    contenders = {
        name: contender(own_loss(module), module, fused=True)
        for name, module in (("pyseg", model), ("pyseg, standardised", standardised))
    }
    name_of_graph = "pyseg, CUDA graph"
    if not GPU or dtype == torch.float16:
        why = "no GPU" if not GPU else "float16 needs a scaled loss, whose step waits for the GPU"
        lines.append([name_of_graph, f"skipped: {why}"])
    else:
        ids = [str(number) for number in range(batch)]
        given = Batch(ids, frames, num_frames, offsets, classes, scores)
        contenders[name_of_graph] = graphed(given, dtype)
    peers = {"plain PyTorch": plain} | compilations(request, plain)
    contenders |= {name: contender(plain_loss(f), plain) for name, f in peers.items()}
    if not GPU and dtype == torch.float32 and tensorflow() is not None:
        from plain_tensorflow import training_step

        rate, plain.dropout.p = plain.dropout.p, 0.0  # contenders draw different masks
        loss = training_step(plain, frames, num_frames, targets, RATE)()
        assert loss == pytest.approx(plain_loss(plain)().item(), rel=1e-4)
        plain.dropout.p = rate
        contenders["TensorFlow"] = training_step(plain, frames, num_frames, targets, RATE)
    weights = sum(p.numel() for p in model.parameters())
    compare(contenders, Work(flop_of(model, batch, length), 7.0 * 4 * weights, dtype))
    seconds = benchmark.stats.stats.median * PAPER_BATCH / batch * STEPS[name]
    lines.append(
        [f"paper's schedule, {name}, {name_of(dtype)}", f"{seconds / 3600:.0f} h of one nextvlad1"]
    )
