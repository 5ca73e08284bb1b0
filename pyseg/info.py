"""pyseg's environment: versions, and loaded libraries with their paths or why they are missing.

``python -m pyseg.info`` prints it. Include its output in bug reports. With ``--measure`` it first
measures the rates of this machine's GPUs, and keeps them in the user's cache folder. With
``--orders`` it prints the orders of products that NeXtVLAD layers take at the rates of these and of
known GPUs.
"""

from __future__ import annotations

import argparse
import importlib.metadata
import os
import platform
import re
from collections.abc import Sequence
from pathlib import Path

import torch

import pyseg
from pyseg import _build, _cli, _ext, _rates
from pyseg._int8 import has_fast_int8
from pyseg._table import Table
from pyseg.errors import UserError
from pyseg.nn import NeXtVLAD
from pyseg.nn.product_order import cheapest_order

SWITCHES = (
    "PYSEG_EXT",
    "PYSEG_CUDA",
    "TORCH_CUDA_ARCH_LIST",
    "MAX_JOBS",
    "CUDA_HOME",
    "CXX",
    "DEBUG",
    "PYSEG_CACHE",
    "PYSEG_LOG",
)
_INSTRUCTIONS = (
    *("sse4_2", "pclmulqdq", "avx2", "fma", "avx_vnni"),
    *("avx512f", "avx512_vnni", "avx512_bf16", "amx_int8", "amx_bf16"),
)


def collect() -> dict[str, str]:
    """Returns the facts by name, in printing order.

    Returns:
        Names such as ``"pyseg"``, ``"torch"``, ``"CPU ops"`` with one line of text each. The values
        of ``"CPU ops"``, ``"CUDA ops"`` and ``"records"`` start with ``"loaded: "`` and the path
        or with ``"not loaded: "`` and the reason.

    Example:
        >>> from pyseg.info import collect
        >>> collect()["pyseg"] == pyseg.__version__
        True
    """
    facts = {
        "pyseg": pyseg.__version__,
        "package": str(_build.PACKAGE),
        "python": f"{platform.python_version()}, {platform.platform()}",
        "torch": torch.__version__,
    }
    for name in ("numpy", "numba", "safetensors", "jsonargparse", "tqdm"):
        try:
            facts[name] = importlib.metadata.version(name)
        except importlib.metadata.PackageNotFoundError:
            facts[name] = "not installed"
    facts["CPU"] = f"{torch.get_num_threads()} threads, {_instructions()}"
    facts["int8"] = (
        "fast and exact on this CPU (VNNI or AMX)"
        if has_fast_int8()
        else "not fast and exact on this CPU: --precision int8 computes in float32"
    )
    facts["GPU"] = _gpus()
    for name, known in _known_rates().items():
        facts[f"rates of {name}"] = _rates_text(known)
    facts["CPU ops"] = _state(_build.CPU, _ext.CPU_REASON, "plain PyTorch runs instead")
    facts["CUDA ops"] = _state(_build.CUDA, _ext.CUDA_REASON, "plain PyTorch runs instead")
    facts["records"] = _state(_build.RECORDS, _ext.RECORDS_REASON, "Python code reads instead")
    compiler, toolkit = _build.find_compiler(), _build.find_toolkit()
    facts["compiler"] = compiler if isinstance(compiler, str) else compiler[1]
    facts["CUDA toolkit"] = toolkit if isinstance(toolkit, str) else f"{toolkit[1]} in {toolkit[0]}"
    switches = [f"{name}={os.environ[name]}" for name in SWITCHES if os.environ.get(name)]
    facts["switches"] = " ".join(switches) or "none set"
    return facts


def _state(library: _build.Library, reason: str | None, instead: str) -> str:
    """Returns path and build details of ``library``, or why it is not loaded."""
    if reason:
        return f"not loaded: {reason}; {instead}"
    path = _ext.FOUND[library]
    tools = _build.read_note(path).get("tools")
    text = f"loaded: {path}" + (f", built with {tools}" if tools else "")
    if _ext.is_stale(path):
        text += "; its sources have changed since: `python -m pyseg._build` rebuilds it"
    return text


def _instructions() -> str:
    """Returns the relevant instruction sets of the processor."""
    try:
        text = Path("/proc/cpuinfo").read_text()
    except OSError:
        text = ""
    flags = re.search(r"^flags\s*:(.*)$", text, re.M)
    present = set(flags[1].split()) if flags else set()
    names = [name for name in _INSTRUCTIONS if name in present]
    return f"{platform.machine()} with {' '.join(names)}" if names else platform.machine()


def _gpus() -> str:
    """Returns the GPUs that torch sees."""
    if not torch.cuda.is_available():
        return "none that torch sees"
    devices = [torch.cuda.get_device_properties(i) for i in range(torch.cuda.device_count())]
    return ", ".join(f"{device.name} (sm_{device.major}{device.minor})" for device in devices)


def _known_rates() -> dict[str, _rates.Known]:
    """Returns the rates of the GPUs that torch sees, by name."""
    devices = map(torch.cuda.get_device_properties, range(torch.cuda.device_count()))
    return {device.name: _rates.known_rates(device.name, device.major) for device in devices}


def _rates_text(known: _rates.Known) -> str:
    rates = known.rates
    text = (
        f"{known.source}: copy {rates.copy / 1e3:.3g} TB/s; products in TFLOP/s: float32 "
        f"{rates.float32 / 1e3:.3g}, TF32 {rates.tf32 / 1e3:.3g}, bfloat16 "
        f"{rates.bfloat16 / 1e3:.3g}, float16 {rates.float16 / 1e3:.3g}"
    )
    return text if known.problem is None else f"{text}; {known.problem}"


_LENGTHS = (5, 30, 60, 120, 300)
_BATCHES = (16, 80, 320)
_PRECISIONS = {"bfloat16": (torch.bfloat16, False), "TF32": (torch.float32, True)}
_PRECISIONS["float32"] = (torch.float32, False)


def orders(rates: _rates.Rates | None) -> Table:
    """Returns the orders that NeXtVLAD layers take, a row for each B, dtype and mode.

    The layer has N = 1152, K = 112, G = 8 and E = 2, as the paper's for frames of both features.

    Args:
        rates: of the device; ``None``: operations count alone, as on a CPU.
    """
    with torch.device("meta"):
        sizes = NeXtVLAD(1152, clusters=112, groups=8).sizes
    rows = []
    for batch in _BATCHES:
        for name, (dtype, tf32) in _PRECISIONS.items():
            for training in (True, False):
                taken = [
                    cheapest_order(
                        sizes,
                        batch,
                        length,
                        backward=training,
                        formed=not training,
                        rates=rates,
                        dtype=dtype,
                        tf32=tf32,
                    )
                    for length in _LENGTHS
                ]
                rows.append([str(batch), name, "train" if training else "eval", *taken])
    return Table(["B", "products", "mode", *(f"T = {length}" for length in _LENGTHS)], rows, [0])


def _measure() -> None:
    """Measures the GPUs that torch sees, and keeps their rates."""
    if not torch.cuda.is_available():
        raise UserError("--measure: expected a GPU that torch sees, found none")
    _rates.make_rates_folder()  # before minutes of measuring are lost
    for index in range(torch.cuda.device_count()):
        device = torch.device("cuda", index)
        name = torch.cuda.get_device_name(device)
        path = _rates.write_rates(name, _rates.measure_rates(device))
        print(f"{name}: measured, kept in {path}")


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the facts, one per line, or the orders of products."""
    parser = argparse.ArgumentParser(
        prog=_cli.program("pyseg.info"), description="Prints pyseg's environment."
    )
    parser.add_argument(
        "--measure",
        action="store_true",
        help="measure the rates of this machine's GPUs, and keep them",
    )
    parser.add_argument(
        "--orders", action="store_true", help="print the orders of NeXtVLAD's products"
    )
    args = parser.parse_args(argv)
    if args.measure:
        _measure()
    if not args.orders:
        for name, value in collect().items():
            print(f"{name}: {value}")
        return
    known = {f"sm_{major}0": _rates.known_rates("", major) for major in _rates.ASSUMED}
    for name, each in (known | _known_rates()).items():
        print(f"{name}, {_rates_text(each)}\n\n{orders(each.rates).markdown()}\n")
    print(f"CPU, by operations alone\n\n{orders(None).markdown()}")


if __name__ == "__main__":
    _cli.run(main)
