"""Builds pyseg's native libraries: the one home of their sources, flags and obstacles.

Four callers: ``setup.py`` (at install), :mod:`pyseg._ext` (at the first import, where install found
no torch), developers (``python -m pyseg._build`` rebuilds what is out of date, in place), and
``CMakeLists.txt`` (``--cmake`` prints the same lists). The file imports neither pyseg nor torch, so
that it runs before either is there. The compiler is called directly: the first import must not
depend on a build tool that only the installation had.

Switches, all environment variables: ``PYSEG_EXT=auto|0``, ``PYSEG_CUDA=auto|1|0``,
``TORCH_CUDA_ARCH_LIST``, ``MAX_JOBS``, ``CUDA_HOME``, ``CXX``, ``DEBUG``.
"""

from __future__ import annotations

import argparse
import contextlib
import functools
import hashlib
import importlib.machinery
import importlib.util
import json
import os
import platform
import re
import shlex
import shutil
import site
import subprocess
import sys
import sysconfig
import tempfile
import time
from collections.abc import Callable, Iterable, Iterator
from dataclasses import dataclass, field
from pathlib import Path

PACKAGE = Path(__file__).resolve().parent
# An installed package carries its sources; a checkout has them beside the package.
INSTALLED = (PACKAGE / "csrc").is_dir()
SOURCES = PACKAGE / "csrc" if INSTALLED else PACKAGE.parent / "csrc"
OBJECTS = None if INSTALLED else SOURCES.parent / "build" / "objects"  # kept for the next build
METADATA = "_build.json"
DEVICES = Path("/dev")
DISTRIBUTION = "pyseg-video"  # what pip calls it; "pyseg" on the public index is another project

MIN_TORCH = (2, 10)  # the oldest torch that the binaries run on
STANDARD = "-std=c++20"
DEFINITIONS = [f"-DTORCH_TARGET_VERSION=0x{MIN_TORCH[0]:02x}{MIN_TORCH[1]:02x}000000000000"]
WARNINGS = ["-Wall", "-Wextra"]
VISIBILITY = ["-fPIC", "-fvisibility=hidden"]
NVCC_DEFINITIONS = ["-DUSE_CUDA"]  # the stable ABI's CUDA shims are declared only with it
CUDA_TIME = "2 to 4 minutes"  # on two to four cores
DEFAULT_ARCHES = "8.0;9.0+PTX"  # where no GPU is visible to ask


class BuildError(Exception):
    """The libraries cannot be built: a sentence for the user, and all that the compiler said."""

    def __init__(self, sentence: str, log: str = "") -> None:
        super().__init__(sentence)
        self.log = log


@dataclass(frozen=True)
class Library:
    """One shared library: its name, its file, and its sources and headers below ``csrc``."""

    name: str
    file: str
    patterns: tuple[str, ...]
    headers: tuple[str, ...]

    def sources(self) -> list[Path]:
        """Returns the sources, sorted."""
        return _below_csrc(self.patterns)

    def source_digest(self) -> str:
        """Returns a short hash of all that the library is compiled from."""
        return digest(
            [
                (str(path.relative_to(SOURCES)), hashlib.sha256(path.read_bytes()).hexdigest())
                for path in _below_csrc(self.patterns + self.headers)
            ]
        )

    def operator_digest(self) -> str:
        """Returns a short hash of what declares operators, which the Python sources rely on."""
        return digest((SOURCES / "library.cpp").read_text())


def _below_csrc(patterns: tuple[str, ...]) -> list[Path]:
    return sorted(path for pattern in patterns for path in SOURCES.glob(pattern))


def digest(*parts: object) -> str:
    """Returns a short hash of ``parts``."""
    return hashlib.sha256(json.dumps(parts, default=str).encode()).hexdigest()[:12]


_HEADERS = ("include/pyseg/*.h", "torch/*.h")
_EXT_SUFFIX = sysconfig.get_config_var("EXT_SUFFIX")
CPU = Library("libpyseg", "libpyseg.so", ("library.cpp", "cpu/*.cpp"), ("cpu/*.h", *_HEADERS))
CUDA = Library(
    "libpyseg_cuda", "libpyseg_cuda.so", ("cuda/*.cu",), ("**/*.cuh", "cuda/*.h", *_HEADERS)
)
RECORDS = Library("_records", f"_records{_EXT_SUFFIX}", ("records/*.cpp",), ("records/*.h",))
LIBRARIES = (CPU, CUDA, RECORDS)


# ---- switches ------------------------------------------------------------------------------------


def option(name: str, allowed: tuple[str, ...] = ("auto", "1", "0")) -> str:
    """Returns the switch ``name``, one of ``allowed``; unset means ``auto``.

    Raises:
        BuildError: It has another value.
    """
    value = os.environ.get(name, "").strip().lower() or "auto"
    value = {"on": "1", "true": "1", "yes": "1", "off": "0", "false": "0", "no": "0"}.get(
        value, value
    )
    if value not in allowed:
        raise BuildError(f"{name} must be one of {', '.join(allowed)}, found {value!r}")
    return value


def disabled() -> str | None:
    """Returns the reason that native code is switched off, or None."""
    return "PYSEG_EXT=0" if option("PYSEG_EXT", ("auto", "0")) == "0" else None


def jobs() -> int:
    """Returns how many compilers may run at once: ``MAX_JOBS``, else the usable cores."""
    value = os.environ.get("MAX_JOBS", "").strip()
    if not value:
        return len(os.sched_getaffinity(0))
    if not value.isdecimal() or int(value) < 1:
        raise BuildError(f"MAX_JOBS must be a positive number, found {value!r}")
    return int(value)


def debug() -> bool:
    """Returns whether ``DEBUG`` asks for an unoptimised build with debug information.

    The name is everybody's, so another program's value is no error.
    """
    return os.environ.get("DEBUG", "").strip().lower() in ("1", "on", "true", "yes")


def arches() -> list[str]:
    """Returns the CUDA architectures to compile for, such as ``["8.0", "9.0+PTX"]``.

    ``TORCH_CUDA_ARCH_LIST``, else the visible GPUs (with PTX of the newest, for GPUs to come),
    else :data:`DEFAULT_ARCHES`.
    """
    value = os.environ.get("TORCH_CUDA_ARCH_LIST", "").strip()
    entries = re.split(r"[;,\s]+", value) if value else visible_gpus() or DEFAULT_ARCHES.split(";")
    for entry in entries:
        if not re.fullmatch(r"\d+\.\d[af]?(\+PTX)?", entry):
            raise BuildError(
                'TORCH_CUDA_ARCH_LIST must list architectures such as "8.0;9.0+PTX", '
                f"found {entry!r}"
            )
    return entries


def visible_gpus() -> list[str]:
    """Returns the compute capabilities of the GPUs in this machine, the newest with ``+PTX``."""
    text = output_of(["nvidia-smi", "--query-gpu=compute_cap", "--format=csv,noheader"]) or ""
    found = sorted(set(re.findall(r"^\d+\.\d$", text, re.M)), key=lambda c: float(c))
    return [*found[:-1], found[-1] + "+PTX"] if found else []


def gpu_visible() -> bool:
    """Returns whether this process can open an NVIDIA GPU.

    CUDA opens a device file too: those of NVIDIA's driver, of WSL or of a Jetson. To look for them
    costs nothing, starts no driver, and finds a GPU in a container without ``nvidia-smi``.
    """
    if os.environ.get("CUDA_VISIBLE_DEVICES", "0").strip() in ("", "-1"):
        return False
    return any(any(DEVICES.glob(name)) for name in ("nvidia[0-9]*", "dxg", "nvhost-gpu"))


def gencode(entries: Iterable[str]) -> list[str]:
    """Returns nvcc's flags for the architectures of :func:`arches`."""
    flags = []
    for entry in entries:
        number = entry.removesuffix("+PTX").replace(".", "")
        flags.append(f"-gencode=arch=compute_{number},code=sm_{number}")
        if entry.endswith("+PTX"):
            flags.append(f"-gencode=arch=compute_{number},code=compute_{number}")
    return flags


# ---- what this machine has -----------------------------------------------------------------------


def output_of(command: list[str]) -> str | None:
    """Returns what ``command`` prints on either stream, or None where it does not run."""
    try:
        done = subprocess.run(
            command,
            stdin=subprocess.DEVNULL,
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout


@dataclass(frozen=True)
class Torch:
    """The torch to build against: its folder, version and the CUDA it was built with."""

    folder: Path
    version: str
    cuda: str | None

    @property
    def old(self) -> bool:
        """Whether it is older than :data:`MIN_TORCH`."""
        return tuple(int(n) for n in self.version.split(".")[:2]) < MIN_TORCH


@functools.cache
def find_torch() -> Torch | None:
    """Returns the torch that pyseg will run with, without importing it, or None.

    pip isolates a build by hiding site-packages from ``sys.path``; the target environment's
    folders are still known to ``site`` and ``sysconfig``, so its torch is found all the same.
    """
    folders = [*sys.path, *site.getsitepackages()]
    folders += [sysconfig.get_path("purelib"), sysconfig.get_path("platlib")]
    if site.ENABLE_USER_SITE:
        folders.append(site.getusersitepackages())
    spec = importlib.machinery.PathFinder.find_spec("torch", folders)
    if spec is None or spec.origin is None:
        return None
    folder = Path(spec.origin).parent
    try:
        text = (folder / "version.py").read_text()
    except OSError:
        return None
    version = re.search(r"^__version__ *(?::.*)?= *'(.+)'", text, re.M)
    cuda = re.search(r"^cuda *(?::.*)?= *'(.+)'", text, re.M)
    return Torch(folder, version[1], cuda[1] if cuda else None) if version else None


@functools.cache
def find_compiler() -> tuple[list[str], str] | str:
    """Returns the C++ compiler's command and its version line, or the reason that there is none."""
    wanted = os.environ.get("CXX", "").strip()
    for candidate in [wanted] if wanted else ["g++", "c++", "clang++"]:
        command = shlex.split(candidate)
        if shutil.which(command[0]):
            version = output_of([*command, "--version"])
            return (
                (command, version.splitlines()[0])
                if version
                else f"the C++ compiler {candidate} does not run"
            )
    return f"CXX={wanted} is not on PATH" if wanted else "no C++ compiler: g++ is not on PATH"


@functools.cache
def find_pybind11() -> Path | None:
    """Returns the folder of pybind11's headers (torch brings a copy), or None."""
    spec = importlib.util.find_spec("pybind11")
    folders = [Path(spec.origin).parent / "include"] if spec and spec.origin else []
    torch = find_torch()
    if torch:
        folders.append(torch.folder / "include")
    return next((f for f in folders if (f / "pybind11" / "pybind11.h").exists()), None)


@dataclass(frozen=True)
class Toolkit:
    """A CUDA toolkit: its folder, and its release such as ``13.0``."""

    home: Path
    release: str

    @property
    def nvcc(self) -> str:
        """The compiler itself."""
        return str(self.home / "bin" / "nvcc")


@functools.cache
def find_toolkit() -> Toolkit | str:
    """Returns the CUDA toolkit, or the reason that there is none.

    ``CUDA_HOME`` (or ``CUDA_PATH``) decides, else the ``nvcc`` on PATH. That one may be a wrapper
    script in a folder without headers, so nvcc is asked where it lies.
    """
    name = next((n for n in ("CUDA_HOME", "CUDA_PATH") if os.environ.get(n)), None)
    if name:
        home, told = Path(os.environ[name]), f"{name}={os.environ[name]}"
    elif shutil.which("nvcc"):
        dryrun = output_of(["nvcc", "--dryrun", "-x", "cu", os.devnull]) or ""
        here = re.search(r"_HERE_=(.+)", dryrun)
        if not here:
            return f"{shutil.which('nvcc')} does not say where its toolkit is"
        home = Path(here[1].strip()).parent
        told = f"the CUDA toolkit {home}"
    else:
        return "no CUDA toolkit: nvcc is not on PATH and CUDA_HOME is not set"
    headers = [home / "include", *home.glob("targets/*/include")]
    if not any((folder / "cuda_runtime.h").exists() for folder in headers):
        return f"{told} has no include/cuda_runtime.h"
    release = re.search(
        r"release (\d+\.\d+)", output_of([str(home / "bin" / "nvcc"), "--version"]) or ""
    )
    return Toolkit(home, release[1]) if release else f"{told} has no working bin/nvcc"


# ---- what stands in the way ----------------------------------------------------------------------


def why_not(library: Library) -> str | None:
    """Returns the reason that ``library`` cannot be built here, or None."""
    if reason := disabled():
        return reason
    if library is CUDA and (reason := why_no_cuda()):
        return reason
    if sys.platform != "linux":
        return f"pyseg compiles its libraries on Linux only, not on {sys.platform}"
    if not library.sources():
        return f"no sources match {SOURCES}/{{{','.join(library.patterns)}}}"
    compiler = find_compiler()
    if isinstance(compiler, str):
        return compiler
    if library is RECORDS:
        return why_no_records()
    return why_no_torch()


def why_no_torch() -> str | None:
    """Returns the reason that operators cannot be built against torch, or None."""
    torch = find_torch()
    if torch is None:
        return "torch is not installed"
    if torch.old:
        return f"torch {torch.version} is older than {MIN_TORCH[0]}.{MIN_TORCH[1]}"
    return None


def why_no_records() -> str | None:
    """Returns the reason that the Python module cannot be built, or None."""
    if find_pybind11() is None:
        return "pybind11 is not installed, nor torch, which brings a copy"
    include = sysconfig.get_path("include")
    if not Path(include, "Python.h").exists():
        return f"{include} has no Python.h: install Python's development headers"
    return None


def why_no_cuda() -> str | None:
    """Returns the reason that the CUDA kernels cannot be built, or None."""
    if option("PYSEG_CUDA") == "0":
        return "PYSEG_CUDA=0"
    if reason := why_no_torch():
        return reason
    torch = find_torch()
    assert torch is not None
    if torch.cuda is None:
        return f"torch {torch.version} is not a CUDA build"
    toolkit = find_toolkit()
    if isinstance(toolkit, str):
        return toolkit
    # libcudart's name carries the major version, and the process has torch's loaded already.
    if toolkit.release.split(".")[0] != torch.cuda.split(".")[0]:
        return (
            f"the CUDA toolkit {toolkit.home} is {toolkit.release} but torch {torch.version} "
            f"was built with CUDA {torch.cuda}"
        )
    return None


def check_strict(reason: str | None, log: str = "") -> None:
    """Raises where ``PYSEG_CUDA=1`` and the CUDA kernels cannot be had because of ``reason``.

    Raises:
        BuildError: The sentence, with ``log``.
    """
    if option("PYSEG_CUDA") == "1" and reason:
        raise BuildError(f"PYSEG_CUDA=1, but {reason}", log)


# ---- commands ------------------------------------------------------------------------------------


def optimisation() -> list[str]:
    """Returns the optimisation flags, for g++ and nvcc alike."""
    return ["-O0", "-g"] if debug() else ["-O3"]


def includes(library: Library) -> tuple[list[Path], list[Path]]:
    """Returns ``library``'s own include folders and those of other projects."""
    own = [SOURCES / "include"]
    torch = find_torch()
    if library is not RECORDS:
        return own, [torch.folder / "include"] if torch else []
    pybind11 = find_pybind11()
    others = [Path(sysconfig.get_path("include"))]
    return [*own, SOURCES / "records"], [*others, pybind11] if pybind11 else others


def cxx_flags(library: Library) -> list[str]:
    """Returns the flags that compile a C++ source of ``library``, less the include folders."""
    flags = [STANDARD, *optimisation(), *VISIBILITY, *WARNINGS]
    return flags if library is RECORDS else [*flags, *DEFINITIONS]


def nvcc_flags() -> list[str]:
    """Returns the flags that compile a CUDA source, less architectures and include folders."""
    flags = [STANDARD, *optimisation(), *DEFINITIONS, *NVCC_DEFINITIONS]
    flags += ["-lineinfo", f"-Xcompiler={','.join([*VISIBILITY, '-Wall'])}"]
    if os.environ.get("CXX"):
        flags += ["-ccbin", shlex.split(os.environ["CXX"])[-1]]
    return flags


def prefix_maps(library: Library) -> list[str]:
    """Returns the flags that keep this machine's folders out of ``__FILE__``.

    torch's headers put ``__FILE__`` in error texts.
    """
    flags = [f"-fmacro-prefix-map={folder}/=" for folder in (SOURCES, *includes(library)[1])]
    return [f"-Xcompiler={flag}" for flag in flags] if library is CUDA else flags


def compile_command(library: Library, source: Path, target: Path, depfile: Path) -> list[str]:
    """Returns the command that compiles ``source`` to the object ``target``."""
    own, others = includes(library)
    folders = [f"-I{f}" for f in own] + [arg for f in others for arg in ("-isystem", str(f))]
    # Not the headers of other projects: their versions are in `description`, and pip and uv have
    # pybind11 in another folder at every installation.
    tail = [*folders, "-MMD", "-MF", str(depfile), "-c", str(source), "-o", str(target)]
    if library is CUDA:
        toolkit = find_toolkit()
        assert isinstance(toolkit, Toolkit)
        targets = gencode(arches())
        threads = f"--threads={min(jobs(), len(targets))}"
        return [toolkit.nvcc, *nvcc_flags(), *prefix_maps(library), *targets, threads, *tail]
    compiler = find_compiler()
    assert not isinstance(compiler, str)
    return [*compiler[0], *cxx_flags(library), *prefix_maps(library), *tail]


def link_command(library: Library, objects: list[Path], target: Path) -> list[str]:
    """Returns the command that links ``objects`` to the shared library ``target``."""
    compiler = find_compiler()
    assert not isinstance(compiler, str)
    command = [*compiler[0], "-shared", *map(str, objects), "-o", str(target)]
    command += [f"-Wl,-soname,{library.file}", "-Wl,--as-needed"]
    if library is RECORDS:
        return command  # a module: the interpreter that loads it has Python's symbols
    torch = find_torch()
    assert torch is not None
    # libstdc++ goes first: torch's libraries export some of its symbols, which are not to be used.
    command += ["-lstdc++", f"-L{torch.folder / 'lib'}", "-ltorch_cpu"]
    if library is CUDA:
        toolkit = find_toolkit()
        assert isinstance(toolkit, Toolkit)
        folders = [toolkit.home / "lib64", *toolkit.home.glob("targets/*/lib")]
        command += [f"-L{folder}" for folder in folders if folder.is_dir()]
        command += ["-ltorch_cuda", "-lcudart"]
    return [*command, "-Wl,-rpath,$ORIGIN/../torch/lib", "-Wl,--no-undefined"]


def description(library: Library) -> dict[str, object]:
    """Returns what decides the build of ``library``: a change of any of it asks for a new one."""
    compiler, torch, toolkit = find_compiler(), find_torch(), find_toolkit()
    facts: dict[str, object] = {"compiler": compiler if isinstance(compiler, str) else compiler[1]}
    if library is CUDA:
        nvcc = toolkit if isinstance(toolkit, str) else f"nvcc {toolkit.release}"
        return facts | {
            "nvcc": nvcc,
            "torch": torch.version if torch else None,
            "flags": nvcc_flags(),
            "arches": arches(),
        }
    facts["flags"] = cxx_flags(library)
    if library is RECORDS:
        return facts | {"python": platform.python_version()}
    return facts | {"torch": torch.version if torch else None}


# ---- where the libraries lie ---------------------------------------------------------------------


def version() -> str:
    """Returns pyseg's version without importing it."""
    found = re.search(r'^__version__ = "(.+)"', (PACKAGE / "__init__.py").read_text(), re.M)
    assert found is not None
    return found[1]


def user_cache() -> Path:
    """Returns the user's folder for what pyseg makes once and keeps.

    That is ``PYSEG_CACHE`` where it is set, else ``pyseg`` in ``XDG_CACHE_HOME`` or ``~/.cache``.
    """
    if own := os.environ.get("PYSEG_CACHE"):
        return Path(own)
    return Path(os.environ.get("XDG_CACHE_HOME") or os.path.expanduser("~/.cache"), "pyseg")


@functools.cache
def cache_folder() -> Path:
    """Returns the user's folder for libraries of exactly these sources."""
    sources = [library.source_digest() for library in LIBRARIES]
    key = digest(sources, DEFINITIONS, platform.machine())
    return user_cache() / f"{version()}-{key}"


def locate(library: Library) -> Path | None:
    """Returns where ``library`` has been built, or None.

    What lies in the user's cache was built from exactly these sources and goes first, so that it
    replaces what a package folder without write permission has.
    """
    paths = [folder / library.file for folder in (cache_folder(), PACKAGE)]
    return next((path for path in paths if path.exists()), None)


def build_folder() -> Path:
    """Returns the folder that a build outside an installation writes to.

    That is the package's folder in a checkout, where this user may write to it. An installed
    package's folder belongs to pip: what pip does not know of would outlive an upgrade and be
    loaded with other Python code than its own, so there they go to :func:`cache_folder`.

    Raises:
        BuildError: No such folder can be written to.
    """
    folders = [cache_folder()] if INSTALLED else [PACKAGE, cache_folder()]
    for folder in folders:
        with contextlib.suppress(OSError):
            folder.mkdir(parents=True, exist_ok=True)
            with tempfile.TemporaryFile(dir=folder):
                return folder
    raise BuildError(f"{' and '.join(map(str, folders))} cannot be written to")


def out_of_date(library: Library, path: Path) -> bool:
    """Returns whether the library at ``path`` is known to be of other sources than there are."""
    noted = read_metadata(path.parent).get(path.name, {})
    return "sources" in noted and noted["sources"] != library.source_digest()


def other_operators(library: Library, path: Path) -> bool:
    """Returns whether the library at ``path`` declares other operators than the sources do."""
    noted = read_metadata(path.parent).get(path.name, {})
    return "sources" in noted and noted.get("operators") != library.operator_digest()


def read_metadata(folder: Path) -> dict[str, dict[str, object]]:
    """Returns what was noted of the builds in ``folder``, by file name."""
    try:
        found = json.loads((folder / METADATA).read_text())
    except (OSError, ValueError):
        return {}
    return found if isinstance(found, dict) else {}


def write_metadata(folder: Path, entries: dict[str, dict[str, object]]) -> None:
    """Adds ``entries`` to what is noted in ``folder``."""
    text = json.dumps(read_metadata(folder) | entries, indent=2) + "\n"
    temporary = folder / f".{METADATA}.{os.getpid()}"
    temporary.write_text(text)
    temporary.replace(folder / METADATA)


@contextlib.contextmanager
def locked(folder: Path) -> Iterator[None]:
    """Holds the lock of ``folder``; the system drops it should this process die."""
    import fcntl  # not on every platform, and only those that compile come here

    with open(folder / ".build.lock", "a") as handle:
        fcntl.flock(handle, fcntl.LOCK_EX)
        yield


# ---- building ------------------------------------------------------------------------------------


@dataclass
class Outcome:
    """What became of one library: built or up to date (``path``), or not (``reason``)."""

    path: Path | None = None
    reason: str | None = None
    built: bool = False
    log: str = field(default="", repr=False)  # all that the compiler said


def outdated(target: Path, depfile: Path) -> bool:
    """Returns whether the object ``target`` is older than anything it was made from."""
    try:
        built = target.stat().st_mtime
        names = shlex.split(depfile.read_text().replace("\\\n", " ").split(":", 1)[1])
        return any(os.stat(name).st_mtime > built for name in names)
    except (OSError, IndexError):
        return True


def run(command: list[str]) -> str:
    """Runs a compiler and returns what it says.

    Raises:
        BuildError: It failed. The sentence has its first error.
    """
    done = subprocess.run(
        command,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        text=True,
        errors="replace",
        env=os.environ | {"LC_ALL": "C"},
    )
    if done.returncode:
        lines = [line.strip() for line in done.stdout.splitlines() if line.strip()]
        told = next((line for line in lines if "error" in line), lines[-1] if lines else "")
        reason = f"{command[0]} failed with status {done.returncode}: {told}"
        raise BuildError(reason, shlex.join(command) + "\n" + done.stdout)
    return done.stdout


def build_library(library: Library, folder: Path, objects: Path, submit: Callable) -> Callable:
    """Starts the compilation of ``library``; the function returned waits for it and links."""
    start, facts, sources = time.perf_counter(), description(library), library.source_digest()
    running, targets = [], []
    for source in library.sources():
        stem = ".".join([*source.relative_to(SOURCES).parts, digest(library.file, facts)])
        target, depfile = objects / f"{stem}.o", objects / f"{stem}.d"
        targets.append(target)
        if outdated(target, depfile):
            # Compiled under another name, so that an interrupted compiler leaves no half object.
            temporary = objects / f"{stem}.{os.getpid()}.o"
            command = compile_command(library, source, temporary, depfile)
            running.append((submit(run, command), temporary, target))
    noted = read_metadata(folder).get(library.file, {})
    of_sources = {"sources": sources, "operators": library.operator_digest()}
    signature = digest(facts, [target.name for target in targets])

    def finish() -> Outcome:
        log, path = "", folder / library.file
        temporary = folder / f".{library.file}.{os.getpid()}"
        try:
            for future, half, target in running:
                log += future.result()
                half.replace(target)
            if not running and path.exists() and noted.get("signature") == signature:
                write_metadata(folder, {library.file: noted | of_sources})
                return Outcome(path)
            log += run(link_command(library, targets, temporary))
            temporary.replace(path)  # atomic: nobody loads a half-written library
        except BuildError as error:
            temporary.unlink(missing_ok=True)
            for _, half, _ in running:
                half.unlink(missing_ok=True)
            failed: dict[str, object] = {"failed": str(error), "attempt": attempt(library)}
            write_metadata(folder, {library.file: noted | failed})
            return Outcome(reason=str(error), log=error.log)
        seconds = round(time.perf_counter() - start, 1)
        entry = facts | of_sources | {"signature": signature, "seconds": seconds}
        write_metadata(folder, {library.file: entry})
        return Outcome(path, built=True, log=log)

    return finish


def attempt(library: Library) -> str:
    """Returns a key of all that a build of ``library`` depends on, to not repeat a failed one."""
    return digest(description(library), library.source_digest())


def build(
    folder: Path, libraries: Iterable[Library] = LIBRARIES, objects: Path | None = None
) -> dict[str, Outcome]:
    """Builds into ``folder`` what can be built and is not up to date there.

    Args:
        folder: Where the libraries go.
        libraries: Which ones.
        objects: Where objects are kept from build to build; without it nothing is kept.

    Returns:
        The outcome by library name.

    Raises:
        BuildError: A switch has a wrong value.
    """
    from concurrent.futures import ThreadPoolExecutor

    libraries = list(libraries)
    reasons = {library.name: why_not(library) for library in libraries}
    outcomes = {name: Outcome(reason=reason) for name, reason in reasons.items()}
    with contextlib.ExitStack() as stack:
        if objects is None:
            objects = Path(stack.enter_context(tempfile.TemporaryDirectory(prefix="pyseg-")))
        objects.mkdir(parents=True, exist_ok=True)
        pool = stack.enter_context(ThreadPoolExecutor(jobs()))
        waiting = [
            (library.name, build_library(library, folder, objects, pool.submit))
            for library in libraries
            if reasons[library.name] is None
        ]
        for name, finish in waiting:
            outcomes[name] = finish()
    return outcomes


def plan() -> str:
    """Returns the line that says what a build here makes, with what, and why not the rest."""
    reasons = {library.file: why_not(library) for library in LIBRARIES}
    made = [name for name, reason in reasons.items() if reason is None]
    compiler, torch = find_compiler(), find_torch()
    tools = [compiler if isinstance(compiler, str) else compiler[1]]
    if CUDA.file in made:
        toolkit = find_toolkit()
        assert isinstance(toolkit, Toolkit)
        tools.append(f"nvcc {toolkit.release} for {';'.join(arches())}")
    tools.append(f"torch {torch.version}" if torch else "no torch")
    text = f"builds {', '.join(made)} ({', '.join(tools)})" if made else "builds nothing"
    without = [f"not {name}: {reason}" for name, reason in reasons.items() if reason]
    return "; ".join([text, *without])


def prepare() -> dict[str, Outcome]:
    """Finds the libraries for an import, and builds once those that are missing and can be built.

    A library that exists is never rebuilt, and a build that failed is not tried again before its
    sources, its compiler or torch change.

    Raises:
        BuildError: A switch has a wrong value.
    """
    if reason := disabled():
        return {library.name: Outcome(reason=reason) for library in LIBRARIES}
    found = {library.name: look_up(library) for library in LIBRARIES}
    missing = [lib for lib in LIBRARIES if (o := found[lib.name]).path is None and not o.reason]
    if missing:
        try:
            folder = build_folder()
            with locked(folder):
                # Another process may have built them while this one waited.
                found |= {library.name: look_up(library) for library in missing}
                missing = [
                    lib for lib in missing if not (found[lib.name].path or found[lib.name].reason)
                ]
                if missing:
                    print(f"pyseg: {announcement(missing, folder)}", file=sys.stderr, flush=True)
                    found |= build(folder, missing, OBJECTS if folder == PACKAGE else None)
        except (OSError, BuildError) as error:
            for library in missing:
                found[library.name].reason = str(error)
    return found


def announcement(libraries: list[Library], folder: Path) -> str:
    """Returns the line that an import prints before it builds ``libraries``."""
    names = ", ".join(library.file for library in libraries)
    usual, refusal = "a minute or two", "PYSEG_EXT=0 does without"
    if CUDA in libraries:
        usual, refusal = CUDA_TIME, "PYSEG_CUDA=0 leaves out CUDA, PYSEG_EXT=0 everything"
    return f"building {names} in {folder}, once: {usual} as a rule; {refusal}"


def look_up(library: Library) -> Outcome:
    """Returns where ``library`` is, why an import does not build it, or neither: it is to build."""
    if library is CUDA and option("PYSEG_CUDA") == "0":
        return Outcome(reason="PYSEG_CUDA=0")
    torch = find_torch()
    if library is CUDA and torch and torch.cuda is None:
        return Outcome(reason=f"torch {torch.version} is not a CUDA build")
    if path := locate(library):
        return Outcome(path)
    if reason := why_not(library):
        return Outcome(reason=reason)
    if library is CUDA and option("PYSEG_CUDA") == "auto" and not gpu_visible():
        return Outcome(
            reason="not built yet, as no GPU is visible: an import with PYSEG_CUDA=1 builds it, "
            f"in {CUDA_TIME} as a rule"
        )
    for folder in (PACKAGE, cache_folder()):
        noted = read_metadata(folder).get(library.file, {})
        if "failed" in noted and noted.get("attempt") == attempt(library):
            return Outcome(reason=f"its build failed: {noted['failed']}")
    return Outcome()


# ---- command line --------------------------------------------------------------------------------


def cmake_lists() -> str:
    """Returns what CMakeLists.txt needs of this file, as CMake code."""
    torch = find_torch()
    values: dict[str, Iterable[object]] = {
        "VERSION": [version()],
        "TORCH": [torch.folder] if torch else [],
        "TORCH_VERSION": [torch.version] if torch else [],
        "CPU_SOURCES": CPU.sources(),
        "CUDA_SOURCES": CUDA.sources(),
        "DEFINITIONS": [flag.removeprefix("-D") for flag in DEFINITIONS],
        "CUDA_FLAGS": [
            *(flag for flag in nvcc_flags() if flag not in optimisation()),
            *prefix_maps(CUDA),
        ],
        "PREFIX_MAPS": prefix_maps(CPU),
        "WARNINGS": WARNINGS,
    }
    return "".join(
        f'set(PYSEG_{name} "{";".join(map(str, items))}")\n' for name, items in values.items()
    )


def main(arguments: list[str] | None = None) -> int:
    """Runs the command line; returns the exit status."""
    parser = argparse.ArgumentParser(
        prog="python -m pyseg._build",
        description="Builds what is missing or out of date of pyseg's libraries, in place.",
    )
    parser.add_argument("--force", action="store_true", help="build everything anew")
    parser.add_argument("--cmake", action="store_true", help="print CMake's lists, build nothing")
    args = parser.parse_args(arguments)
    if args.cmake:
        print(cmake_lists(), end="")
        return 0
    try:
        print(f"pyseg: {plan()}", flush=True)
        check_strict(why_not(CUDA))
        if all(map(why_not, LIBRARIES)):
            return 0
        start, folder = time.perf_counter(), build_folder()
        with locked(folder):
            if args.force and OBJECTS:
                shutil.rmtree(OBJECTS, ignore_errors=True)
            outcomes = build(folder, objects=OBJECTS)
        check_strict(outcomes[CUDA.name].reason, outcomes[CUDA.name].log)
    except (BuildError, OSError) as error:
        print(f"{getattr(error, 'log', '')}pyseg: {error}", file=sys.stderr)
        return 1
    failed = False
    for name, outcome in outcomes.items():
        if outcome.log:
            print(outcome.log, end="", file=sys.stderr)
        if outcome.path:
            print(f"pyseg: {name}: {'built' if outcome.built else 'up to date'}")
        elif outcome.log:
            failed = True
            print(f"pyseg: {name}: {outcome.reason}", file=sys.stderr)
    print(f"pyseg: {time.perf_counter() - start:.1f} s")
    return int(failed)


if __name__ == "__main__":
    sys.exit(main())
