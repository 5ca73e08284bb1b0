"""How fast a GPU copies memory and multiplies matrices: measured once, else assumed.

``python -m pyseg.info --measure`` writes the file; `pyseg.nn.NeXtVLAD` chooses the order of its
products by it.
"""

from __future__ import annotations

import functools
import json
import os
import statistics
import time
import warnings
from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple

import torch

from pyseg._build import user_cache
from pyseg._files import write_file
from pyseg.errors import UserError

_MOST = 10**9  # more than any device has, of either unit: products of two rates stay exact


class Rates(NamedTuple):
    """Rates of a device; whole numbers, so that compiled graphs can compare times exactly.

    Attributes:
        copy: bytes read and written by a large copy, in GB/s.
        float32: operations of large products of float32 matrices, in GFLOP/s.
        tf32: the same, rounded to TF32.
        bfloat16: of bfloat16.
        float16: of float16.
    """

    copy: int
    float32: int
    tf32: int
    bfloat16: int
    float16: int


# Assumptions, not measurements: an A100 and an H100, by the major compute capability.
ASSUMED = {
    8: Rates(copy=1_600, float32=19_000, tf32=120_000, bfloat16=250_000, float16=250_000),
    9: Rates(copy=3_000, float32=50_000, tf32=350_000, bfloat16=700_000, float16=700_000),
}


class Known(NamedTuple):
    """Rates, where they come from, and why the file is ignored, if it is."""

    rates: Rates
    source: str
    problem: str | None = None


def rates_path() -> Path:
    """Returns the file of measured rates, in the user's cache folder."""
    return user_cache() / "gpu_rates.json"


def read_rates(path: Path) -> dict[str, Rates]:
    """Returns the measured rates by the names of devices; none where there is no file.

    Raises:
        ValueError: the file is not one that `write_rates` writes.
    """
    try:
        text = path.read_text()
    except FileNotFoundError:
        return {}
    except (OSError, ValueError) as error:
        raise ValueError(f"{path}: expected a readable file, found: {error}") from None
    try:
        devices = json.loads(text)["devices"].items()
        found = {str(name): Rates(**rates) for name, rates in devices}
    except (AttributeError, KeyError, RecursionError, TypeError, ValueError):
        raise ValueError(
            f"{path}: expected the rates of devices as `--measure` writes them, found others"
        ) from None
    for name, rates in found.items():
        for field, rate in rates._asdict().items():
            if type(rate) is not int or not 0 < rate < _MOST:
                raise ValueError(
                    f"{path}: expected whole numbers in 1..{_MOST - 1}, found {rate!r} as "
                    f"{field} of {name}"
                )
    return found


def write_rates(name: str, rates: Rates) -> Path:
    """Adds the rates of a device to the file, and returns its path; a damaged one is replaced."""
    path = make_rates_folder()
    try:
        found = read_rates(path)
    except ValueError:
        found = {}
    devices = {device: each._asdict() for device, each in (found | {name: rates}).items()}
    write_file(path, json.dumps({"devices": devices}, indent=2).encode() + b"\n")
    return path


def make_rates_folder() -> Path:
    """Makes the folder of the file of rates, and returns the file's path.

    Raises:
        UserError: it cannot be made or written to.
    """
    path = rates_path()
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        reason = None if os.access(path.parent, os.W_OK) else "it is read-only"
    except OSError as error:
        reason = error.strerror
    if reason:
        raise UserError(
            f"{path.parent}: expected a folder that can be written to, found: {reason}; "
            "PYSEG_CACHE names another"
        )
    return path


def known_rates(name: str, major: int) -> Known:
    """Returns the rates of the device `name` of the major compute capability `major`."""
    problem = None
    try:
        if (found := read_rates(rates_path()).get(name)) is not None:
            return Known(found, f"measured, in {rates_path()}")
    except ValueError as error:
        problem = f"{error}; ignored"
    nearest = max((each for each in ASSUMED if each <= major), default=min(ASSUMED))
    return Known(ASSUMED[nearest], f"assumed, as of sm_{nearest}0", problem)


@functools.cache
def _of_gpu(index: int) -> Rates:
    device = torch.cuda.get_device_properties(index)
    known = known_rates(device.name, device.major)
    if known.problem:
        warnings.warn(known.problem, RuntimeWarning, stacklevel=2)
    return known.rates


def rates_of(device: str, index: int | None) -> Rates | None:
    """Returns the rates of a device, read once in a process; None: of a CPU they are not known."""
    return _of_gpu(index or 0) if device == "cuda" else None


# A constant of a compiled graph, as in pyseg/ops/_dispatch.py.
rates_of._dynamo_marked_constant = True  # type: ignore[attr-defined]


def measure_rates(device: torch.device, *, size: int = 8192, repeats: int = 10) -> Rates:
    """Measures the rates of a device: medians over `repeats`, after as many to warm up.

    Args:
        device: a GPU (on a CPU only tests measure).
        size: rows and columns of the matrices; 4 * size^2 floats are copied.
        repeats: how often each is measured.
    """

    def seconds(work: Callable[[], object]) -> float:
        times = []
        for _ in range(2 * repeats):
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            start = time.perf_counter()
            work()
            if device.type == "cuda":
                torch.cuda.synchronize(device)
            times.append(time.perf_counter() - start)
        return statistics.median(times[repeats:])

    def product(dtype: torch.dtype) -> int:
        left, right = (torch.randn(size, size, device=device, dtype=dtype) for _ in range(2))
        result = torch.empty_like(left)
        taken = seconds(lambda: torch.mm(left, right, out=result))
        return max(1, round(2e-9 * size**3 / taken))

    source, target = (torch.ones(4 * size**2, device=device) for _ in range(2))
    copied = source.nbytes + target.nbytes
    copy = max(1, round(1e-9 * copied / seconds(lambda: target.copy_(source))))
    before = torch.backends.cuda.matmul.fp32_precision
    found: dict[str, int] = {}
    try:
        for name, precision in (("float32", "ieee"), ("tf32", "tf32")):
            torch.backends.cuda.matmul.fp32_precision = precision
            found[name] = product(torch.float32)
    finally:
        torch.backends.cuda.matmul.fp32_precision = before
    found |= {"bfloat16": product(torch.bfloat16), "float16": product(torch.float16)}
    return Rates(copy=copy, **found)
