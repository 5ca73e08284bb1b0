from __future__ import annotations

import importlib.util
import os
import re
import shutil
import stat
import subprocess
import sys
import time
from functools import partial
from pathlib import Path

import pytest

from pyseg import _build, _ext

CPU_TORCH = _build.Torch(Path("torch"), "2.13.0+cpu", None)
CUDA_TORCH = _build.Torch(Path("torch"), "2.11.0+cu130", "13.0")
OLD_TORCH = _build.Torch(Path("torch"), "2.9.1+cu130", "13.0")
TOOLKIT = (Path("cuda"), "13.0")
FINDERS = (_build.search_path, _build.find_torch, _build.find_compiler, _build.find_toolkit)


@pytest.fixture(autouse=True)
def clean(monkeypatch):
    """Unsets all switches and clears cached results."""
    for name in ("PYSEG_EXT", "PYSEG_CUDA", "TORCH_CUDA_ARCH_LIST", "MAX_JOBS", "DEBUG", "CXX"):
        monkeypatch.delenv(name, raising=False)
    for name in ("CUDA_HOME", "CUDA_PATH"):
        monkeypatch.delenv(name, raising=False)
    for finder in FINDERS:
        finder.cache_clear()
    yield
    for finder in FINDERS:
        finder.cache_clear()


def get_path(name: str, vars: dict[str, str] | None = None, *, prefix: str) -> str:
    """sysconfig's, of an environment in ``prefix``."""
    return str(Path((vars or {}).get("base", prefix), "lib", name))


def script(path: Path, text: str) -> Path:
    """Writes an executable shell script."""
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f"#!/bin/sh\n{text}\n")
    path.chmod(path.stat().st_mode | stat.S_IXUSR)
    return path


# ---- switches ------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, "auto"),
        ("", "auto"),
        ("AUTO", "auto"),
        ("1", "1"),
        ("on", "1"),
        ("0", "0"),
        ("no", "0"),
    ],
)
def test_option(monkeypatch, value, expected):
    if value is not None:
        monkeypatch.setenv("PYSEG_CUDA", value)
    assert _build.option("PYSEG_CUDA") == expected


def test_option_with_another_value(monkeypatch):
    monkeypatch.setenv("PYSEG_CUDA", "maybe")
    with pytest.raises(
        _build.BuildError, match="PYSEG_CUDA must be one of auto, 1, 0, found 'maybe'"
    ):
        _build.option("PYSEG_CUDA")


def test_ext_is_not_strict(monkeypatch):
    monkeypatch.setenv("PYSEG_EXT", "1")
    with pytest.raises(_build.BuildError, match="PYSEG_EXT must be one of auto, 0, found '1'"):
        _build.why_not(_build.CPU)


@pytest.mark.parametrize(("value", "flag"), [("1", "-O0"), ("0", "-O3"), ("express:*", "-O3")])
def test_debug_of_other_programs_is_no_error(monkeypatch, value, flag):
    monkeypatch.setenv("DEBUG", value)
    assert flag in _build.optimisation()


def test_arches_default_without_gpu(monkeypatch, tmp_path):
    script(tmp_path / "nvidia-smi", "exit 1")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert _build.arches() == ["8.0", "9.0+PTX"]


def test_arches_of_visible_gpus(monkeypatch, tmp_path):
    script(tmp_path / "nvidia-smi", "printf '9.0\\n8.6\\n9.0\\n10.0\\n'")
    monkeypatch.setenv("PATH", str(tmp_path), prepend=os.pathsep)
    assert _build.arches() == ["8.6", "9.0", "10.0+PTX"]


def test_arches_are_given(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0 9.0a;10.0+PTX")
    assert _build.gencode(_build.arches()) == [
        "-gencode=arch=compute_80,code=sm_80",
        "-gencode=arch=compute_90a,code=sm_90a",
        "-gencode=arch=compute_100,code=[sm_100,compute_100]",
    ]


# ---- this machine's tools ------------------------------------------------------------------------


def test_find_torch_finds_the_imported_one():
    import torch

    found = _build.find_torch()
    assert found is not None
    assert found.version == torch.__version__
    assert found.cuda == torch.version.cuda
    assert found.folder == Path(torch.__file__).parent


def test_find_torch_looks_past_pips_isolation():
    code = (
        "import runpy, sys; sys.path[:] = [p for p in sys.path if 'site-packages' not in p]; "
        "print(runpy.run_path(sys.argv[1])['find_torch']())"
    )
    done = subprocess.run(
        [sys.executable, "-c", code, _build.__file__], capture_output=True, text=True
    )
    assert done.stdout == f"{_build.find_torch()}\n", done.stderr


def test_find_torch_looks_past_an_environment_of_the_build(monkeypatch, tmp_path):
    """``python -m build`` runs in an environment without torch, started in an active one."""
    packages = tmp_path / "lib" / "purelib"
    (packages / "torch").mkdir(parents=True)
    (packages / "torch" / "__init__.py").touch()
    (packages / "torch" / "version.py").write_text('__version__ = "2.12.0"\ncuda = None\n')
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(sys, "base_prefix", str(tmp_path / "python"))
    monkeypatch.setattr(_build.sysconfig, "get_path", partial(get_path, prefix=str(tmp_path / "v")))
    monkeypatch.delenv("VIRTUAL_ENV", raising=False)
    assert _build.find_torch() is None
    for finder in FINDERS:
        finder.cache_clear()
    monkeypatch.setenv("VIRTUAL_ENV", str(tmp_path))
    assert _build.find_torch() == _build.Torch(packages / "torch", "2.12.0", None)


def test_no_torch(monkeypatch):
    monkeypatch.setattr(_build, "find_torch", lambda: None)
    assert _build.why_not(_build.CPU) == "torch is not installed"
    assert _build.why_not(_build.CUDA) == "torch is not installed"


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _build.find_compiler() == "no C++ compiler: g++ is not on PATH"
    assert _build.why_not(_build.CPU) == "no C++ compiler: g++ is not on PATH"


def test_missing_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert _build.find_compiler() == "CXX=no-such-compiler -m64 is not on PATH"


@pytest.mark.parametrize(
    ("body", "said"),
    [("exit 1", "1 and says nothing"), ("echo broken >&2\necho more\nexit 3", "3 and says broken")],
)
def test_useless_compiler(body, said, monkeypatch, tmp_path):
    """It exists, so that nobody has to look for it."""
    compiler = script(tmp_path / "c++", body)
    monkeypatch.setenv("CXX", str(compiler))
    assert _build.find_compiler() == (
        f"CXX={compiler} does not work as a compiler: with --version it ends with the exit status "
        f"{said}"
    )
    _build.find_compiler.cache_clear()
    monkeypatch.setenv("CXX", f"{tmp_path}/none")
    assert _build.find_compiler() == f"CXX={tmp_path}/none does not exist"


def test_compiler_behind_ccache(monkeypatch, tmp_path):
    """torch finds ccache by itself, and takes CXX for the name of a program."""
    compiler = script(tmp_path / "g++", "echo version 1")
    monkeypatch.setenv("CXX", f"ccache {compiler} -m64")
    assert _build.find_compiler() == ([str(compiler), "-m64"], "version 1")


def test_no_toolkit(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _build.find_toolkit() == (
        "no CUDA toolkit: nvcc is not on PATH and CUDA_HOME is not set"
    )


def test_toolkit_behind_a_wrapper_script(monkeypatch, tmp_path):
    home = tmp_path / "toolkit"
    real = script(
        home / "bin" / "nvcc",
        f'[ "$1" = --dryrun ] && echo "#$ _HERE_={home}/bin" >&2 || echo "release 12.8, V12.8.93"',
    )
    script(tmp_path / "bin" / "nvcc", f'exec {real} "$@"')
    monkeypatch.setenv("PATH", str(tmp_path / "bin"))
    assert _build.find_toolkit() == (home, "12.8")


def test_cuda_home_without_a_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _build.find_toolkit() == f"{tmp_path} has no working bin/nvcc"


@pytest.mark.parametrize(
    ("torch", "toolkit", "reason"),
    [
        (CPU_TORCH, TOOLKIT, "torch 2.13.0+cpu is not a CUDA build"),
        (OLD_TORCH, TOOLKIT, "torch 2.9.1+cu130 is older than 2.10"),
        (CUDA_TORCH, "no CUDA toolkit: ...", "no CUDA toolkit: ..."),
        (
            CUDA_TORCH,
            (Path("cuda"), "12.8"),
            "the CUDA toolkit cuda is 12.8 but torch 2.11.0+cu130 was built with CUDA 13.0",
        ),
        (CUDA_TORCH, TOOLKIT, None),
    ],
)
def test_why_no_cuda(monkeypatch, torch, toolkit, reason):
    monkeypatch.setattr(_build, "find_torch", lambda: torch)
    monkeypatch.setattr(_build, "find_toolkit", lambda: toolkit)
    assert _build.why_not(_build.CUDA) == reason
    monkeypatch.setenv("PYSEG_CUDA", "0")
    assert _build.why_not(_build.CUDA) == "PYSEG_CUDA=0"


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("switch", ["auto", "1", "0"])
def test_import_builds_cuda_where_a_gpu_is_visible(monkeypatch, tmp_path, gpu, switch):
    monkeypatch.setenv("PYSEG_CUDA", switch)
    monkeypatch.setattr(_build, "gpu_visible", lambda: gpu)
    monkeypatch.setattr(_build, "find_torch", lambda: CUDA_TORCH)
    monkeypatch.setattr(_build, "find_toolkit", lambda: TOOLKIT)
    monkeypatch.setattr(_build, "PACKAGE", tmp_path)
    monkeypatch.setattr(_build, "cache_folder", lambda: tmp_path)
    monkeypatch.setattr(_build, "find_compiler", lambda: (["g++"], "g++ 12"))
    reason = _build.look_up(_build.CUDA)
    if switch == "0":
        assert reason == "PYSEG_CUDA=0"
    elif switch == "auto" and not gpu:
        assert reason == (
            "not built yet, as no GPU is visible: an import with PYSEG_CUDA=1 builds it, in 2 to 4 "
            "minutes as a rule"
        )
        assert _build.why_not(_build.CUDA) is None, "an installation builds it all the same"
    else:
        assert reason is None


def test_strict_cuda(monkeypatch):
    _build.check_strict("some reason")
    monkeypatch.setenv("PYSEG_CUDA", "1")
    _build.check_strict(None)
    with pytest.raises(_build.BuildError, match=r"^PYSEG_CUDA=1, but some reason$"):
        _build.check_strict("some reason")


@pytest.mark.parametrize(
    ("environment", "expected"),
    [
        ({"PYSEG_CACHE": "/own", "XDG_CACHE_HOME": "/xdg"}, "/own"),
        ({"PYSEG_CACHE": "", "XDG_CACHE_HOME": "/xdg"}, "/xdg/pyseg"),
        ({"PYSEG_CACHE": "", "XDG_CACHE_HOME": "", "HOME": "/me"}, "/me/.cache/pyseg"),
    ],
)
def test_user_cache(monkeypatch, environment, expected):
    for name, value in environment.items():
        monkeypatch.setenv(name, value)
    assert _build.user_cache() == Path(expected)


# ---- building a small library --------------------------------------------------------------------

needs_compiler = pytest.mark.skipif(
    isinstance(_build.find_compiler(), str), reason=f"{_build.find_compiler()}"
)
RECORDS = _build.RECORDS.file
# Most tests build the library that needs no torch, whose import takes longer than a build.
PREPARE = """
import runpy, sys
builder = runpy.run_path(sys.argv[1])["prepare"].__globals__
builder["LIBRARIES"] = (builder[sys.argv[2]],)
print(*builder["prepare"]().values())
"""


def load(checkout: Path):
    """Returns the builder of ``checkout`` as a module of its own."""
    spec = importlib.util.spec_from_file_location("_builder", checkout / "pyseg" / "_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout in which every library has one function."""
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "checkout"
    (folder / "pyseg").mkdir(parents=True)
    (folder / "csrc" / "include" / "pyseg").mkdir(parents=True)
    (folder / "csrc" / "records").mkdir()
    shutil.copy(_build.__file__, folder / "pyseg")
    (folder / "pyseg" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    (folder / "csrc" / "include" / "pyseg" / "one.h").write_text("constexpr int kOne = 1;\n")
    shutil.copy(_build.SOURCES / "portable.h", folder / "csrc")
    for source in ("library.cpp", "records/one.cpp"):
        (folder / "csrc" / source).write_text(
            '#include "pyseg/one.h"\nextern "C" const char* one() { return __FILE__ + kOne; }\n'
        )
    return folder


def prepare(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a process that prepares the library of records as an import does."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder / "pyseg" / "_build.py"), "RECORDS"],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


def announcement(checkout: Path) -> str:
    return (
        f"pyseg: building {RECORDS} in {checkout}/pyseg, once: a minute or two as a rule; "
        "PYSEG_EXT=0 does without\n"
    )


@needs_compiler
def test_builds_only_what_is_out_of_date(checkout):
    builder = load(checkout)
    library = checkout / "pyseg" / "libpyseg.so"

    def build() -> int:
        assert builder.build(builder.PACKAGE, (builder.CPU,)) == {builder.CPU: library}
        return library.stat().st_mtime_ns

    first = build()
    assert build() == first
    noted = builder.read_note(library)
    assert builder.find_compiler()[1] in noted["tools"]
    assert f"torch {builder.find_torch().version}" in noted["tools"]
    assert noted["sources"] == builder.source_digest()
    data = library.read_bytes()
    assert b"libtorch_python" not in data, "it is bound to no version of Python"
    assert b"$ORIGIN/../torch/lib\0" in data
    assert str(checkout).encode() not in data
    assert str(builder.find_torch().folder).encode() not in data

    header = checkout / "csrc" / "include" / "pyseg" / "one.h"
    header.write_text("constexpr int kOne = 2;\n")
    assert noted["sources"] != builder.source_digest()
    assert noted["operators"] == builder.operator_digest()
    assert build() != first
    assert builder.read_note(library)["sources"] == builder.source_digest()
    assert not list((checkout / "pyseg").glob(".build-*"))


@needs_compiler
def test_parallel_imports_build_once(checkout):
    processes = [prepare(checkout) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    assert [out for out, _ in outputs] == [f"{checkout}/pyseg/{RECORDS}\n"] * 4
    assert "".join(err for _, err in outputs) == announcement(checkout)


@needs_compiler
def test_import_waits_for_the_build_of_one_that_was_killed(checkout, tmp_path):
    log = tmp_path / "log"
    compiler = script(
        tmp_path / "slow-g++",
        f'[ "$1" = --version ] || {{ echo start >>{log}; sleep 1; }}\n'
        f'g++ "$@"\n[ "$1" = --version ] || echo end >>{log}',
    )
    killed = prepare(checkout, CXX=str(compiler))
    while not log.exists():
        assert killed.poll() is None, killed.communicate()
        time.sleep(0.05)
    killed.kill()
    killed.communicate()
    output, _ = prepare(checkout, CXX=str(compiler)).communicate(timeout=120)
    assert output == f"{checkout}/pyseg/{RECORDS}\n"
    commands = log.read_text().split()
    assert commands == ["start", "end"] * (len(commands) // 2), "one compiler at a time"


@needs_compiler
def test_import_never_rebuilds(checkout):
    prepare(checkout).communicate(timeout=60)
    library = checkout / "pyseg" / RECORDS
    before = library.stat().st_mtime_ns
    (checkout / "csrc" / "records" / "one.cpp").write_text("int other;\n")
    assert prepare(checkout).communicate(timeout=60) == (f"{library}\n", "")
    assert library.stat().st_mtime_ns == before


@needs_compiler
@pytest.mark.parametrize(
    ("library", "source"), [("CPU", "library.cpp"), ("RECORDS", "records/one.cpp")]
)
def test_failed_build_is_not_repeated_before_something_changes(checkout, library, source, python):
    source = checkout / "csrc" / source

    def prepared() -> tuple[str, str]:
        done = python("-c", PREPARE, str(checkout / "pyseg" / "_build.py"), library)
        return done.stdout, done.stderr

    good = source.read_text()
    source.write_text('#error "planted"\n')
    output, printed = prepared()
    assert output.startswith("its build failed: ")
    assert "planted" in output
    assert printed.startswith("pyseg: building ")
    assert prepared() == (output, "")
    source.write_text(good)
    output, printed = prepared()
    assert output.startswith(f"{checkout}/pyseg/")
    assert printed.startswith("pyseg: building ")


@needs_compiler
def test_installed_package_builds_into_the_users_cache(checkout, tmp_path):
    installed = tmp_path / "site" / "pyseg"
    installed.mkdir(parents=True)
    shutil.copytree(checkout / "pyseg", installed, dirs_exist_ok=True)
    shutil.copytree(checkout / "csrc", installed / "csrc")
    output, _ = prepare(installed.parent).communicate(timeout=60)
    path = Path(output.strip())
    assert path.name == RECORDS
    assert path.parent.parent == tmp_path / "cache"
    assert path.parent.name.startswith("0.0.1-")
    (installed / "csrc" / "records" / "one.cpp").write_text('extern "C" int two() { return 2; }\n')
    other, _ = prepare(installed.parent).communicate(timeout=60)
    assert Path(other.strip()).parent != path.parent, "other sources must not load this library"


def test_no_folder_to_write_to(checkout, tmp_path, monkeypatch):
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    builder = load(checkout)
    monkeypatch.setattr(builder, "INSTALLED", True)
    assert "Not a directory" in builder.prepare()[builder.CPU]


@needs_compiler
def test_command_line(checkout, capsys):
    builder = load(checkout)
    builder.LIBRARIES = (builder.RECORDS, builder.CUDA)
    library = checkout / "pyseg" / RECORDS
    assert builder.main([]) == 0
    text = capsys.readouterr().out
    assert f"pyseg: {RECORDS}: {library}\n" in text
    assert "pyseg: libpyseg_cuda.so: " in text
    before = library.stat().st_mtime_ns
    assert builder.main([]) == 0
    assert library.stat().st_mtime_ns == before
    assert builder.main(["--force"]) == 0
    assert library.stat().st_mtime_ns != before
    capsys.readouterr()
    (checkout / "csrc" / "records" / "one.cpp").write_text('#error "planted"\n')
    assert builder.main([]) == 1
    text = capsys.readouterr().out
    assert f"pyseg: {RECORDS}: its build failed: " in text
    assert text.count("planted") > 1, "all that the compiler says"


def test_command_line_names_a_wrong_switch(checkout, capsys, monkeypatch):
    monkeypatch.setenv("PYSEG_CUDA", "maybe")
    assert load(checkout).main([]) == 1
    assert "PYSEG_CUDA must be one of" in capsys.readouterr().err
    assert not list((checkout / "pyseg").glob("*.so"))


def test_cmake_lists(checkout, capsys):
    assert load(checkout).main(["--cmake"]) == 0
    text = capsys.readouterr().out
    assert f'set(PYSEG_CPU_SOURCES "{checkout}/csrc/library.cpp")\n' in text
    assert 'set(PYSEG_VERSION "0.0.1")\n' in text


# ---- the import ----------------------------------------------------------------------------------


def test_ext_0_ignores_existing_libraries(python):
    done = python(
        "-c",
        "import pyseg, torch\n"
        "from pyseg import _ext\n"
        "assert not (_ext.HAS_CPU_OPS or _ext.HAS_CUDA_OPS or _ext.HAS_RECORDS)\n"
        "print(_ext.CPU_REASON, _ext.CUDA_REASON, _ext.RECORDS_REASON, _ext.records)\n"
        "ones = torch.ones(1, 3, 2, 4), torch.ones(1, 3, 2, 5), torch.ones(1, 3, 2)\n"
        "print(tuple(pyseg.ops.vlad_aggregate(*ones, torch.zeros(4, 5)).shape))\n",
        PYSEG_EXT="0",
    )
    assert done.stdout == "PYSEG_EXT=0 PYSEG_EXT=0 PYSEG_EXT=0 None\n(1, 4, 5)\n", done.stderr


@pytest.mark.parametrize("library", [_build.CPU, _build.RECORDS])
def test_symbols_are_those_of_manylinux_2_28(library):
    """A wheel runs where torch's does, however new glibc and libstdc++ are here."""
    path = _ext.FOUND[library]
    if isinstance(path, str):
        pytest.skip(path)
    newest = {b"GLIBC": (2, 28), b"GLIBCXX": (3, 4, 24), b"CXXABI": (1, 3, 11)}
    found = re.findall(rb"\0(GLIBC|GLIBCXX|CXXABI)_([0-9.]+)(?=\0)", path.read_bytes())
    assert {name for name, _ in found} == set(newest)
    for name, version in found:
        assert tuple(map(int, version.split(b"."))) <= newest[name], (name, version)


@pytest.mark.skipif(_ext.HAS_CUDA_OPS, reason="CUDA is there")
def test_strict_cuda_fails_the_import(python):
    done = python("-c", "import pyseg", PYSEG_CUDA="1")
    assert f"ImportError: PYSEG_CUDA=1, but {_build.why_not(_build.CUDA)}\n" in done.stderr


def test_library_that_does_not_load(tmp_path):
    broken = tmp_path / "libpyseg.so"
    broken.write_text("no library")
    reason = _ext._load_ops(_build.CPU, broken)
    assert reason is not None
    assert reason.startswith(f"{broken} does not load (")
    assert reason.endswith("`python -m pyseg._build --force` builds it anew")


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"{_ext.CPU_REASON}")
def test_refuses_a_library_of_other_operators(monkeypatch):
    """After an update of the checkout the old library remains; its operators are not called."""
    found = _ext.FOUND[_build.CPU]
    assert _ext._load_ops(_build.CPU, found) is None
    monkeypatch.setattr(_build, "operator_digest", lambda: "another")
    reason = _ext._load_ops(_build.CPU, found)
    assert (reason is None) == _build.INSTALLED
    if reason:
        assert "libpyseg.so has other operators than this checkout: `python -m pyse" in reason


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"{_ext.CPU_REASON}")
def test_warns_of_a_library_of_other_sources(monkeypatch):
    monkeypatch.setattr(_build, "source_digest", lambda: "another")
    with pytest.warns(RuntimeWarning, match=r"libpyseg\.so.* of other sources than those in"):
        _ext._warn_of_stale_libraries()
