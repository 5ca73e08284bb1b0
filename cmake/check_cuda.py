"""Compiles a CUDA source for sm_80 and sm_90 and fails if a kernel spills registers.

It needs neither a GPU nor a CUDA build of torch. ``check_cuda.py SOURCE REPORT`` prints each
kernel's registers and shared memory, and writes the same to the file REPORT if nothing spills.
CMakeLists.txt runs it (``-DPYSEG_CUDA_CHECK=ON``).

Compiling takes minutes, so results are kept in csrc/cuda/resources, below a line with their inputs:
a digest of the source, its headers and the flags, and the versions of nvcc and torch. While that
line matches, nothing is compiled. After a change of the sources the file is rewritten, to be
committed with them; with other versions it stays.
"""

from __future__ import annotations

import hashlib
import re
import runpy
import shutil
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOURCES = ROOT / "csrc" / "cuda" / "resources"
ARCHES = ["8.0", "9.0"]
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'.*?"
    r"Function properties for (?P=name)\n\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)


def demangle(names: list[str]) -> list[str]:
    """Returns the C++ names of symbols, without their arguments."""
    if not names or shutil.which("c++filt") is None:
        return names
    done = subprocess.run(["c++filt", "-p"], input="\n".join(names), text=True, capture_output=True)
    return [re.sub(r"^void |\(anonymous namespace\)::", "", n) for n in done.stdout.splitlines()]


def fingerprint(torch: str, command: list[str], source: str) -> tuple[str, str]:
    """Returns the inputs of a report: a digest of our sources, and the versions of nvcc, torch."""
    listed = subprocess.run([*command, "-MM", source], check=True, capture_output=True, text=True)
    files = {Path(name).resolve() for name in re.findall(r"\S+\.(?:cuh?|h)\b", listed.stdout)}
    digest = hashlib.sha256(
        str([word for word in command if word[:2] in ("-D", "-O", "-g", "-s")]).encode()
    )
    for path in sorted(file for file in files if file.is_relative_to(ROOT)):
        digest.update(str(path.relative_to(ROOT)).encode())
        digest.update(path.read_bytes())
    version = subprocess.run([command[0], "--version"], capture_output=True, text=True).stdout
    number = re.search(r"V([\d.]+)", version)[1]
    return digest.hexdigest()[:16], f"nvcc {number}, torch {torch.partition('+')[0]}"


def main(source: str, report: str) -> int:
    """Compiles ``source``, unless its result is known; returns the exit status."""
    builder = runpy.run_path(str(ROOT / "pyseg" / "_build.py"))
    cuda, toolkit = builder["CUDA"], builder["find_toolkit"]()
    if isinstance(toolkit, str):
        print(toolkit, file=sys.stderr)
        return 1
    command = [f"{toolkit[0]}/bin/nvcc", *builder["flags"](cuda), *builder["gencode"](ARCHES)]
    command += [f"-I{ROOT}/csrc/include"]
    command += [word for path in builder["includes"](cuda) for word in ("-isystem", path)]
    digest, versions = fingerprint(builder["find_torch"]().version, command, source)
    Path(report).parent.mkdir(parents=True, exist_ok=True)
    kept = RESOURCES / f"{Path(source).stem}.txt"
    head, _, found = kept.read_text().partition("\n") if kept.is_file() else ("", "", "")
    if head == f"{digest}, {versions}":
        print(f"{source}: compiled before\n{found}", end="")
        Path(report).write_text(found)
        return 0
    with tempfile.TemporaryDirectory() as folder:
        command += ["-Xptxas", "-v", "--threads=0"]
        done = subprocess.run(
            [*command, "-c", source, "-o", f"{folder}/object.o"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
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
    lines.sort()
    print("\n".join(lines))
    if spills:
        print(f"{source}: {spills} of {len(entries)} kernels spill registers", file=sys.stderr)
        return 1
    Path(report).write_text("\n".join(lines) + "\n")
    if not head or head.endswith(f", {versions}"):
        RESOURCES.mkdir(exist_ok=True)
        kept.write_text(f"{digest}, {versions}\n" + "\n".join(lines) + "\n")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
