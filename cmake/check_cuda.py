"""Compiles a CUDA source for sm_80 and sm_90; fails if a kernel spills or got worse.

It needs neither a GPU nor a CUDA build of torch. ``check_cuda.py SOURCE REPORT`` prints each
kernel's registers, shared memory and instructions, with loops in parentheses (benchmarks/sass.py),
and writes the same to the file REPORT. CMakeLists.txt runs it (``-DPYSEG_CUDA_CHECK=ON``).

Compiling takes minutes, so results are kept in csrc/cuda/resources, below a line with their inputs:
a digest of the source, its headers and the flags, and the versions of nvcc and torch. While that
line matches, nothing is compiled. After a change of the sources the file is rewritten, to be
committed with them; with other versions it stays. A kernel with more instructions in its loops than
the file has fails; ``PYSEG_ACCEPT=1`` accepts it, for a change that is worth them.

Where there is a CUDA build of torch, the installed one or that of the folder PYSEG_CUDA_TORCH, the
object is also linked against it: an undefined symbol fails.

Instructions are read by cuobjdump and nvdisasm, which some toolkits lack: they are looked for in
the toolkit, on PATH, and among Python's packages (nvidia-cuda-cuobjdump, nvidia-cuda-nvdisasm).
"""

from __future__ import annotations

import hashlib
import os
import re
import runpy
import shutil
import site
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
RESOURCES = ROOT / "csrc" / "cuda" / "resources"
ARCHES = ["8.0", "9.0"]
GROWTH = 1.02  # of the instructions in loops, that is not worth a word
ENTRY = re.compile(
    r"Compiling entry function '(?P<name>\w+)' for '(?P<arch>sm_\w+)'.*?"
    r"Function properties for (?P=name)\n\s*(?P<stack>\d+) bytes stack frame, "
    r"(?P<stores>\d+) bytes spill stores, (?P<loads>\d+) bytes spill loads\n"
    r"[^\n]*?Used (?P<registers>\d+) registers(?P<rest>[^\n]*)",
    re.S,
)
sass = runpy.run_path(str(ROOT / "benchmarks" / "sass.py"))


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


def find_disassembler(toolkit: str) -> str | None:
    """Returns the path of cuobjdump, which finds nvdisasm beside it or on PATH."""
    packages = [*site.getsitepackages(), site.getusersitepackages()]
    places = [f"{toolkit}/bin"]
    for folder in packages:
        places += map(str, Path(folder).glob("nvidia/cu*/bin"))
    return shutil.which("cuobjdump", path=os.pathsep.join([*places, os.environ.get("PATH", "")]))


def loops_of(disassembler: str, compiled: str) -> dict[tuple[str, str], str]:
    """Returns the instructions of every kernel, by architecture and symbol."""
    found = {}
    for arch in ARCHES:
        name = f"sm_{arch.replace('.', '')}"
        command = [disassembler, "-sass", "-arch", name, compiled]
        done = subprocess.run(command, check=True, capture_output=True, text=True)
        found |= {(name, symbol): loop for symbol, loop in sass["parse"](done.stdout).items()}
    return found


def link(compiled: str, toolkit: str, torch: Path) -> str:
    """Links a library, every symbol being defined; returns a line about it, or the linker's."""
    if not (torch / "lib" / "libtorch_cuda.so").is_file():
        return "not linked: no CUDA build of torch"
    needed = ["torch", "torch_cpu", "torch_cuda", "c10", "c10_cuda", "cudart"]
    command = ["c++", "-shared", "-Wl,--no-undefined", "-Wl,--allow-shlib-undefined", compiled]
    command += [f"-L{torch}/lib", f"-L{toolkit}/lib64", *(f"-l{name}" for name in needed)]
    done = subprocess.run(
        [*command, "-o", f"{compiled}.so"],
        text=True,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
    )
    version = re.search(r"__version__ = '([^']+)'", (torch / "version.py").read_text())[1]
    return done.stdout if done.returncode else f"linked against torch {version}"


def worse(before: str, after: str) -> list[str]:
    """Returns a line for every kernel with more instructions in loops than before."""
    counts = []
    for text in (before, after):
        lines = (sass["LINE"].fullmatch(line) for line in text.splitlines())
        counts.append(
            {
                (line["arch"], line["name"]): sass["read"](line["instructions"]).total()
                - sass["read"](line["instructions"]).instructions
                for line in lines
                if line
            }
        )
    old, new = counts
    return [
        f"{arch}: {name}: {old[arch, name]} instructions in loops before, {count} now"
        for (arch, name), count in sorted(new.items())
        if count > GROWTH * old.get((arch, name), count)
    ]


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
    torch = builder["find_torch"]()
    digest, versions = fingerprint(torch.version, command, source)
    Path(report).parent.mkdir(parents=True, exist_ok=True)
    kept = RESOURCES / f"{Path(source).stem}.txt"
    head, _, found = kept.read_text().partition("\n") if kept.is_file() else ("", "", "")
    if head == f"{digest}, {versions}":
        print(f"{source}: compiled before\n{found}", end="")
        Path(report).write_text(found)
        return 0
    disassembler = find_disassembler(toolkit[0])
    if disassembler is None:
        print(
            "cuobjdump is not on PATH: "
            "pip install nvidia-cuda-cuobjdump nvidia-cuda-nvdisasm has one",
            file=sys.stderr,
        )
        return 1
    with tempfile.TemporaryDirectory() as folder:
        command += ["-Xptxas", "-v", "--threads=0"]
        done = subprocess.run(
            [*command, "-c", source, "-o", f"{folder}/object.o"], stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE, stderr=subprocess.STDOUT, text=True,
        )  # fmt: skip
        if done.returncode:
            print(done.stdout, end="", file=sys.stderr)
            return done.returncode
        loops = loops_of(disassembler, f"{folder}/object.o")
        linked = link(
            f"{folder}/object.o",
            toolkit[0],
            Path(os.environ.get("PYSEG_CUDA_TORCH") or torch.folder),
        )
        if not re.match("(not )?linked", linked):
            print(linked, end="", file=sys.stderr)
            return 1
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
            f"{spilled} B spilled, instructions {loops[entry['arch'], entry['name']]}: {name}"
        )
    lines = [*sorted(lines), linked]
    print("\n".join(lines))
    if spills:
        print(f"{source}: {spills} of {len(entries)} kernels spill registers", file=sys.stderr)
        return 1
    text = "\n".join(lines) + "\n"
    if head and (slower := worse(found, text)) and os.environ.get("PYSEG_ACCEPT") != "1":
        print("\n".join([*slower, "PYSEG_ACCEPT=1 accepts this"]), file=sys.stderr)
        return 1
    Path(report).write_text(text)
    if not head or head.endswith(f", {versions}"):
        RESOURCES.mkdir(exist_ok=True)
        kept.write_text(f"{digest}, {versions}\n{text}")
    return 0


if __name__ == "__main__":
    sys.exit(main(*sys.argv[1:]))
