"""Compiles a CUDA source for sm_80 and sm_90 and fails where a kernel spills registers.

No GPU and no CUDA build of torch is needed. ``check_cuda.py SOURCE REPORT`` prints each kernel's
registers and shared memory, and writes the same to the file REPORT if there is no spill.
CMakeLists.txt runs it (``-DPYSEG_CUDA_CHECK=ON``).
"""

from __future__ import annotations

import importlib.util
import re
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ARCHES = ["8.0", "9.0"]
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'.*?"
    r"Function properties for (?P=name)\n\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def load_builder():
    """Returns pyseg/_build.py as a module, without importing pyseg."""
    path = Path(__file__).resolve().parent.parent / "pyseg" / "_build.py"
    spec = importlib.util.spec_from_file_location("_build", path)
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


def demangle(names: list[str]) -> list[str]:
    """Returns the C++ names of symbols, without their arguments."""
    if not names or shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), text=True, capture_output=True)
    return [re.sub(r"^void |\(anonymous namespace\)::", "", n) for n in done.stdout.splitlines()]


def main(source: str, report: str) -> int:
    """Compiles ``source``; returns the exit status."""
    builder = load_builder()
    toolkit = builder.find_toolkit()
    if isinstance(toolkit, str):
        print(toolkit, file=sys.stderr)
        return 1
    own, others = builder.includes(builder.CUDA)
    with tempfile.TemporaryDirectory() as folder:
        command = [toolkit.nvcc, *builder.nvcc_flags(), *builder.gencode(ARCHES), "-Xptxas", "-v"]
        command += [f"-I{path}" for path in own]
        command += [argument for path in others for argument in ("-isystem", str(path))]
        command += [f"--threads={builder.jobs()}", "-c", source, "-o", f"{folder}/object.o"]
        done = subprocess.run(
            command, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.STDOUT,
            text=True,
        )  # fmt: skip
    if done.returncode:
        print(done.stdout, end="", file=sys.stderr)
        return done.returncode
    entries = [match.groupdict() for match in ENTRY.finditer(done.stdout)]
    expected = done.stdout.count("Compiling entry function")
    if not entries or len(entries) != expected:
        print(f"{expected} kernels in ptxas's report, {len(entries)} understood", file=sys.stderr)
        return 1
    lines, spills = [], 0
    for entry, name in zip(entries, demangle([e["name"] for e in entries]), strict=True):
        shared = re.search(r"(\d+) bytes smem", entry["rest"])
        spilled = int(entry["stores"]) + int(entry["loads"])
        spills += spilled > 0
        lines.append(
            f"{entry['arch']}: {entry['registers']} registers, "
            f"{shared[1] if shared else 0} B shared, {entry['stack']} B stack, "
            f"{spilled} B spilled: {name}"
        )
    print("\n".join(lines))
    if spills:
        print(f"{source}: {spills} of {len(entries)} kernels spill registers", file=sys.stderr)
        return 1
    Path(report).parent.mkdir(parents=True, exist_ok=True)
    Path(report).write_text("\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
