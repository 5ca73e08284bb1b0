"""The Python part of gpu.sh. With REHEARSE in the environment it takes the CPU for the GPU.

python benchmarks/gpu.py check FOLDER          fails with a line if something is missing
python benchmarks/gpu.py exercise              compares every path with float64
python benchmarks/gpu.py limits FILE           measures the GPU's bandwidth and arithmetic
python benchmarks/gpu.py report PHASE FOLDER   writes results/DEVICE.json, prints its table
"""

from __future__ import annotations

import copy
import functools
import importlib.util
import json
import os
import platform
import re
import shutil
import statistics
import subprocess
import sys
import time
import xml.etree.ElementTree as ElementTree
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    import torch
    from torch import Tensor

    # Name, results, and what they should be in float64.
    Paths = Iterator[tuple[str, list[Tensor], list[Tensor]]]

ROOT = Path(__file__).resolve().parent.parent
TOLERANCES = {"float64": 1e-9, "float32": 1e-4, "tf32": 1e-2, "float16": 2e-2, "bfloat16": 1e-1}
REHEARSAL = bool(os.environ.get("REHEARSE"))
DEVICE = "cpu" if REHEARSAL else "cuda"
# B, T, G, F, K: the smallest shapes that cover all branches of every kind of kernel.
EXERCISES = [
    (2, 5, 8, 288, 112),
    (1, 130, 8, 48, 40),  # several slices of rows
    (1, 3, 3, 17, 13),  # nothing aligned, groups that do not divide 8
    (1, 4, 1, 600, 136),  # several slices of features
    (1, 2, 2, 70, 257),  # more clusters than the tensor cores' kernels take
]


def check(folder: Path) -> str | None:
    """Writes what runs to versions.json; returns a line about what is missing, if anything."""
    needed = ("torch", "pytest", "pytest_benchmark")
    if missing := [name for name in needed if not importlib.util.find_spec(name)]:
        return f"{sys.executable} has no {' and no '.join(missing)}"
    import torch

    if not REHEARSAL:
        if torch.version.cuda is None:
            return f"torch {torch.__version__} is not a CUDA build"
        if not torch.cuda.is_available():
            return "torch sees no GPU"
        for program in ("nvcc", "compute-sanitizer"):
            if shutil.which(program) is None:
                return f"{program} is not on PATH"
    (folder / "versions.json").write_text(json.dumps(versions()))
    return None


def exercise() -> str | None:
    """Runs every path and compares it with the reference; returns the first difference."""
    import torch

    from pyseg import _ext

    if not (_ext.HAS_CPU_OPS if REHEARSAL else _ext.HAS_CUDA_OPS):
        return _ext.CPU_REASON if REHEARSAL else _ext.CUDA_REASON
    for precision, tolerance in TOLERANCES.items():
        dtype = torch.float32 if precision == "tf32" else getattr(torch, precision)
        torch.backends.cuda.matmul.allow_tf32 = precision == "tf32"
        for paths in (aggregation, loss, frames, recurrence, classifiers):
            for name, actual, exact in paths(dtype):
                for index, (value, true) in enumerate(zip(actual, exact, strict=True)):
                    error = ((value.cpu().double() - true.cpu()).norm() / true.norm().cpu()).item()
                    if not error <= tolerance:
                        return f"{precision}, {name}: result {index} is off by {error:.2g}"
                print(f"{precision}, {name}: as in float64", flush=True)
    return None


def draw(seed: int, *shape: int) -> Tensor:
    import torch

    random = torch.Generator().manual_seed(seed)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(DEVICE)


def with_gradients(function: Callable[..., Tensor], tensors: list[Tensor]) -> list[Tensor]:
    """Returns the result and the gradients of its sum, with weights of both signs."""
    import torch

    tensors = [tensor.detach().requires_grad_() for tensor in tensors]
    output = function(*tensors)
    weights = draw(9, *output.shape).to(output)
    return [output.detach(), *torch.autograd.grad(output, tensors, weights)]


def aggregation(dtype: torch.dtype) -> Paths:
    """Yields vlad_aggregate, soft_assign and moments."""
    from pyseg import ops

    for b, t, g, f, k in EXERCISES:
        rows = draw(0, b, t).abs()
        row_weights = rows / rows.sum()
        tensors = [
            draw(1, b, t, g, f),
            draw(2, b, t, g, k),
            draw(3, b, t, g).sigmoid(),
            draw(4, f, k),
        ]
        tensors = [tensor.to(dtype) for tensor in tensors]
        wide = [tensor.double() for tensor in tensors]
        flat, flat_weights = wide[1].flatten(0, 1).flatten(1), row_weights.flatten()
        exact = list(ops.moments_reference(flat, flat_weights))
        yield f"moments {flat.shape}", list(ops.moments(flat.to(dtype), flat_weights)), exact
        norm = ops.AssignmentNorm(*exact, draw(5, g * k), draw(6, g * k), 1e-3, row_weights)
        for name, op, reference, first in (
            ("vlad_aggregate", ops.vlad_aggregate, ops.vlad_aggregate_reference, slice(4)),
            ("soft_assign", ops.soft_assign, ops.soft_assign_reference, slice(1, 3)),
            (
                "soft_assign by cluster",
                functools.partial(ops.soft_assign, by_cluster=True),
                ops.soft_assign_reference,
                slice(1, 3),
            ),
        ):
            yield (
                f"{name} {(b, t, g, f, k)}",
                with_gradients(functools.partial(op, norm=norm), tensors[first]),
                with_gradients(functools.partial(reference, norm=norm), wide[first]),
            )


def loss(dtype: torch.dtype) -> Paths:
    """Yields rated_bce_with_logits, for a tile of a row, and more than one."""
    import torch

    from pyseg import ops
    from pyseg.labels import LabelCorrelation

    for classes in (7, 4100):
        offsets = torch.arange(classes + 1).clamp(max=classes - 1)
        columns, values = torch.arange(1, classes), torch.full((classes - 1,), 0.7)
        relations = LabelCorrelation(offsets, columns, values).to(DEVICE)
        ratings = (
            torch.tensor([0, 2, 2, 3]).to(DEVICE),
            torch.tensor([0, 3, classes - 1]).to(DEVICE),
            torch.tensor([1.0, 0.0, 0.5]).to(DEVICE),
        )
        logits = draw(0, 3, classes).to(dtype)

        def of(
            op: Callable[..., Tensor], x: Tensor, ratings: tuple = ratings, p: object = relations
        ) -> list[Tensor]:
            return with_gradients(lambda y: op(y, *ratings, p), [x])

        yield (
            f"rated_bce_with_logits {classes}",
            of(ops.rated_bce_with_logits, logits),
            of(ops.rated_bce_with_logits_reference, logits.double()),
        )


def frames(dtype: torch.dtype) -> Paths:
    """Yields frame_linear and frame_pool, of bytes."""
    import torch

    from pyseg import ops

    stored = torch.arange(2 * 7 * 24, device=DEVICE).remainder(256).to(torch.uint8).view(2, 7, 24)
    mask = torch.arange(7, device=DEVICE) < torch.tensor([[7], [4]], device=DEVICE)
    weights = [draw(1, 5, 24).to(dtype), draw(2, 5).to(dtype)]
    yield (
        "frame_linear",
        with_gradients(lambda *w: ops.frame_linear(stored, mask, *w), weights),
        with_gradients(
            lambda *w: ops.frame_linear_reference(stored, mask, *w), [w.double() for w in weights]
        ),
    )
    weights = [draw(1, 2, 7, 3, 4).to(dtype), draw(2, 3, 6, 24).to(dtype)]
    yield (
        "frame_pool",
        with_gradients(lambda *w: ops.frame_pool(stored, *w)[0], weights),
        with_gradients(
            lambda *w: ops.frame_pool_reference(stored, *w)[0], [w.double() for w in weights]
        ),
    )


def recurrence(dtype: torch.dtype) -> Paths:
    """Yields gru_recurrence."""
    from pyseg import ops

    tensors = [draw(1, 2, 9, 18), draw(2, 18, 6) * 0.3, draw(3, 18)]
    tensors = [tensor.to(dtype) for tensor in tensors]
    yield (
        "gru_recurrence",
        with_gradients(ops.gru_recurrence, tensors),
        with_gradients(ops.gru_recurrence_reference, [tensor.double() for tensor in tensors]),
    )


def classifiers(dtype: torch.dtype) -> Paths:
    """Yields probabilities of every preset, from bytes, with autocast for 16-bit types."""
    import torch

    from pyseg import models

    half = dtype in (torch.float16, torch.bfloat16)
    for name in models.names():
        model, stored, exact = classifier(name)
        model = copy.deepcopy(model).to(DEVICE, torch.float32 if half else dtype)
        with torch.autocast(DEVICE, dtype, enabled=half), torch.no_grad():
            yield name, [model(*(tensor.to(DEVICE) for tensor in stored)).sigmoid()], [exact]


@functools.cache  # in float64 on the CPU it takes longer than all that is compared with it
def classifier(name: str) -> tuple[torch.nn.Module, tuple[Tensor, Tensor], Tensor]:
    """Returns a model, stored frames with their numbers, and its probabilities in float64."""
    import torch

    from pyseg import models

    frames = torch.arange(3 * 6 * 1152).remainder(251).to(torch.uint8).view(3, 6, 1152)
    stored = frames, torch.tensor([6, 1, 4])
    torch.manual_seed(0)
    model = models.create(name, num_classes=5).eval()
    with torch.no_grad():
        return model, stored, copy.deepcopy(model).double()(*stored).sigmoid()


def limits() -> dict[str, float]:
    """Returns the rates of memory, products and bus, which pyseg uses from now on."""
    import torch

    from pyseg import _rates

    device = torch.device(DEVICE)
    found = _rates.measure_rates(device, size=512 if REHEARSAL else 8192)
    if not REHEARSAL:
        _rates.write_rates(torch.cuda.get_device_name(device), found)
    rates = {"copy_bytes_per_second": 1e9 * found.copy}
    for name in ("float32", "tf32", "bfloat16", "float16"):
        rates[f"{name}_flop_per_second"] = 1e9 * getattr(found, name)
    if REHEARSAL:  # no bus
        return rates
    host = torch.empty(2**28, pin_memory=True)
    target = host.to(device)
    times = []
    for _ in range(5):
        start = time.perf_counter()
        target.copy_(host)
        times.append(time.perf_counter() - start)
    return {**rates, "bus_bytes_per_second": host.nbytes / statistics.median(times)}


def output_of(*command: str) -> str | None:
    try:
        done = subprocess.run(command, cwd=ROOT, capture_output=True, text=True, check=True)
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def versions() -> dict[str, object]:
    """Returns the device, the versions of what runs on it, and the commit."""
    import torch

    found: dict[str, object] = {
        "device": "rehearsal on a CPU",
        "torch": torch.__version__,
        "python": platform.python_version(),
        "commit": os.environ.get("COMMIT") or output_of("git", "rev-parse", "HEAD"),
    }
    if (changes := output_of("git", "status", "--porcelain")) is not None:
        found["dirty"] = bool(changes)
    if not REHEARSAL:
        driver = output_of("nvidia-smi", "--query-gpu=driver_version", "--format=csv,noheader")
        nvcc = re.search(r"V([\d.]+)", output_of("nvcc", "--version") or "")
        properties = torch.cuda.get_device_properties(0)
        found |= {
            "device": properties.name,
            "compute_capability": f"{properties.major}.{properties.minor}",
            "multiprocessors": properties.multi_processor_count,
            "driver": driver.splitlines()[0] if driver else None,
            "cuda": torch.version.cuda,
            "nvcc": nvcc[1] if nvcc else None,
        }
    return found


def benchmark_figures(entry: dict) -> dict[str, object]:
    """Returns the figures to keep of a benchmark in pytest-benchmark's file."""
    info, stats = entry["extra_info"], entry["stats"]
    seconds = stats["median"]
    figures = {"seconds": seconds, "interquartile_range": stats["iqr"], "rounds": stats["rounds"]}
    if "bytes" in info:
        figures["share_of_copy_rate"] = info["bytes"] / seconds / info["copy_rate"]
        figures["share_of_product_rate"] = info["flop"] / seconds / info["rate"]
    return figures | info


def read_json(path: Path) -> dict:
    try:
        return json.loads(path.read_text())
    except (OSError, ValueError):
        return {}


def counts_of(file: Path) -> dict[str, int]:
    """Returns how many tests of a JUnit file ran, failed, and so on."""
    try:
        suite = ElementTree.parse(file).getroot().find("testsuite")
    except (OSError, ElementTree.ParseError):
        return {}
    if suite is None:
        return {}
    return {kind: int(suite.get(kind, 0)) for kind in ("tests", "failures", "errors", "skipped")}


def report(phase: str, folder: Path) -> None:
    """Writes what a phase has found so far to the device's file, and prints it as a table."""
    steps = {}
    for line in (folder / "steps.tsv").read_text().splitlines():
        name, outcome, seconds = line.split("\t")
        steps[name] = {"outcome": outcome, "seconds": int(seconds)}
    found = {
        **read_json(folder / "versions.json"),
        "steps": steps,
        "tests": {
            file.stem.partition("-")[2]: counts_of(file)
            for file in sorted(folder.glob("tests-*.xml"))
        },
        "limits": read_json(folder / "limits.json"),
        "benchmarks": {
            entry["name"] + (" with TF32" if "tf32" in path.name else ""): benchmark_figures(entry)
            for path in sorted(folder.glob("benchmark-*.json"))
            for entry in read_json(path).get("benchmarks", [])
        },
    }
    name = re.sub(r"[^a-z0-9]+", "-", str(found["device"]).lower()).strip("-")
    target = (folder if REHEARSAL else ROOT / "benchmarks" / "results") / f"{name}.json"
    target.parent.mkdir(exist_ok=True)
    target.write_text(json.dumps({**read_json(target), phase: found}, indent=2) + "\n")
    if out := os.environ.get("OUT"):
        for file in (target, folder / "log.txt", *folder.glob("tests-*.xml")):
            if file.exists():
                shutil.copy(file, out)
    print_table(phase, found)
    if not REHEARSAL or out:
        print(f"written to {out if REHEARSAL else target}")


def print_table(phase: str, found: dict) -> None:
    """Prints what a phase has found."""
    print(f"\n{phase}: {found['device']}, torch {found['torch']}, commit {found['commit']}")
    for name, step in found["steps"].items():
        print(f"{name}: {step['outcome']}, {step['seconds']} s")
    for name, counts in found["tests"].items():
        print(f"tests, {name}: " + ", ".join(f"{count} {kind}" for kind, count in counts.items()))
    for name, rate in found["limits"].items():
        unit = "TB/s" if "bytes" in name else "TFLOP/s"
        print(f"{name.split('_')[0]}: {rate / 1e12:.3g} {unit}")
    for name, figures in found["benchmarks"].items():
        shown = [f"{1e6 * figures['seconds']:.0f} us"]
        if "queued" in figures:
            shown.append(f"queued {1e6 * figures['queued']:.0f} us")
        shown += [
            f"{peer.split(' / ')[0]} {ratio:.2f}x"
            for peer, ratio in figures.items()
            if peer.endswith(" / pyseg")
        ]
        if (share := figures.get("share_of_copy_rate")) is not None:
            shown.append(f"{share:.0%} of copy rate")
        print(f"{name.removeprefix('test_')}: {', '.join(shown)}")


def main(arguments: list[str]) -> str | None:
    """Runs a command; returns an error message, if any."""
    match arguments:
        case ["check", folder]:
            return check(Path(folder))
        case ["exercise"]:
            return exercise()
        case ["limits", file]:
            Path(file).write_text(json.dumps(limits()))
            return None
        case ["report", phase, folder]:
            report(phase, Path(folder))
            return None
    return __doc__


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
