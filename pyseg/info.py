"""pyseg's environment: versions, and loaded libraries with their paths or why they are missing.

``python -m pyseg.info`` prints it. Include its output in bug reports.
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
from pyseg import _build, _cli, _ext

SWITCHES = (
    "PYSEG_EXT",
    "PYSEG_CUDA",
    "TORCH_CUDA_ARCH_LIST",
    "MAX_JOBS",
    "CUDA_HOME",
    "CXX",
    "DEBUG",
)
_INSTRUCTIONS = ("sse4_2", "pclmulqdq", "avx2", "fma", "avx512f", "avx512_bf16", "amx_bf16")


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
    facts["GPU"] = _gpus()
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


def main(argv: Sequence[str] | None = None) -> None:
    """Prints the facts, one per line."""
    parser = argparse.ArgumentParser(
        prog=_cli.program("pyseg.info"), description="Prints pyseg's environment."
    )
    parser.parse_args(argv)
    for name, value in collect().items():
        print(f"{name}: {value}")


if __name__ == "__main__":
    main()
