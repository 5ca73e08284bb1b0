from __future__ import annotations

import importlib.util
import os
import shutil
import stat
import subprocess
import sys
from pathlib import Path

import pytest

from pyseg import _build, _ext

CPU_TORCH = _build.Torch(Path("torch"), "2.13.0+cpu", None)
CUDA_TORCH = _build.Torch(Path("torch"), "2.11.0+cu130", "13.0")
OLD_TORCH = _build.Torch(Path("torch"), "2.9.1+cu130", "13.0")
TOOLKIT = _build.Toolkit(Path("cuda"), "13.0")
FINDERS = (_build.find_torch, _build.find_compiler, _build.find_toolkit, _build.cache_folder)


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
        _build.disabled()


def test_jobs(monkeypatch):
    assert _build.jobs() == len(os.sched_getaffinity(0))
    monkeypatch.setenv("MAX_JOBS", "3")
    assert _build.jobs() == 3
    monkeypatch.setenv("MAX_JOBS", "0")
    with pytest.raises(_build.BuildError, match="MAX_JOBS must be a positive number, found '0'"):
        _build.jobs()


@pytest.mark.parametrize(("value", "flag"), [("1", "-O0"), ("0", "-O3"), ("express:*", "-O3")])
def test_debug_of_other_programs_is_no_error(monkeypatch, value, flag):
    monkeypatch.setenv("DEBUG", value)
    assert flag in _build.optimisation()


def test_arches_default_without_gpu(monkeypatch):
    monkeypatch.setattr(_build, "visible_gpus", list)
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
        "-gencode=arch=compute_100,code=sm_100",
        "-gencode=arch=compute_100,code=compute_100",
    ]


def test_arches_with_another_value(monkeypatch):
    monkeypatch.setenv("TORCH_CUDA_ARCH_LIST", "8.0;Hopper")
    with pytest.raises(_build.BuildError, match=r"TORCH_CUDA_ARCH_LIST .* found 'Hopper'"):
        _build.arches()


# ---- the environment -----------------------------------------------------------------------------


def test_find_torch_is_the_one_that_runs():
    import torch

    found = _build.find_torch()
    assert found is not None
    assert found.version == torch.__version__
    assert found.cuda == torch.version.cuda
    assert found.folder == Path(torch.__file__).parent


@pytest.mark.parametrize(
    ("cuda", "expected"), [("cuda: Optional[str] = '13.0'", "13.0"), ("cuda = '12.8'", "12.8")]
)
def test_find_torch_looks_past_pips_isolation(monkeypatch, tmp_path, cuda, expected):
    folder = tmp_path / "torch"
    folder.mkdir()
    (folder / "__init__.py").write_text("raise ImportError('torch must not be imported')")
    (folder / "version.py").write_text(f"__version__ = '2.11.0+cu130'\ndebug = False\n{cuda}\n")
    monkeypatch.setattr(sys, "path", [])
    monkeypatch.setattr(_build.site, "getsitepackages", list)
    monkeypatch.setattr(_build.sysconfig, "get_path", lambda name: str(tmp_path))
    assert _build.find_torch() == _build.Torch(folder, "2.11.0+cu130", expected)


def test_no_torch(monkeypatch):
    monkeypatch.setattr(_build, "find_torch", lambda: None)
    assert _build.why_no_torch() == "torch is not installed"
    assert _build.why_no_cuda() == "torch is not installed"


def test_no_compiler(monkeypatch, tmp_path):
    monkeypatch.setenv("PATH", str(tmp_path))
    assert _build.find_compiler() == "no C++ compiler: g++ is not on PATH"
    assert _build.why_not(_build.CPU) == "no C++ compiler: g++ is not on PATH"


def test_missing_compiler(monkeypatch):
    monkeypatch.setenv("CXX", "no-such-compiler -m64")
    assert _build.find_compiler() == "CXX=no-such-compiler -m64 is not on PATH"


def test_compiler_that_does_not_run(monkeypatch, tmp_path):
    monkeypatch.setenv("CXX", str(script(tmp_path / "g++", "exit 1")))
    assert _build.find_compiler() == f"the C++ compiler {tmp_path}/g++ does not run"


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
    assert _build.find_toolkit() == f"the CUDA toolkit {home} has no include/cuda_runtime.h"
    (home / "include").mkdir()
    (home / "include" / "cuda_runtime.h").touch()
    _build.find_toolkit.cache_clear()
    assert _build.find_toolkit() == _build.Toolkit(home, "12.8")


def test_cuda_home_without_a_compiler(monkeypatch, tmp_path):
    (tmp_path / "include").mkdir()
    (tmp_path / "include" / "cuda_runtime.h").touch()
    monkeypatch.setenv("CUDA_HOME", str(tmp_path))
    assert _build.find_toolkit() == f"CUDA_HOME={tmp_path} has no working bin/nvcc"


@pytest.mark.parametrize(
    ("torch", "toolkit", "reason"),
    [
        (CPU_TORCH, TOOLKIT, "torch 2.13.0+cpu is not a CUDA build"),
        (OLD_TORCH, TOOLKIT, "torch 2.9.1+cu130 is older than 2.10"),
        (CUDA_TORCH, "no CUDA toolkit: ...", "no CUDA toolkit: ..."),
        (
            CUDA_TORCH,
            _build.Toolkit(Path("cuda"), "12.8"),
            "the CUDA toolkit cuda is 12.8 but torch 2.11.0+cu130 was built with CUDA 13.0",
        ),
        (CUDA_TORCH, TOOLKIT, None),
    ],
)
def test_why_no_cuda(monkeypatch, torch, toolkit, reason):
    monkeypatch.setattr(_build, "find_torch", lambda: torch)
    monkeypatch.setattr(_build, "find_toolkit", lambda: toolkit)
    assert _build.why_no_cuda() == reason
    monkeypatch.setenv("PYSEG_CUDA", "0")
    assert _build.why_no_cuda() == "PYSEG_CUDA=0"


@pytest.mark.parametrize(
    ("devices", "visible", "expected"),
    [
        ([], None, False),
        (["nvidia0"], None, True),
        (["nvidiactl", "nvidia-uvm"], None, False),
        (["dxg"], "0", True),
        (["nvhost-gpu"], None, True),
        (["nvidia0"], "", False),
        (["nvidia0"], "-1", False),
    ],
)
def test_gpu_visible(monkeypatch, tmp_path, devices, visible, expected):
    for name in devices:
        (tmp_path / name).touch()
    monkeypatch.setattr(_build, "DEVICES", tmp_path)
    monkeypatch.delenv("CUDA_VISIBLE_DEVICES", raising=False)
    if visible is not None:
        monkeypatch.setenv("CUDA_VISIBLE_DEVICES", visible)
    assert _build.gpu_visible() == expected


@pytest.mark.parametrize("gpu", [True, False])
@pytest.mark.parametrize("switch", ["auto", "1", "0"])
def test_import_builds_cuda_where_a_gpu_is_visible(monkeypatch, tmp_path, gpu, switch):
    monkeypatch.setenv("PYSEG_CUDA", switch)
    monkeypatch.setattr(_build, "gpu_visible", lambda: gpu)
    monkeypatch.setattr(_build, "find_torch", lambda: CUDA_TORCH)
    monkeypatch.setattr(_build, "find_toolkit", lambda: TOOLKIT)
    monkeypatch.setattr(_build, "locate", lambda library: None)
    monkeypatch.setattr(_build, "find_compiler", lambda: (["g++"], "g++ 12"))
    reason = _build.look_up(_build.CUDA).reason
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


def test_announcement_says_how_long_and_how_to_refuse():
    assert _build.announcement([_build.CPU], Path("here")) == (
        "building libpyseg.so in here, once: a minute or two as a rule; PYSEG_EXT=0 does without"
    )
    assert _build.announcement([_build.CPU, _build.CUDA], Path("here")) == (
        "building libpyseg.so, libpyseg_cuda.so in here, once: 2 to 4 minutes as a rule; "
        "PYSEG_CUDA=0 leaves out CUDA, PYSEG_EXT=0 everything"
    )


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
PREPARE = """
import importlib.util, sys
spec = importlib.util.spec_from_file_location("_build", sys.argv[1])
module = sys.modules["_build"] = importlib.util.module_from_spec(spec)
spec.loader.exec_module(module)
outcome = module.prepare()["libpyseg"]
print(outcome.path or outcome.reason)
"""


def load(checkout: Path, package: str = "pyseg"):
    """Returns the builder of ``checkout`` as a separate module."""
    spec = importlib.util.spec_from_file_location("_builder", checkout / package / "_build.py")
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules[spec.name] = module
    spec.loader.exec_module(module)
    return module


@pytest.fixture
def checkout(tmp_path, monkeypatch):
    """A checkout whose only library has one function."""
    monkeypatch.setenv("PYSEG_CACHE", str(tmp_path / "cache"))
    folder = tmp_path / "checkout"
    (folder / "pyseg").mkdir(parents=True)
    (folder / "csrc" / "include" / "pyseg").mkdir(parents=True)
    shutil.copy(_build.__file__, folder / "pyseg")
    (folder / "pyseg" / "__init__.py").write_text('__version__ = "0.0.1"\n')
    (folder / "csrc" / "include" / "pyseg" / "one.h").write_text("constexpr int kOne = 1;\n")
    (folder / "csrc" / "library.cpp").write_text(
        '#include "pyseg/one.h"\nextern "C" int one() { return kOne; }\n'
    )
    return folder


def prepare(folder: Path, **environment: str) -> subprocess.Popen[str]:
    """Starts a process that prepares the libraries as an import does."""
    return subprocess.Popen(
        [sys.executable, "-c", PREPARE, str(folder / "pyseg" / "_build.py")],
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
        env=os.environ | environment,
    )


@needs_compiler
def test_builds_only_what_is_out_of_date(checkout):
    builder = load(checkout)

    def build():
        return builder.build(builder.PACKAGE, [builder.CPU], builder.OBJECTS)["libpyseg"]

    first = build()
    assert first.built
    assert first.path == checkout / "pyseg" / "libpyseg.so"
    assert not build().built
    assert not builder.out_of_date(builder.CPU, first.path)
    noted = builder.read_metadata(builder.PACKAGE)["libpyseg.so"]
    assert noted["compiler"] == builder.find_compiler()[1]
    assert noted["torch"] == builder.find_torch().version

    header = checkout / "csrc" / "include" / "pyseg" / "one.h"
    header.write_text("constexpr int kOne = 2;\n")
    later = first.path.stat().st_mtime + 10
    os.utime(header, (later, later))
    assert builder.out_of_date(builder.CPU, first.path)
    assert build().built
    assert not builder.out_of_date(builder.CPU, first.path)

    os.utime(header, (later - 20, later - 20))
    header.with_name("unused.h").touch()
    assert builder.out_of_date(builder.CPU, first.path)
    assert not build().built
    assert not builder.out_of_date(builder.CPU, first.path)


@needs_compiler
def test_parallel_imports_build_once(checkout):
    processes = [prepare(checkout) for _ in range(4)]
    outputs = [process.communicate(timeout=120) for process in processes]
    expected = checkout / "pyseg" / "libpyseg.so"
    assert [out for out, _ in outputs] == [f"{expected}\n"] * 4
    assert "".join(err for _, err in outputs) == (
        f"pyseg: {_build.announcement([_build.CPU], checkout / 'pyseg')}\n"
    )
    assert not list((checkout / "pyseg").glob(".libpyseg*"))


@needs_compiler
def test_import_never_rebuilds(checkout):
    prepare(checkout).communicate(timeout=60)
    library = checkout / "pyseg" / "libpyseg.so"
    before = library.stat().st_mtime_ns
    (checkout / "csrc" / "library.cpp").write_text("int other;\n")
    assert prepare(checkout).communicate(timeout=60) == (f"{library}\n", "")
    assert library.stat().st_mtime_ns == before


@needs_compiler
def test_failed_build_is_not_repeated_without_a_change(checkout):
    source = checkout / "csrc" / "library.cpp"
    good = source.read_text()
    source.write_text('#error "planted"\n')
    output, errors = prepare(checkout).communicate(timeout=60)
    assert "planted" in output
    assert "g++ failed with status 1" in output or "CXX" in os.environ
    assert errors == f"pyseg: {_build.announcement([_build.CPU], checkout / 'pyseg')}\n"
    again, errors = prepare(checkout).communicate(timeout=60)
    assert again == f"its build failed: {output}"
    assert errors == ""
    source.write_text(good)
    output, errors = prepare(checkout).communicate(timeout=60)
    assert output == f"{checkout}/pyseg/libpyseg.so\n"
    assert errors != ""


@needs_compiler
def test_installed_package_builds_into_the_users_cache(checkout, tmp_path):
    installed = tmp_path / "site" / "pyseg"
    installed.mkdir(parents=True)
    shutil.copytree(checkout / "pyseg", installed, dirs_exist_ok=True)
    shutil.copytree(checkout / "csrc", installed / "csrc")
    output, _ = prepare(installed.parent).communicate(timeout=60)
    path = Path(output.strip())
    assert path.name == "libpyseg.so"
    assert path.parent.parent == tmp_path / "cache"
    assert path.parent.name.startswith("0.0.1-")
    (installed / "csrc" / "library.cpp").write_text('extern "C" int two() { return 2; }\n')
    other, _ = prepare(installed.parent).communicate(timeout=60)
    assert Path(other.strip()).parent != path.parent, "other sources must not load this library"


def test_no_folder_to_write_to(checkout, tmp_path, monkeypatch):
    builder = load(checkout)
    (tmp_path / "cache").write_text("a file where the cache folder should be")
    monkeypatch.setattr(builder, "PACKAGE", tmp_path / "cache" / "pyseg")
    monkeypatch.setattr(builder, "version", lambda: "0.0.1")
    with pytest.raises(builder.BuildError, match=r"pyseg and .*cache/0.0.1-\w+ cannot be"):
        builder.build_folder()


@needs_compiler
def test_command_line(checkout, capsys):
    builder = load(checkout)
    assert builder.main([]) == 0
    text = capsys.readouterr().out
    assert "builds libpyseg.so" in text
    assert "not libpyseg_cuda.so: " in text
    assert "pyseg: libpyseg: built" in text
    assert builder.main([]) == 0
    assert "pyseg: libpyseg: up to date" in capsys.readouterr().out
    (checkout / "csrc" / "library.cpp").write_text('#error "planted"\n')
    assert builder.main(["--force"]) == 1
    assert "planted" in capsys.readouterr().err
    noted = builder.read_metadata(builder.PACKAGE)["libpyseg.so"]
    assert "planted" in noted["failed"]
    assert builder.out_of_date(builder.CPU, builder.PACKAGE / "libpyseg.so")


def test_command_line_names_a_wrong_switch(checkout, capsys, monkeypatch):
    monkeypatch.setenv("PYSEG_CUDA", "maybe")
    assert load(checkout).main([]) == 1
    assert "PYSEG_CUDA must be one of" in capsys.readouterr().err


def test_cmake_lists(checkout, capsys):
    assert load(checkout).main(["--cmake"]) == 0
    text = capsys.readouterr().out
    assert f'set(PYSEG_CPU_SOURCES "{checkout}/csrc/library.cpp")\n' in text
    assert 'set(PYSEG_VERSION "0.0.1")\n' in text


# ---- the import ----------------------------------------------------------------------------------


def python(code: str, **environment: str) -> subprocess.CompletedProcess[str]:
    """Runs ``code`` in another process."""
    return subprocess.run(
        [sys.executable, "-c", code], capture_output=True, text=True, env=os.environ | environment
    )


def test_ext_0_ignores_existing_libraries():
    done = python(
        "import pyseg, torch\n"
        "from pyseg import _ext\n"
        "assert not (_ext.HAS_CPU_OPS or _ext.HAS_CUDA_OPS or _ext.HAS_RECORDS)\n"
        "print(_ext.CPU_REASON, _ext.CUDA_REASON, _ext.RECORDS_REASON, _ext.records)\n"
        "ones = torch.ones(1, 3, 2, 4), torch.ones(1, 3, 2, 5), torch.ones(1, 3, 2)\n"
        "print(tuple(pyseg.ops.vlad_aggregate(*ones, torch.zeros(4, 5)).shape))\n",
        PYSEG_EXT="0",
    )
    assert done.stdout == "PYSEG_EXT=0 PYSEG_EXT=0 PYSEG_EXT=0 None\n(1, 4, 5)\n", done.stderr


@pytest.mark.skipif(_ext.HAS_CUDA_OPS, reason="CUDA is there")
def test_strict_cuda_fails_the_import():
    done = python("import pyseg", PYSEG_CUDA="1")
    assert f"ImportError: PYSEG_CUDA=1, but {_build.why_not(_build.CUDA)}\n" in done.stderr


def test_library_that_does_not_load(tmp_path):
    broken = tmp_path / "libpyseg.so"
    broken.write_text("no library")
    reason = _ext._load_ops(_build.CPU, _build.Outcome(broken))
    assert reason is not None
    assert reason.startswith(f"{broken} does not load (")
    assert reason.endswith("`python -m pyseg._build --force` builds it anew")


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"{_ext.CPU_REASON}")
def test_refuses_a_library_of_other_operators(monkeypatch):
    """After an update of the checkout the old library stays, but must not be used."""
    outcome = _build.Outcome(_ext.PATHS["libpyseg"])
    assert _ext._load_ops(_build.CPU, outcome) is None
    monkeypatch.setattr(_build.Library, "operator_digest", lambda self: "another")
    reason = _ext._load_ops(_build.CPU, outcome)
    assert (reason is None) == _build.INSTALLED
    if reason:
        assert "libpyseg.so has other operators than this checkout: `python -m pyse" in reason


@pytest.mark.skipif(not _ext.HAS_CPU_OPS, reason=f"{_ext.CPU_REASON}")
def test_warns_of_a_stale_library(monkeypatch):
    monkeypatch.setattr(_build.Library, "source_digest", lambda self: "another")
    with pytest.warns(RuntimeWarning, match=r"libpyseg\.so.* of other sources than those in"):
        _ext._warn_of_other_sources()
