"""Fixtures that every test may use."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import subprocess
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import SimpleNamespace

import pytest
from hypothesis import settings

settings.register_profile("long", max_examples=5_000)  # `tests/test_hostile_text.py`

ROOT = Path(__file__).resolve().parent.parent


# Forks itself for each line of its input, and prints how the fork has ended.
FORKING = """
import json, os, runpy, signal, sys, torch, types

for line in sys.stdin:
    job = types.SimpleNamespace(**json.loads(line))
    if child := os.fork():
        print(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]), flush=True)
        continue
    signal.alarm(240)
    os.chdir(job.folder)
    os.environ.clear()
    os.environ.update(job.environment)
    for stream, path in enumerate((os.devnull, job.out, job.err)):
        os.dup2(os.open(path, os.O_RDWR | os.O_CREAT, 0o600), stream)
    kind, *rest = job.words
    sys.argv = ["-c", *rest[1:]] if kind == "-c" else rest if kind == "-m" else job.words
    if kind == "-c":
        sys.modules["__main__"] = main = types.ModuleType("__main__")
        exec(compile(rest[0], "<string>", "exec"), vars(main))
    elif kind == "-m":
        sys.path[0] = job.folder
        runpy.run_module(rest[0], run_name="__main__", alter_sys=True)
    else:
        runpy.run_path(kind, run_name="__main__")
    break
"""


@pytest.fixture(scope="session")
def python(
    tmp_path_factory: pytest.TempPathFactory,
) -> Iterator[Callable[..., subprocess.CompletedProcess[str]]]:
    """Runs Python with some words, and other variables, in a process that has imported only torch.

    It is forked from one that has imported torch, which takes seconds, with one thread, and is
    killed after four minutes.
    """
    files = tmp_path_factory.mktemp("python")
    out, err = files / "out", files / "err"
    with contextlib.ExitStack() as stack:
        started: list[subprocess.Popen[str]] = []

        def run(*words: str, **environment: str) -> subprocess.CompletedProcess[str]:
            if not started:
                process = subprocess.Popen(
                    [sys.executable, "-c", FORKING],
                    stdin=subprocess.PIPE,
                    stdout=subprocess.PIPE,
                    text=True,
                    cwd=ROOT,
                    env=os.environ | {"OMP_NUM_THREADS": "1"},
                )
                started.append(stack.enter_context(process))  # whose input ends at the end
            out.write_text("")
            err.write_text("")
            job = SimpleNamespace(words=words, folder=os.getcwd(), out=str(out), err=str(err))
            job.environment = os.environ | environment
            print(json.dumps(vars(job)), file=started[0].stdin, flush=True)
            code = int(started[0].stdout.readline())  # type: ignore[union-attr]
            return subprocess.CompletedProcess(words, code, out.read_text(), err.read_text())

        yield run


@pytest.fixture(scope="session")
def shared() -> Path:
    """The folder of real data and reference numbers; the test is skipped without it."""
    folder = Path(os.environ.get("PYSEG_SHARED", ROOT.parent / "shared"))
    if not (folder / "data").is_dir():
        pytest.skip(f"no real data at {folder}: set PYSEG_SHARED")
    return folder


@pytest.fixture(scope="session")
def clips(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A collection that features.json describes: 512 values called clip, at 2 frames a second.

    Segments have 3 seconds, and each of the 3 classes is shown in one half of every third video.
    """
    import numpy as np

    from pyseg.data import FeatureSet, Ratings, encode_frames, write_records

    features = FeatureSet((("clip", 512),), 0.5, 6, ranges=((-0.5, 3.5),))
    folder, rng, records = tmp_path_factory.mktemp("clips"), np.random.default_rng(0), []
    for video in range(24):
        label, shown = video % 3, 12 * (video // 3 % 2)
        frames = rng.integers(20, 60, (24, 512), np.uint8)
        frames[shown : shown + 12, 8 * label : 8 * label + 8] += 150
        starts = np.arange(0, 24, 6)
        scores = (starts // 12 * 12 == shown).astype(np.float32)
        ratings = Ratings(starts, np.full(4, label), scores)
        records.append(encode_frames(f"v{video:02d}", frames, [label], ratings, features.schema))
    write_records(folder / "videos-00000.tfrecord", records)
    (folder / "vocabulary.csv").write_text("Index,Name\n0,Dog\n1,Cat\n2,Car\n")
    features.write(folder / "features.json")
    return folder


@pytest.fixture(autouse=True)
def command_line(monkeypatch: pytest.MonkeyPatch) -> None:
    """Restores the words of the command, which `pyseg.__main__` replaces, after every test."""
    monkeypatch.setattr(sys, "argv", list(sys.argv))


@pytest.fixture(autouse=True)
def grad_mode() -> Iterator[None]:
    """Fails a test that leaves gradients switched off, and not all that come after it."""
    yield
    if "torch" in sys.modules:
        import torch

        if not torch.is_grad_enabled():
            torch.set_grad_enabled(True)
            pytest.fail("the test has left gradients switched off")


@pytest.fixture
def restore_threads() -> Iterator[None]:
    """Restores torch's number of threads after a test."""
    import torch  # lazily: the controller of pytest-xdist runs no test

    threads = torch.get_num_threads()
    yield
    torch.set_num_threads(threads)


@pytest.fixture
def ctrl_c() -> Iterator[None]:
    """Restores the default handler of SIGINT, which the tests' parent may have ignored."""
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    yield
    signal.signal(signal.SIGINT, before)
