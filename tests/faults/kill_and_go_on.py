"""Kills pyseg's commands at random moments and resumes them: the results must be bit-identical.

    python tests/faults/kill_and_go_on.py --kills 200

Every kind of run in `KINDS` runs once undisturbed. Then it is started repeatedly, and killed
(SIGKILL, the whole process group) after a random part of its running time, up to the given number
of kills; after every second kill on average it may run to its end. Each end is compared with the
undisturbed one, and the folder is searched for leftovers of the kills. pytest does not run this,
as it takes minutes.
"""

from __future__ import annotations

import argparse
import functools
import hashlib
import http.server
import json
import os
import random
import shutil
import signal
import subprocess
import sys
import tempfile
import threading
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
from safetensors.numpy import load_file

from pyseg.data import Ratings, encode_frames, write_records

ROOT = Path(__file__).resolve().parents[2]
sys.path.insert(0, str(ROOT))

from tests.video.make_videos import Video  # noqa: E402

TRAIN = [
    *("--overrides.clusters=4", "--overrides.groups=2", "--overrides.hidden_size=8"),
    *("--overrides.reduction=2", "--overrides.dropout=0.2", "--pretrain.learning_rate=1e-2"),
    *("--pretrain.steps=40", "--pretrain.batch_size=6", "--finetune.steps=40"),
    *("--finetune.batch_size=6", "--finetune.evaluate_every=10", "--checkpoint_steps=3"),
]


@dataclass
class Kind:
    """Commands that start and resume a run, and its results; paths are relative to its folder."""

    start: list[str]
    resume: list[str]
    results: list[str]
    processes: int = 1
    log: str | None = None  # compared without its times


def training(*options: str, processes: int = 1) -> Kind:
    start = ["pyseg.train", "--data", "../data", "--run", "run", *TRAIN, *options]
    resume = ["pyseg.train", "--resume", "run"]
    results = ["run/model.safetensors", "run/model.json", "run/correlation.npz"]
    return Kind(start, resume, results, processes, "run/metrics.jsonl")


def command(*words: str, results: list[str]) -> Kind:
    return Kind([*words], [*words], results)


PREDICT = ["pyseg.predict", "--run", "../trained/run", "--out", "s.csv", "--scores", "s.npz"]
COUNT = ["pyseg.cooccur", "--data", "../data", "--num_classes", "4", "--out", "c.npz"]
EXTRACT = ["pyseg.extract", "--videos", "../videos", "--backbone", "tests.extract.networks:slow"]
DOWNLOAD = ["pyseg.data", "download", "--subset", "frame", "--partition", "validate"]

KINDS: dict[str, Callable[[str], Kind]] = {
    "train": lambda _: training(),
    "train, EMA": lambda _: training("--pretrain.ema=0.9", "--finetune.ema=0.9"),
    "train, bf16": lambda _: training("--precision=bf16"),
    "train, 2 workers": lambda _: training("--workers=2"),
    "train, 2 copies": lambda _: training("--copies=2"),
    "train, final fit": lambda _: training("--final_fit=true"),
    "train, 2 ranks": lambda _: training(processes=2),
    "predict": lambda _: command(*PREDICT, results=["s.csv", "s.npz"]),
    "cooccur": lambda _: command(*COUNT, results=["c.npz"]),
    "extract": lambda _: command(
        *[*EXTRACT, "--out", "out", "--fps", "5", "--processes", "2", "--batch_size", "8"],
        results=["out/videos-00000.tfrecord", "out/features.json"],
    ),
    "download": lambda server: command(
        *[*DOWNLOAD, "--folder", ".", "--server", server, "--vocabulary", "false"],
        results=[f"frame-validate/validate{n:04d}.tfrecord" for n in range(3)],
    ),
}


def write_data(folder: Path) -> None:
    """Writes three shards of videos; every second video is rated."""
    folder.mkdir()
    rng = np.random.default_rng(0)
    for shard in range(3):
        records = []
        for number in range(30):
            frames = rng.integers(0, 256, (60, 1152), np.uint8)
            scores = rng.integers(0, 2, 2).astype(np.float32)
            ratings = Ratings(np.array([0, 5]), rng.integers(0, 4, 2), scores)
            labels = rng.choice(4, 2, replace=False)
            rated = ratings if number % 2 else None
            records.append(encode_frames(f"{shard}v{number}", frames, labels, rated))
        write_records(folder / f"validate{shard:04d}.tfrecord", records)
    lines = ["Index,Name", *(f"{i},class {i}" for i in range(4))]
    (folder / "vocabulary.csv").write_text("\n".join(lines))


def write_videos(folder: Path) -> None:
    """Writes videos whose frames show their number."""
    folder.mkdir()
    for number in range(5):
        frames = range(100 * number, 100 * number + 100)
        Video(frames, rate=25).write(folder / f"{number}.mp4")


class Handler(http.server.SimpleHTTPRequestHandler):
    """A server of the shards and their plan, slow enough to be interrupted."""

    def do_GET(self) -> None:
        if self.path.endswith(".json"):
            names = sorted(Path(self.directory).glob("*.tfrecord"))
            plan = {path.name: hashlib.md5(path.read_bytes()).hexdigest() for path in names}
            content = json.dumps({"files": plan}).encode()
        else:
            content = (Path(self.directory) / self.path.rpartition("/")[2]).read_bytes()
        first = 0
        if (asked := self.headers.get("Range", "")).startswith("bytes="):
            first = int(asked[6:].partition("-")[0])
            self.send_response(206)
            self.send_header("Content-Range", f"bytes {first}-{len(content) - 1}/{len(content)}")
        else:
            self.send_response(200)
        self.send_header("Content-Length", str(len(content) - first))
        self.end_headers()
        for begin in range(first, len(content), 1 << 16):
            self.wfile.write(content[begin : begin + (1 << 16)])
            time.sleep(0.02)

    def log_message(self, *_: object) -> None:
        pass

    def handle(self) -> None:
        try:
            super().handle()
        except OSError:  # its client has been killed
            self.close_connection = True


def start(kind: Kind, folder: Path) -> subprocess.Popen[str]:
    """Starts a run, or resumes it if it has left a state."""
    resumes = any((folder / "run" / "checkpoints").glob("*.pt"))
    if not resumes and kind.start[0] == "pyseg.train":
        shutil.rmtree(folder / "run", ignore_errors=True)  # killed before its first checkpoint
    words = kind.resume if resumes else kind.start
    launcher = [sys.executable, "-m"]
    if kind.processes > 1:
        count = f"--nproc_per_node={kind.processes}"
        launcher += ["torch.distributed.run", "--standalone", count, "-m"]
        words = [words[0], "--", *words[1:]]
    return subprocess.Popen(
        [*launcher, *words],
        cwd=folder,
        stdout=subprocess.DEVNULL,
        stderr=subprocess.PIPE,
        text=True,
        start_new_session=True,
        env={**os.environ, "OMP_NUM_THREADS": "1", "PYTHONPATH": str(ROOT)},
    )


def kill(process: subprocess.Popen[str], after: float) -> bool:
    """Kills a process and its children after some seconds; returns False if it had ended."""
    try:
        process.communicate(timeout=after)
    except subprocess.TimeoutExpired:
        os.killpg(process.pid, signal.SIGKILL)
        process.communicate()
        return True
    return False


def finish(process: subprocess.Popen[str], name: str) -> None:
    errors = process.communicate()[1]
    if process.returncode:
        sys.exit(f"{name}: status {process.returncode}\n{errors}")


def digests(kind: Kind, folder: Path) -> dict[str, str]:
    """Returns the digests of a run's results, without times."""
    found = {}
    for name in kind.results:
        path = folder / name
        if path.suffix == ".safetensors":  # its header may have another order
            arrays = sorted(load_file(path).items())
            content = b"".join(key.encode() + array.tobytes() for key, array in arrays)
        elif path.suffix == ".npz":  # it contains times
            with np.load(path) as file:
                content = b"".join(key.encode() + file[key].tobytes() for key in sorted(file))
        else:
            content = path.read_bytes()
        found[name] = hashlib.sha256(content).hexdigest()
    if kind.log is not None:
        lines = [json.loads(line) for line in (folder / kind.log).read_text().splitlines()]
        plain = [{k: v for k, v in line.items() if k != "examples_per_second"} for line in lines]
        found[kind.log] = hashlib.sha256(json.dumps(plain).encode()).hexdigest()
    return found


def leftovers(folder: Path) -> list[str]:
    """Returns files that a finished command must not leave."""
    found = [str(path.relative_to(folder)) for path in folder.rglob("*")]
    return [name for name in found if name.endswith((".part", ".partial", ".lock", "checkpoints"))]


def main(argv: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--kills", type=int, default=50, help="of all kinds together")
    parser.add_argument("--seed", type=int, default=0, help="decides the moments")
    parser.add_argument("--only", help="the kinds whose names begin so")
    options = parser.parse_args(argv)
    kinds = {n: make for n, make in KINDS.items() if n.startswith(options.only or "")}
    rng = random.Random(options.seed)
    total = wrong = 0
    with tempfile.TemporaryDirectory() as text:
        root = Path(text)
        write_data(root / "data")
        write_videos(root / "videos")
        handler = functools.partial(Handler, directory=str(root / "data"))
        with http.server.ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
            threading.Thread(target=server.serve_forever, daemon=True).start()
            address = f"http://127.0.0.1:{server.server_port}"
            (root / "trained").mkdir()
            finish(start(training("--stage=pretrain"), root / "trained"), "the model to predict by")
            for number, (name, make) in enumerate(kinds.items()):
                kind = make(address)
                whole, folder = root / f"whole{number}", root / f"killed{number}"
                whole.mkdir()
                began = time.monotonic()
                finish(start(kind, whole), name)
                seconds = time.monotonic() - began
                expected = digests(kind, whole)
                share = (options.kills * (number + 1)) // len(kinds)
                share -= (options.kills * number) // len(kinds)
                kills = ends = other = 0
                folder.mkdir()
                while kills < share or not ends or any(folder.iterdir()):
                    process = start(kind, folder)
                    if kills < share and (rng.random() < 0.5 or not any(folder.iterdir())):
                        if kill(process, rng.uniform(0.3, 1.0) * seconds):
                            kills += 1
                            continue
                    else:
                        finish(process, name)
                    ends += 1
                    found, left = digests(kind, folder), leftovers(folder)
                    differing = [key for key in expected if found[key] != expected[key]]
                    if differing or left:
                        other += 1
                        print(f"{name}: others: {differing}, left: {left}", flush=True)
                    shutil.rmtree(folder)
                    folder.mkdir()
                print(
                    f"{name}: {kills} kills, {ends} runs to the end, {other} with other results",
                    flush=True,
                )
                total, wrong = total + kills, wrong + other
            server.shutdown()
    print(f"{total} kills, {wrong} runs with other results")
    sys.exit(bool(wrong))


if __name__ == "__main__":
    main()
