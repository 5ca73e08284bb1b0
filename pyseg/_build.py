"""Builds pyseg's native libraries: the only place with their sources, flags and requirements.

``torch.utils.cpp_extension`` builds the operators, with ninja; setuptools the record reader. It has
four callers: ``setup.py``, :mod:`pyseg._ext` (the first import builds what the installation could
not, without torch), developers (``python -m pyseg._build``), and CMake (``--cmake``).

This file adds what these tools lack: the reason why a library cannot be built, for ``python -m
pyseg.info``; one build for all processes that import pyseg at the same time, and no retry after a
failure; and the place of each library and the sources that it was built from. It imports neither
pyseg nor torch, so that it runs before either is installed.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.machinery
import json
import os
import platform
import re
import runpy
import shlex
import shutil
import subprocess
import sys
import sysconfig
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NamedTuple

PACKAGE = Path(__file__).resolve().parent
# An installed package contains the sources; a checkout has them beside the package.
INSTALLED = (PACKAGE / "csrc").is_dir()
SOURCES = PACKAGE / "csrc" if INSTALLED else PACKAGE.parent / "csrc"
OBJECTS = SOURCES.parent / "build" / "objects"  # of a checkout, kept for the next build
DISTRIBUTION = "pyseg-video"  # the name for pip; "pyseg" on the public index is another project

MIN_TORCH = (2, 10)  # the oldest torch that the binaries support
DEFINITIONS = [f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"]
WARNINGS = ["-Wall", "-Wextra"]
VISIBILITY = ["-fPIC", "-fvisibility=hidden"]
SUFFIXES = (".cpp", ".cu", ".cuh", ".h")
FAILED = "its build failed"


class BuildError(Exception):
    """The libraries cannot be built; the text is for the user."""


class Library(NamedTuple):
    """A shared library: its file, and patterns of its sources below ``csrc``."""

    file: str
    patterns: tuple[str, ...]

    def sources(self) -> list[str]:
        """Returns the paths of its sources, sorted."""
        return sorted(str(path) for pattern in self.patterns for path in SOURCES.glob(pattern))


CPU = Library("libpyseg.so", ("library.cpp", "cpu/*.cpp"))
CUDA = Library("libpyseg_cuda.so", ("cuda/*.cu",))
RECORDS = Library("_records.abi3.so", ("records/*.cpp",))
LIBRARIES = (CPU, CUDA, RECORDS)
Found = dict[Library, Any]  # the path of a library, or a string: the reason why there is none


def digest(*parts: object) -> str:
    """Returns a short hash of ``parts``."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


def source_digest() -> str:
    """Returns a short hash of all sources of the libraries."""
    paths = sorted(path for path in SOURCES.rglob("*") if path.suffix in SUFFIXES)
    return digest([(path.relative_to(SOURCES), path.read_text()) for path in paths])


def operator_digest() -> str:
    """Returns a short hash of the operators' declarations, on which the Python code relies."""
    return digest((SOURCES / "library.cpp").read_text())


# ---- switches, and this machine's tools ----------------------------------------------------------


def option(name: str, allowed: tuple[str, ...] = ("auto", "1", "0")) -> str:
    """Returns the switch ``name``, one of ``allowed``; unset means ``auto``."""
    value = os.environ.get(name, "").strip().lower() or "auto"
    same = {"on": "1", "true": "1", "yes": "1", "off": "0", "false": "0", "no": "0"}
    if same.get(value, value) not in allowed:
        raise BuildError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    return same.get(value, value)


def check_strict(found: Path | str | None) -> None:
    """Raises if ``PYSEG_CUDA=1`` and ``found`` is a reason why there are no CUDA kernels."""
    if option("PYSEG_CUDA") == "1" and isinstance(found, str):
        raise BuildError(f"PYSEG_CUDA=1, but {found}")


def optimisation() -> list[str]:
    """Returns the optimisation flags. Other programs use ``DEBUG`` too: any value is valid."""
    debug = os.environ.get("DEBUG", "").strip().lower() in ("1", "on", "true", "yes")
    return ["-O0", "-g"] if debug else ["-O3"]


def output_of(*command: str) -> str:
    """Returns what ``command`` prints on both streams, or nothing if it does not run."""
    null, both = subprocess.DEVNULL, subprocess.STDOUT
    with contextlib.suppress(OSError, subprocess.CalledProcessError):
        return subprocess.check_output(command, stdin=null, stderr=both, text=True)
    return ""


def arches() -> list[str]:
    """Returns ``TORCH_CUDA_ARCH_LIST``, else those of the visible GPUs, else two common ones."""
    value = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    if not value:  # with PTX of the newest, for future GPUs
        output = output_of("nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader")
        gpus = sorted(set(re.findall(r"^\d+\.\d$", output, re.M)), key=float)
        value = " ".join(gpus or ["8.0", "9.0"]) + "+PTX"
    return re.split(r"[;,\s]+", value)


def gencode(entries: list[str]) -> list[str]:
    """Returns nvcc's flags for ``entries``; torch adds none if a path contains "arch"."""
    flags = []
    for entry in entries:
        number = entry.removesuffix("+PTX").replace(".", "")
        code = f"[sm_{number},compute_{number}]" if entry.endswith("+PTX") else f"sm_{number}"
        flags.append(f"-gencode=arch=compute_{number},code={code}")
    return flags


def gpu_visible() -> bool:
    """Returns whether torch, if already imported, sees a GPU."""
    import torch

    return torch.cuda.device_count() > 0


class Torch(NamedTuple):
    """The torch to build against: its folder, its version, and that of the CUDA in it."""

    folder: Path
    version: str
    cuda: str | None


@functools.cache
def search_path() -> list[str]:
    """Returns ``sys.path`` with what tools hide from a build.

    pip hides the packages of its own environment, torch among them; ``python -m build`` runs in an
    environment of its own, so that torch may be in the active one, or beside Python itself.
    """
    path = [*sys.path, sysconfig.get_path("purelib")]
    if importlib.machinery.PathFinder.find_spec("torch", path) is None:
        for prefix in filter(None, (os.environ.get("VIRTUAL_ENV"), sys.base_prefix)):
            path.append(sysconfig.get_path("purelib", vars={"base": prefix}))
    return path


@functools.cache
def find_torch() -> Torch | None:
    """Returns the torch that pyseg will use, or None; does not import it, which takes seconds."""
    spec = importlib.machinery.PathFinder.find_spec("torch", search_path())
    if spec is None or spec.origin is None:
        return None
    facts = runpy.run_path(str(Path(spec.origin).with_name("version.py")))
    return Torch(Path(spec.origin).parent, str(facts["__version__"]), facts["cuda"])


@functools.cache
def find_compiler() -> tuple[list[str], str] | str:
    """Returns the C++ compiler's command and version line, or the reason why there is none."""
    wanted = os.environ.get("CXX", "").strip()
    for candidate in [wanted] if wanted else ["g++", "c++", "clang++"]:
        command = _command(candidate)
        if version := output_of(*command, "--version"):
            return command, version.splitlines()[0]
    return _why_not(wanted) if wanted else "no C++ compiler: g++ is not on PATH"


def _command(compiler: str) -> list[str]:
    """Returns the words of a compiler's command; torch runs a ccache on PATH by itself."""
    return [word for word in shlex.split(compiler) if not word.endswith("ccache")]


def _why_not(compiler: str) -> str:
    """Returns why the compiler that CXX names is none."""
    command = _command(compiler)
    try:
        tried = subprocess.run(
            [*command, "--version"], stdin=subprocess.DEVNULL, capture_output=True, text=True
        )
    except FileNotFoundError:
        where = "does not exist" if "/" in "".join(command[:1]) else "is not on PATH"
        return f"CXX={compiler} {where}"
    except OSError as error:
        return f"CXX={compiler} cannot be run: {error.strerror}"
    said = (tried.stderr + tried.stdout).strip().splitlines() or ["nothing"]
    return (
        f"CXX={compiler} does not work as a compiler: with --version it ends with the exit status "
        f"{tried.returncode} and says {said[0]}"
    )


@functools.cache
def find_toolkit() -> tuple[Path, str] | str:
    """Returns the CUDA toolkit's folder and release, or the reason why there is none."""
    home = os.environ.get("CUDA_HOME") or os.environ.get("CUDA_PATH")
    if not home:  # the nvcc on PATH may be a script that runs another one
        here = re.search(r"_HERE_=(.+)/bin", output_of("nvcc", "--dryrun", "-x", "cu", os.devnull))
        if here is None:
            return "no CUDA toolkit: nvcc is not on PATH and CUDA_HOME is not set"
        home = here[1]
    release = re.search(r"release (\d+\.\d+)", output_of(f"{home}/bin/nvcc", "--version"))
    return (Path(home), release[1]) if release else f"{home} has no working bin/nvcc"


def why_unwanted(library: Library) -> str | None:
    """Returns the reason not to load ``library`` even if it exists, or None."""
    if option("PYSEG_EXT", ("auto", "0")) == "0":
        return "PYSEG_EXT=0"
    if library is CUDA and option("PYSEG_CUDA") == "0":
        return "PYSEG_CUDA=0"
    torch = find_torch() if library is CUDA else None
    return f"torch {torch.version} is not a CUDA build" if torch and not torch.cuda else None


def why_not(library: Library) -> str | None:
    """Returns the reason why ``library`` cannot be built here, or None."""
    if reason := why_unwanted(library):
        return reason
    if sys.platform != "linux" or not library.sources():
        return f"{SOURCES} has nothing for it on {sys.platform}"
    compiler, torch = find_compiler(), find_torch()
    if isinstance(compiler, str):
        return compiler
    if library is RECORDS:
        free = sysconfig.get_config_var("Py_GIL_DISABLED")
        return "a Python without the GIL has no limited API" if free else None
    if torch is None:
        return "torch is not installed"
    if tuple(int(number) for number in torch.version.split(".")[:2]) < MIN_TORCH:
        return f"torch {torch.version} is older than {MIN_TORCH[0]}.{MIN_TORCH[1]}"
    toolkit = find_toolkit() if library is CUDA else None
    # libcudart's name contains the major version, and the process has already loaded torch's.
    if isinstance(toolkit, tuple) and toolkit[1].split(".")[0] != str(torch.cuda).split(".")[0]:
        found = f"the CUDA toolkit {toolkit[0]} is {toolkit[1]}"
        return f"{found} but torch {torch.version} was built with CUDA {torch.cuda}"
    return toolkit if isinstance(toolkit, str) else None


# ---- compiling -----------------------------------------------------------------------------------


def includes(library: Library) -> list[str]:
    """Returns the include folders of the other projects that ``library`` uses."""
    torch = find_torch() if library is not RECORDS else None
    return [str(torch.folder / "include")] if torch else []


def flags(library: Library) -> list[str]:
    """Returns the compiler flags of ``library``, without architectures and paths."""
    definitions = [] if library is RECORDS else DEFINITIONS
    if library is not CUDA:
        return ["-std=c++20", *optimisation(), *VISIBILITY, *WARNINGS, *definitions]
    # The stable ABI's CUDA shims are declared only with USE_CUDA.
    host = f"-Xcompiler={','.join([*VISIBILITY, '-Wall'])}"
    found = ["-std=c++20", *optimisation(), *definitions, "-DUSE_CUDA", "-lineinfo", host]
    return [*found, "-ccbin", find_compiler()[0][0]] if os.environ.get("CXX") else found


def prefix_maps(library: Library) -> list[str]:
    """Returns the flags that keep this machine's folders out of torch's error messages."""
    name = "-Xcompiler=-fmacro-prefix-map" if library is CUDA else "-fmacro-prefix-map"
    return [f"{name}={folder}/=" for folder in (str(SOURCES), *includes(library))]


def extension(library: Library) -> dict[str, Any]:
    """Returns the arguments of setuptools' Extension for ``library``."""
    compile_args = [*flags(library), *prefix_maps(library)]
    if library is not CUDA:
        compile_args += ["-include", str(SOURCES / "portable.h")]
    compile_args += [word for folder in includes(library) for word in ("-isystem", folder)]
    link_args = [f"-Wl,-soname,{library.file}"]
    libraries, folders = [], []
    if torch := find_torch() if library is not RECORDS else None:
        # libstdc++ comes first, before the parts of it that torch's libraries export.
        libraries, folders = ["stdc++", "torch_cpu"], [torch.folder / "lib"]
        link_args += ["-Wl,-rpath,$ORIGIN/../torch/lib", "-Wl,--no-undefined"]
    if library is CUDA:
        compile_args += [*gencode(arches()), "--threads=2"]
        libraries += ["torch_cuda", "cudart"]
        home = Path(find_toolkit()[0])
        folders += [home / "lib64", *home.glob("targets/*/lib")]
    nvcc_args = {"cxx": [], "nvcc": compile_args}
    return {
        "sources": library.sources(),
        "include_dirs": [str(SOURCES / "include")],
        "extra_compile_args": nvcc_args if library is CUDA else compile_args,
        "libraries": libraries,
        "library_dirs": [str(folder) for folder in folders],
        "extra_link_args": link_args,
        "language": "c++",
    }


def compile_library(file: str, folder: str, objects: str) -> None:
    """Compiles a library into ``folder``; runs in its own process.

    It uses BuildExtension, also at the first import: ``cpp_extension.load`` links libtorch_python,
    loads the library from its build folder, and waits forever for a process that was killed.
    """
    from setuptools import Distribution, Extension
    from setuptools.command.build_ext import build_ext

    library = next(library for library in LIBRARIES if library.file == file)
    compiler = find_compiler()[0]
    base: Any = build_ext
    os.environ["CXX"] = compiler[0]  # torch takes CXX for a program's name
    if library is not RECORDS:
        from torch.utils.cpp_extension import BuildExtension

        base = BuildExtension

    class BuildLibrary(base):
        def build_extensions(self) -> None:  # without the flags that Python was compiled with
            for kind in ("compiler", "compiler_so", "linker_exe", "linker_so"):
                shared = ["-shared", "-Wl,--as-needed"] if kind == "linker_so" else []
                for language in ("", "_cxx"):
                    setattr(self.compiler, kind + language, [*compiler, *shared])
            super().build_extensions()

        def get_ext_filename(self, name: str) -> str:
            return file

    name = file.partition(".")[0]
    command = BuildLibrary(Distribution({"ext_modules": [Extension(name, **extension(library))]}))
    command.build_lib, command.build_temp = folder, objects
    command.ensure_finalized()
    command.run()


def run_compiler(library: Library, folder: str, objects: str) -> tuple[bool, str]:
    """Runs :func:`compile_library` in another process; returns success and log."""
    environment = {"MAX_JOBS": str(len(os.sched_getaffinity(0)))} | os.environ
    environment["LC_ALL"] = "C"
    scripts = sysconfig.get_path("scripts")  # which has the ninja of this environment
    environment["PATH"] = os.pathsep.join([scripts, os.environ.get("PATH", os.defpath)])
    if library is CUDA:
        environment["CUDA_HOME"] = str(find_toolkit()[0])
    code = (
        f"import runpy, sys; sys.path[:] = {search_path()}; build = runpy.run_path({__file__!r}); "
    )
    code += f"build['compile_library']{library.file, folder, objects}"
    # It writes to a file and inherits the lock, so that it finishes if this process is killed.
    with open(Path(folder, "log"), "w+", errors="replace") as log:
        done = subprocess.run(
            [sys.executable, "-c", code], cwd=folder, env=environment, stdin=subprocess.DEVNULL,
            stdout=log, stderr=subprocess.STDOUT, close_fds=False,
        )  # fmt: skip
        log.seek(0)
        return done.returncode == 0, log.read()


def description(library: Library) -> dict[str, str]:
    """Returns the inputs of the build of ``library``; it is rebuilt if any of them changes."""
    tools, torch = [find_compiler()[1]], find_torch() if library is not RECORDS else None
    if library is CUDA:
        tools.append(f"nvcc {find_toolkit()[1]} for {';'.join(arches())}")
    tools.append(f"torch {torch.version}" if torch else f"Python {platform.python_version()}")
    sources = {"sources": source_digest(), "operators": operator_digest()}
    return {"tools": ", ".join(tools), "flags": " ".join(flags(library))} | sources


def build_library(library: Library, folder: Path, first: bool) -> Path | str:
    """Builds ``library`` unless that in ``folder`` is up to date; returns it or the reason."""
    if reason := why_not(library):
        return reason
    path, facts = folder / library.file, description(library)
    noted = read_note(path)
    if path.exists() and noted.items() >= facts.items():
        return path
    # pip's isolated builds have other packages.
    attempt = digest(facts, sysconfig.get_path("purelib") in sys.path)
    if first and noted.get("attempt") == attempt:
        return noted["failed"]
    usual = "2 to 4 minutes" if library is CUDA else "a minute or two"
    switch = "PYSEG_CUDA=0" if library is CUDA else "PYSEG_EXT=0"
    hint = f"once: {usual} as a rule; {switch} does without"
    print(f"pyseg: building {library.file} in {folder}, {hint}", file=sys.stderr, flush=True)
    with tempfile.TemporaryDirectory(prefix=".build-", dir=folder) as output:
        objects = OBJECTS / f"{library.file}-{digest(facts['tools'], facts['flags'])}"
        kept = output if folder == cache_folder() else str(objects)
        done, log = run_compiler(library, output, kept)
        if not first:
            print(log, end="")
        if done:
            Path(output, library.file).replace(path)  # atomic: no process loads a partial library
            write_note(path, facts)
            return path
    lines = [line.strip() for line in log.splitlines() if line.strip()]
    reason = (
        f"{FAILED}: {next((line for line in lines if re.search('error: |/ld: ', line)), lines[-1])}"
    )
    write_note(path, noted | {"failed": reason, "attempt": attempt})
    return reason


def build(folder: Path, libraries: tuple[Library, ...] = (), first: bool = False) -> Found:
    """Builds ``libraries``, or all, into ``folder``; other processes that want to build wait.

    The ``first`` import prints no errors, and does not repeat failed builds.
    """
    with locked(folder if folder == cache_folder() else OBJECTS):
        return {
            library: build_library(library, folder, first) for library in libraries or LIBRARIES
        }


# ---- places of the libraries ---------------------------------------------------------------------


def version() -> str:
    """Returns pyseg's version without importing it."""
    return re.findall(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.M)[0]


def user_cache() -> Path:
    """Returns the user's folder for files that pyseg generates once.

    That is ``PYSEG_CACHE`` if set, else ``pyseg`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if own := os.environ.get("PYSEG_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyseg")


@functools.cache
def cache_folder() -> Path:
    """Returns the user's folder for libraries built from exactly these sources."""
    return user_cache() / f"{version()}-{digest(source_digest(), DEFINITIONS, platform.machine())}"


def build_folder() -> Path:
    """Returns the folder of builds outside an installation: a writable checkout's, or the cache.

    An installed package's folder belongs to pip: a file that pip does not know would survive an
    upgrade and be loaded with other Python code.
    """
    writable = not INSTALLED and os.access(PACKAGE, os.W_OK)
    folder = PACKAGE if writable else cache_folder()
    folder.mkdir(parents=True, exist_ok=True)
    return folder


def read_note(path: Path) -> dict[str, str]:
    """Returns the note on the build of the library at ``path``."""
    with contextlib.suppress(OSError, ValueError):
        return json.loads(path.with_suffix(".json").read_text())
    return {}


def write_note(path: Path, note: dict[str, str]) -> None:
    """Writes the note on the library at ``path``: the inputs of its build, or why it failed."""
    path.with_suffix(".json").write_text(json.dumps(note, indent=2) + "\n")


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of ``folder``, until the processes started in the block have ended too."""
    import fcntl  # missing on some platforms, on which nothing is compiled

    folder.mkdir(parents=True, exist_ok=True)
    with open(folder / ".build.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        os.set_inheritable(handle.fileno(), True)
        yield


def look_up(library: Library) -> Path | str | None:
    """Returns the path of ``library``, why an import does not build it, or None: to be built."""
    if reason := why_unwanted(library):
        return reason
    # Libraries in the user's cache are built from exactly these sources.
    for path in (cache_folder() / library.file, PACKAGE / library.file):
        if path.exists():
            return path
    reason = why_not(library)
    if reason is None and library is CUDA and option("PYSEG_CUDA") == "auto" and not gpu_visible():
        return (
            "not built yet, as no GPU is visible: an import with PYSEG_CUDA=1 builds it, in 2 to 4 "
            "minutes as a rule"
        )
    return reason


def prepare() -> Found:
    """Finds the libraries for an import, and builds missing ones if possible.

    An existing library is never rebuilt, and a failed build is not repeated until its sources, its
    compiler or torch change.
    """
    found = {library: look_up(library) for library in LIBRARIES}
    missing = tuple(library for library in LIBRARIES if found[library] is None)
    try:
        return found | (build(build_folder(), missing, first=True) if missing else {})
    except (OSError, BuildError) as error:
        return found | dict.fromkeys(missing, str(error))


# ---- command line --------------------------------------------------------------------------------


def cmake_lists() -> str:
    """Returns this file's lists for CMakeLists.txt, as CMake code."""
    torch = find_torch()
    values: dict[str, list[Any]] = {
        "VERSION": [version()],
        "TORCH": [torch.folder] if torch else [],
        "TORCH_VERSION": [torch.version] if torch else [],
        "CPU_SOURCES": CPU.sources(),
        "CUDA_SOURCES": CUDA.sources(),
        "DEFINITIONS": [flag.removeprefix("-D") for flag in DEFINITIONS],
        "CUDA_FLAGS": [f for f in flags(CUDA) + prefix_maps(CUDA) if f not in optimisation()],
        "PREFIX_MAPS": prefix_maps(CPU),
        "WARNINGS": WARNINGS,
    }
    return "".join(
        f'set(PYSEG_{name} "{";".join(map(str, items))}")\n' for name, items in values.items()
    )


def report(folder: Path) -> bool:
    """Builds into ``folder`` and prints the results; returns whether no build failed.

    Raises:
        BuildError: ``PYSEG_CUDA=1``, and the CUDA kernels cannot be built or loaded.
    """
    check_strict(why_not(CUDA))
    found = build(folder)
    for library, result in found.items():
        print(f"pyseg: {library.file}: {result}")
    check_strict(found[CUDA])
    return not any(str(result).startswith(FAILED) for result in found.values())


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pyseg._build",
        description="Builds those of pyseg's libraries that are missing or out of date, in place.",
    )
    parser.add_argument("--force", action="store_true", help="build everything anew")
    parser.add_argument("--cmake", action="store_true", help="print CMake's lists, build nothing")
    args = parser.parse_args(arguments)
    if args.cmake:
        print(cmake_lists(), end="")
        return 0
    try:
        folder = build_folder()
        if args.force:
            shutil.rmtree(OBJECTS, ignore_errors=True)
            for library in LIBRARIES:
                write_note(folder / library.file, {})
        return 0 if report(folder) else 1
    except (BuildError, OSError) as error:
        print(f"pyseg: {error}", file=sys.stderr)
        return 1


if __name__ == "__main__":
    sys.exit(main())
