"""The paper's schedule as a budget: the bytes, operations and time of each part of a step on a GPU.

    python benchmarks/budget.py

It prints Markdown, for docs/gpu.md. Nothing runs: sizes are those of the preset `paper-mixture`,
operations of frames those of `NeXtVLAD.operations` in their cheapest order, and a time is the
larger of bytes and operations over their rates. So it is what perfect kernels would take, without
gaps between them. Rates are assumptions until gpu.sh has written benchmarks/results/DEVICE.json.
Every operator is counted as reading its inputs and writing its results once, in bfloat16.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable, Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from pyseg import models
from pyseg._table import Table
from pyseg.config import RECIPES
from pyseg.metrics import _device_keys
from pyseg.nn import AttentionGRU, NeXtVLAD
from pyseg.submission import TOP

RESULTS = Path(__file__).resolve().parent / "results"
ASSUMED = {
    "copy_bytes_per_second": 4.0e12,
    "bfloat16_flop_per_second": 7.0e14,
    "bus_bytes_per_second": 5.0e10,
    "read_bytes_per_second": 2.0e9,
    "recurrent_step_seconds": 5.0e-6,
}
MEANING = {
    "copy_bytes_per_second": ("GPU memory, read and written (an H200's data sheet: 4.8)", "TB/s"),
    "bfloat16_flop_per_second": ("products of bfloat16 (data sheet: 989)", "TFLOP/s"),
    "bus_bytes_per_second": ("host to GPU and back (PCIe 5.0 x16: 63)", "GB/s"),
    "read_bytes_per_second": ("reading, checking and decoding frames, a process", "GB/s"),
    "recurrent_step_seconds": ("a frame of the GRU, which waits for the one before", "us"),
}
UNITS = {"TB/s": 1e12, "TFLOP/s": 1e12, "GB/s": 1e9, "us": 1e-6}
CLASSES, SCORED, WIDTH = 3862, 1000, 1152
SEGMENTS, BLOCK = 2_062_258, 512
WORKERS = 8
HALF, FLOAT = 2, 4  # bytes
# Of a weight in training: cast (4 read, 2 written), read forward and backward (2 each); the
# gradient is written, read and cast (2, 2 and 4).
WEIGHT_BYTES = 4 + 2 + 2 + 2 + 2 + 2 + 4
ADAM_BYTES = 7 * FLOAT  # weight and both moments read and written, gradient read
DESCRIPTOR_PASSES = {True: 10, False: 3}  # batch norm and dropout, forward and backward
RADIX_PASSES = 10  # of torch.topk over 64-bit keys, 8 of them for its digits


@dataclass
class Part:
    """A part of a step.

    Attributes:
        name: What it is.
        bytes: The bytes that it reads and writes.
        flop: Its multiplications and additions.
        place: Where it runs; the three places work at the same time.
        processes: How many processes of the host share it.
        waits: Steps of it that cannot run at once.
    """

    name: str
    bytes: float
    flop: float = 0.0
    place: str = "GPU"
    processes: int = 1
    waits: int = 0

    def seconds(self, rates: dict[str, float]) -> float:
        if self.place == "bus":
            return self.bytes / rates["bus_bytes_per_second"]
        if self.place == "host":
            return self.bytes / rates["read_bytes_per_second"] / self.processes
        return max(
            self.bytes / rates["copy_bytes_per_second"],
            self.flop / rates["bfloat16_flop_per_second"],
            self.waits * rates["recurrent_step_seconds"],
        )


def rates() -> tuple[dict[str, float], str]:
    """Returns the rates, and where they come from."""
    for path in sorted(RESULTS.glob("*.json")):
        result = json.loads(path.read_text()).get("phase1", {})
        measured = {n: rate for n, rate in result.get("limits", {}).items() if n in ASSUMED}
        if not measured:
            continue
        return {**ASSUMED, **measured}, f"Measured on {result['device']}: {', '.join(measured)}."
    return ASSUMED, "All of them are assumptions: none has been measured."


def parts(model: Any, batch: int, length: int, *, training: bool) -> Iterator[Part]:
    """Yields the parts that training and prediction share."""
    rows = batch * length
    layers = [module for module in model.modules() if isinstance(module, NeXtVLAD)]
    [gru] = [module for module in model.modules() if isinstance(module, AttentionGRU)]
    frames = rows * WIDTH
    readers = WORKERS if training else 1
    yield Part(f"reading, {readers} process{'es' * (readers > 1)}", frames, 0, "host", readers)
    yield Part("copy of the frames", frames, place="bus")
    # By each branch of the mixture; for the GRU to float32.
    widths = sum(layer.feature_size for layer in layers)
    bytes_of = rows * widths * (1 + HALF) + frames * (1 + FLOAT)
    yield Part("dequantization, once a branch", bytes_of)
    flop = products = assigned = aggregated = descriptors = 0.0
    for layer in layers:
        costs = layer.operations(batch, length, backward=training, formed=not training)
        order = min(costs, key=lambda name: costs[name])
        flop += costs[order]
        of_frames = rows * layer.feature_size
        assignment = rows * layer.groups * layer.clusters
        expanded = rows * layer.expansion * layer.feature_size
        descriptors += batch * layer.out_features
        passes = 3 if training else 1  # forward, and the gradients of inputs and weights
        if order == "reassociated":  # frames and assignment twice: the assignment, and the pooling
            pooled = batch * layer.groups * layer.clusters * layer.feature_size
            products += passes * (2 * of_frames + 2 * assignment + 2 * pooled)
        else:
            inputs = expanded if order == "direct" else of_frames
            products += passes * (of_frames + expanded + inputs + assignment)
            aggregated += expanded * (4 if training else 1)
        # Training reads it for the statistics too, and backward it, and reads and writes gradients.
        assigned += assignment * ((5 if training else 1) + (order == "reassociated"))
    yield Part("products of the frames", HALF * products, flop)
    yield Part("softmax of the assignment, with its batch norm", HALF * assigned)
    yield Part("aggregation, where it is no product", HALF * aggregated)
    passes = DESCRIPTOR_PASSES[training]
    yield Part("batch norm and dropout of the descriptors", HALF * descriptors * passes)
    factor, weight_bytes = (3, WEIGHT_BYTES) if training else (1, HALF)
    for name, chosen in (
        ("hidden layers", lambda key: key.endswith("hidden.weight")),
        ("gates and heads", lambda key: ".gate." in key or ".head." in key or key == "gate.weight"),
        ("GRU and its attention", lambda key: ".gru." in key or "keys" in key or "query" in key),
    ):
        size = sum(p.numel() for key, p in model.named_parameters() if chosen(key))
        recurrent = name.startswith("GRU")
        used = rows if recurrent else batch
        states = HALF * rows * gru.gru.hidden_size * 12 * (1 if not training else 3)
        yield Part(
            name,
            weight_bytes * size + (states if recurrent else 0.0),
            2.0 * used * size * factor,
            waits=length * (2 if training else 1) if recurrent else 0,
        )


def training_step(model: Any, length: int) -> list[Part]:
    """Returns the parts of a training step of 80 examples."""
    batch = RECIPES["paper"]["pretrain.batch_size"]
    size = sum(p.numel() for p in model.parameters())
    return [
        *parts(model, batch, length, training=True),
        Part("loss, forward and backward", 4 * FLOAT * batch * CLASSES),
        Part("optimizer (Adam)", ADAM_BYTES * size),
    ]


def prediction_block(model: Any) -> list[Part]:
    """Returns the parts of scoring a block of segments."""
    scores = BLOCK * SCORED * FLOAT
    waiting = _device_keys._room(SCORED, TOP)
    ranked = 8 * SCORED * (TOP + waiting) * RADIX_PASSES * BLOCK / waiting
    return [
        *parts(model, BLOCK, 5, training=False),
        Part("best 100,000 of each class", 2 * scores + ranked),
        Part("copy of all scores, only with --scores", scores, place="bus"),
    ]


def after_prediction() -> str:
    """Returns a sentence on what follows the last block."""
    keys = 8 * SCORED * TOP
    names = SCORED * TOP
    return (
        f"After the last block {keys / 1e6:,.0f} MB of keys are copied to the host and sorted "
        f"there, and {names / 1e6:,.0f} million names of segments\nare written."
    )


def rounded(number: float) -> str:
    """Returns a number with three digits."""
    if not number:
        return ""
    digits = max(0, 2 - math.floor(math.log10(abs(number))))
    return f"{number:,.{digits}f}"


def table(found: Iterable[Part], steps: int, rate: dict[str, float]) -> str:
    """Returns the Markdown of the parts of a step, and of the time of all steps."""
    found = list(found)
    rows = []
    for part in found:
        seconds = part.seconds(rate)
        numbers = (part.bytes / 1e6, part.flop / 1e9, 1e6 * seconds, seconds * steps)
        rows.append((part.name, part.place, *map(rounded, numbers)))
    totals = {}
    for place in ("GPU", "bus", "host"):
        totals[place] = sum(part.seconds(rate) for part in found if part.place == place)
    slowest = max(totals, key=lambda place: totals[place])
    for name, place in (("all on the GPU", "GPU"), ("the slowest of the three", slowest)):
        seconds = totals[place]
        times = (rounded(1e6 * seconds), rounded(seconds * steps))
        rows.append((f"**{name}**", place, "", "", *times))
    head = ("part", "where", "MB", "GFLOP", "us a step", f"s for {steps:,} steps")
    return Table(head, rows, numeric=range(2, 6)).markdown()


def report() -> str:
    """Returns the Markdown that docs/gpu.md holds."""
    rate, source = rates()
    with torch.device("meta"):
        model = models.create("paper-mixture", num_classes=CLASSES)
    recipe = RECIPES["paper"]
    head = ("rate", "", "")
    rows = []
    for name, (text, unit) in MEANING.items():
        rows.append((text, rounded(rate[name] / UNITS[unit]), unit))
    blocks = -(-SEGMENTS // BLOCK)
    return "\n\n".join(
        [
            Table(head, rows, numeric=[1]).markdown(),
            source,
            "Pretraining: 80 videos of 300 frames a step.",
            table(training_step(model, 300), recipe["pretrain.steps"], rate),
            "Fine-tuning: 80 segments of 5 frames a step.",
            table(training_step(model, 5), recipe["finetune.steps"], rate),
            f"Prediction: blocks of {BLOCK} segments, {SEGMENTS:,} in all, {SCORED:,} classes.",
            table(prediction_block(model), blocks, rate),
            after_prediction(),
        ]
    )


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    print(report())
