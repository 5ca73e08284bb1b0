"""Host time: what Python and the dispatcher take, on tensors so small that nothing else counts.

    OMP_NUM_THREADS=1 pytest benchmarks/bench_host.py [-k "op and vlad_aggregate"]
                                                      [--benchmark-json FILE]

A GPU that waits for its next kernel is as slow as the host. All runs on the CPU, in one thread, in
float32, on the path that a GPU takes: without autocast no product makes a detour through float32,
a layer dequantises bytes once, and what is done for CPUs alone is switched off: dropout takes
torch's own operators, and the numbers of frames and floating frames are not checked for their
range. What remains different: the gradient of the loss is not scaled, as its factor is known, and
there is no launch. Kernels are included, with a few values each; on a GPU they would overlap.
Contenders take turns; results are medians of the time that the process ran.

The peers of an operator are its reference and, for `frame_linear`, torch's product of frames that
are dequantised already, and the other parts that it consists of; those of the layer and of the step
are plain PyTorch, the step's with the same fused Adam.

`test_counts` prints what a step dispatches, forward, backward and optimizer: on a GPU each operator
other than a view or an allocation is a kernel, or several. It counts what operators written in
Python call, not the operators themselves. While it counts, operators go through the dispatcher:
without, a batch normalisation inside an operator has two kernels fewer in the backward pass, and
four in the forward pass, five after folded weights: one operator takes its statistics. The
models are the presets with smaller layers, in the orders of products that the presets take for the
named shapes.
"""

from __future__ import annotations

import collections
import time
from collections.abc import Callable, Iterator

import pytest
import torch
from measure import DIRECTIONS, needs_kernels
from plain import PlainClassifier, PlainNeXtVLAD
from torch import Tensor, nn
from torch.utils._python_dispatch import TorchDispatchMode

from pyseg import models, ops
from pyseg.nn import (
    FrameClassifier,
    FrameNormalization,
    NeXtVLAD,
    NeXtVLADClassifier,
    dropout,
    mask,
    normalize,
)
from pyseg.ops import AssignmentNorm
from pyseg.ops._op import Op, is_plain
from pyseg.training import Loss

pytestmark = [needs_kernels, pytest.mark.benchmark(timer=time.process_time)]

BATCH, LENGTH, SIZES, GROUPS, CLUSTERS, CLASSES = 4, 5, (16, 8), 2, 4, 10
ROUNDS = 2000
# The cheapest orders of the two branches of nextvlad1, see `NeXtVLAD.operations`.
ORDERS = {"segments": ("direct", "folded"), "videos": ("reassociated", "reassociated")}


@pytest.fixture(autouse=True)
def like_a_gpu(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    monkeypatch.setattr(dropout, "_in_lanes", lambda *_: False)
    monkeypatch.setattr(mask, "_has_values", lambda *_: False)
    monkeypatch.setattr(normalize, "_SHARING", ("cpu",))
    monkeypatch.setattr(FrameNormalization, "_refuse_bytes", lambda *_: None)
    threads = torch.get_num_threads()
    torch.set_num_threads(1)
    torch.manual_seed(0)
    yield
    torch.set_num_threads(threads)


def assignment() -> dict[str, Tensor]:
    return {
        "assignment": torch.randn(BATCH, LENGTH, GROUPS, CLUSTERS),
        "attention": torch.rand(BATCH, LENGTH, GROUPS),
    }


def norm() -> AssignmentNorm:
    channels = GROUPS * CLUSTERS
    row_weights = torch.full((BATCH, LENGTH), 1.0 / (BATCH * LENGTH))
    scale = torch.ones(channels, requires_grad=True)
    shift = torch.zeros(channels, requires_grad=True)
    return AssignmentNorm(
        torch.zeros(channels), torch.ones(channels), scale, shift, 1e-3, row_weights
    )


def vlad_inputs() -> dict[str, Tensor]:
    width = SIZES[0] // GROUPS
    features = torch.randn(BATCH, LENGTH, GROUPS, width)
    return {"features": features, **assignment(), "centers": torch.randn(width, CLUSTERS)}


FRAMES = torch.randint(0, 256, (BATCH, LENGTH, SIZES[0]), dtype=torch.uint8)
RATINGS = torch.arange(BATCH + 1), torch.zeros(BATCH, dtype=torch.long), torch.ones(BATCH)

# What `frame_linear` calls besides torch's product, and what the measurement itself takes.
DEQUANTIZE = Op("dequantize")
PARTS: dict[str, Callable[[], object]] = {
    "its kernel": lambda: DEQUANTIZE.call_directly(FRAMES, None, None, torch.float32),
    "its is_plain": lambda: is_plain((FRAMES, None, FRAMES, FRAMES, None)),
    "nothing": lambda: None,
}

# Of each operator its floating inputs, and how to call it, or its reference, with them.
Call = Callable[..., Tensor]
OPS: dict[str, Callable[[], tuple[dict[str, Tensor], Callable[[Call], Call]]]] = {
    "vlad_aggregate": lambda: (vlad_inputs(), lambda op: op),
    "vlad_aggregate, norm": lambda: (vlad_inputs(), _with(norm=norm())),
    "soft_assign": lambda: (assignment(), lambda op: op),
    "soft_assign, norm": lambda: (assignment(), _with(norm=norm())),
    "moments": lambda: ({"x": torch.randn(BATCH * LENGTH, CLUSTERS)}, _first),
    "frame_linear": lambda: (
        {"weight": torch.randn(8, SIZES[0]), "bias": torch.randn(8)},
        lambda op: lambda weight, bias: op(FRAMES, None, weight, bias),
    ),
    "frame_pool": lambda: (
        {
            "weights": torch.rand(BATCH, LENGTH, GROUPS, CLUSTERS),
            "maps": torch.randn(GROUPS, 8, SIZES[0]),
        },
        lambda op: lambda weights, maps: op(FRAMES, weights, maps)[0],
    ),
    "gru_recurrence": lambda: (
        {
            "gates": torch.randn(BATCH, LENGTH, 12),
            "weight": torch.randn(12, 4),
            "bias": torch.randn(12),
        },
        lambda op: op,
    ),
    "rated_bce_with_logits": lambda: (
        {"logits": torch.randn(BATCH, CLASSES)},
        lambda op: lambda logits: op(logits, *RATINGS),
    ),
}


def _with(**options: object) -> Callable[[Call], Call]:
    return lambda op: lambda *inputs: op(*inputs, **options)


def _first(op: Call) -> Call:
    return lambda *inputs: op(*inputs)[0]


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("name", OPS)
def test_op(compare, name: str, direction: str) -> None:
    inputs, call_with = OPS[name]()
    op = name.split(",")[0]
    functions = {
        "pyseg": call_with(getattr(ops, op)),
        "reference": call_with(getattr(ops, f"{op}_reference")),
    }
    if op == "frame_linear":
        values = torch.randn(FRAMES.shape)
        functions["F.linear"] = lambda *inputs: nn.functional.linear(values, *inputs)
    tensors = list(inputs.values())
    contenders = {name: contender(call, tensors, direction) for name, call in functions.items()}
    if op == "frame_linear" and direction == "forward":
        contenders |= PARTS
    compare(contenders, rounds=ROUNDS, timer=time.process_time)


def contender(
    function: Callable[..., Tensor], inputs: list[Tensor], direction: str
) -> Callable[[], object]:
    if direction == "forward":
        return lambda: function(*inputs)
    inputs = [tensor.detach().requires_grad_() for tensor in inputs]
    grad = torch.ones_like(function(*inputs))
    return lambda: torch.autograd.grad(function(*inputs), inputs, grad)


@pytest.mark.parametrize("direction", DIRECTIONS)
@pytest.mark.parametrize("masked", [False, True], ids=["unmasked", "masked"])
def test_layer(compare, masked: bool, direction: str) -> None:
    """NeXtVLAD in training mode, on floating frames."""
    layer = NeXtVLAD(SIZES[0], CLUSTERS, GROUPS, order="direct")
    frames = torch.randn(BATCH, LENGTH, SIZES[0])
    valid = torch.arange(LENGTH).expand(BATCH, -1) < LENGTH - 1 if masked else None

    def of(module: nn.Module) -> Callable[[], object]:
        parameters = [*layer.parameters()] if module is layer else [*plain.parameters()]
        grad = torch.ones(BATCH, layer.out_features)
        if direction == "forward":
            return lambda: module(frames, valid)
        return lambda: torch.autograd.grad(module(frames, valid), parameters, grad)

    plain = PlainNeXtVLAD(layer)
    compare(
        {"pyseg": of(layer), "plain PyTorch": of(plain)}, rounds=ROUNDS, timer=time.process_time
    )


NUM_FRAMES = torch.tensor([LENGTH, LENGTH - 1, 2, 1])
BYTES = torch.randint(0, 256, (BATCH, LENGTH, sum(SIZES)), dtype=torch.uint8)


def step_of(
    model: nn.Module, loss: Callable[[Tensor], Tensor], frames: Tensor = BYTES
) -> Callable[[], object]:
    """Returns a training step: frames in, new weights out."""
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-3, fused=True)
    own = isinstance(model, FrameClassifier)

    def step() -> None:
        optimizer.zero_grad(set_to_none=True)
        value = (
            model.training_loss(frames, NUM_FRAMES, loss)
            if own
            else loss(model(frames, NUM_FRAMES))
        )
        value.backward()
        optimizer.step()

    return step


def own_loss() -> Callable[[Tensor], Tensor]:
    loss = Loss()
    return lambda logits: loss(logits, *RATINGS)


def classifier() -> NeXtVLADClassifier:
    model = models.create(
        "nextvlad1",
        num_classes=CLASSES,
        feature_sizes=SIZES,
        groups=GROUPS,
        clusters=CLUSTERS,
        hidden_size=16,
        reduction=4,
    )
    set_orders(model, "segments")
    return model


def set_orders(model: nn.Module, shape: str) -> None:
    for module in model.modules():
        if isinstance(module, NeXtVLADClassifier):
            for branch, order in zip(module.branches, ORDERS[shape], strict=True):
                branch.order = order


@pytest.mark.parametrize("frames", [BYTES, BYTES / 255.0], ids=["bytes", "floats"])
def test_step(compare, frames: Tensor) -> None:
    targets = torch.zeros(BATCH, CLASSES)
    targets[:, 0] = 1.0

    def plain_loss(logits: Tensor) -> Tensor:
        entropy = nn.functional.binary_cross_entropy_with_logits
        return entropy(logits, targets, reduction="sum") / BATCH

    contenders = {
        "pyseg": step_of(classifier(), own_loss(), frames),
        "plain PyTorch": step_of(PlainClassifier(classifier()), plain_loss, frames),
    }
    compare(contenders, rounds=ROUNDS, timer=time.process_time)


NO_KERNEL = """empty empty_like empty_strided new_empty new_empty_strided detach alias _unsafe_view
    lift_fresh record_stream set_ resize_ _local_scalar_dense is_same_size promote_types"""


class Counts(TorchDispatchMode):
    """Counts operators: kernels, and views and allocations, which on a GPU are none."""

    def __init__(self) -> None:
        super().__init__()
        self.kernels: collections.Counter[str] = collections.Counter()
        self.others: collections.Counter[str] = collections.Counter()
        self.in_python = 0

    def __torch_dispatch__(self, func, types, args=(), kwargs=None):
        name = func.overloadpacket.__name__
        if func.namespace == "pyseg" and func.has_kernel_for_dispatch_key(
            torch._C.DispatchKey.CompositeExplicitAutograd
        ):
            self.in_python += 1
            with self:  # past the key of modes, so that this sees what the kernel calls
                keys = torch._C.DispatchKeySet(torch._C.DispatchKey.CPU)
                return func.redispatch(keys, *args, **(kwargs or {}))
        launches = not func.is_view and name not in NO_KERNEL.split()
        (self.kernels if launches else self.others)[f"{func.namespace}.{name}"] += 1
        return func(*args, **(kwargs or {}))


@pytest.mark.parametrize("shape", ORDERS)
@pytest.mark.parametrize("preset", ["nextvlad1", "paper-mixture"])
def test_counts(lines, preset: str, shape: str) -> None:
    small = {"feature_sizes": SIZES, "groups": GROUPS, "clusters": CLUSTERS}
    small |= {"hidden_size": 16, "reduction": 4}
    if preset == "paper-mixture":
        small |= {"gru_size": 4, "attention_size": 4}
    model = models.create(preset, num_classes=CLASSES, **small)
    set_orders(model, shape)
    step = step_of(model, own_loss())
    step()  # the first one initializes the optimizer
    with Counts() as counts:
        step()
    own = sum(n for name, n in counts.kernels.items() if name.startswith("pyseg."))
    lines.append(
        [
            f"{preset}, {shape}",
            f"{counts.kernels.total() - own} aten kernels",
            f"{own} pyseg kernels",
            f"{counts.in_python} pyseg operators in Python",
            f"{counts.others.total()} views and allocations",
            ", ".join(f"{name} {n}" for name, n in counts.kernels.most_common(12)),
        ]
    )
