"""Models go to a hub and come back, tested against a local stand-in of its HTTP interface."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import sys
import threading
from collections.abc import Iterator
from dataclasses import replace
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

import pyseg
from pyseg import models
from pyseg.calibration import Calibration
from pyseg.config import TrainConfig
from pyseg.data import BackboneInfo, FeatureSet
from pyseg.errors import ArgumentError, DataError, UserError
from pyseg.results import RatedResult
from pyseg.runs import Run

constants = pytest.importorskip(
    "huggingface_hub.constants", reason="huggingface_hub is not installed"
)

# The client uploads large files in a way that its own HTTP library advises against.
pytestmark = pytest.mark.filterwarnings("ignore:Use 'content=:DeprecationWarning")

NAME = "studio/films"
CLIP = FeatureSet(
    (("clip", 4),),
    segment_size=3,
    backbone=BackboneInfo("/home/me/net.onnx", "0" * 64, {}, "/home/me/w", "/home/me/net.onnx"),
)
FRAMES = np.random.default_rng(0).standard_normal((20, 4)).astype(np.float32)


class StandIn(ThreadingHTTPServer):
    """The parts of the interface that are asked for; large files go past the commit, as there."""

    daemon_threads = True

    def __init__(self) -> None:
        super().__init__(("127.0.0.1", 0), Handler)
        self.commits: list[dict[str, bytes]] = []  # the files of each, of the only model
        self.large: dict[str, bytes] = {}
        self.asked: list[str] = []
        self.tokens: set[str | None] = set()
        self.url = f"http://127.0.0.1:{self.server_port}"


class Handler(BaseHTTPRequestHandler):
    server: StandIn

    def handle_any(self) -> None:
        body = self.rfile.read(int(self.headers.get("Content-Length", 0)))
        path = self.path.partition("?")[0]
        self.server.asked.append(f"{self.command} {path}")
        self.server.tokens.add(self.headers.get("Authorization"))
        for route, answer in ROUTES.items():
            if found := re.fullmatch(route, f"{self.command} {path}"):
                return answer(self, body, *found.groups())
        self.send(b"{}", 404, {"X-Error-Code": "RepoNotFound"})

    do_GET = do_HEAD = do_POST = do_PUT = handle_any  # noqa: N815

    def log_message(self, *_: Any) -> None:
        pass

    def send(self, body: bytes, status: int = 200, headers: dict[str, str] | None = None) -> None:
        self.send_response(status)
        for key, value in {"Content-Length": str(len(body)), **(headers or {})}.items():
            self.send_header(key, value)
        self.end_headers()
        if self.command != "HEAD":
            self.wfile.write(body)

    def send_json(self, value: Any) -> None:
        self.send(json.dumps(value).encode(), headers={"Content-Type": "application/json"})

    def files(self, revision: str) -> tuple[str, dict[str, bytes]]:
        at = len(self.server.commits) - 1 if revision == "main" else int(revision, 16) - 1
        return f"{at + 1:040x}", self.server.commits[at]

    def create(self, body: bytes) -> None:
        assert json.loads(body) | {"name": "films", "organization": "studio"} == json.loads(body)
        if not self.server.commits:
            self.server.commits.append({".gitattributes": b""})
        self.send_json({"url": f"{self.server.url}/{NAME}", "private": b"true" in body})

    def info(self, _: bytes, revision: str | None = None) -> None:
        sha, files = self.files(revision or "main")
        self.send_json({"id": NAME, "sha": sha, "siblings": [{"rfilename": f} for f in files]})

    def tree(self, _: bytes, revision: str) -> None:
        files = self.files(revision)[1].items()
        self.send_json(
            [
                {"type": "file", "path": path, "size": len(data), "oid": digest(data)}
                for path, data in files
            ]
        )

    def validate(self, body: bytes) -> None:
        front = json.loads(body)["content"].split("---\n")[1]
        assert yaml.safe_load(front)["license"] == "cc-by-4.0"
        self.send_json({"errors": [], "warnings": []})

    def preupload(self, body: bytes) -> None:
        paths = [file["path"] for file in json.loads(body)["files"]]
        modes = {path: "lfs" if path.endswith("tensors") else "regular" for path in paths}
        files = [{"path": p, "uploadMode": modes[p], "shouldIgnore": False} for p in paths]
        self.send_json({"files": files})

    def batch(self, body: bytes) -> None:
        objects = json.loads(body)["objects"]
        for item in objects:
            item["actions"] = {"upload": {"href": f"{self.server.url}/large/{item['oid']}"}}
        self.send_json({"transfer": "basic", "objects": objects})

    def upload(self, body: bytes, oid: str) -> None:
        assert hashlib.sha256(body).hexdigest() == oid
        self.server.large[oid] = body
        self.send(b"")

    def commit(self, body: bytes) -> None:
        files = dict(self.server.commits[-1])
        for line in map(json.loads, body.splitlines()):
            value = line["value"]
            if line["key"] == "file":
                files[value["path"]] = base64.b64decode(value["content"])
            elif line["key"] == "lfsFile":
                files[value["path"]] = self.server.large[value["oid"]]
            elif line["key"] == "deletedFile":
                del files[value["path"]]
        self.server.commits.append(files)
        sha = self.files("main")[0]
        url = f"{self.server.url}/{NAME}/commit/{sha}"
        self.send_json({"commitUrl": url, "commitOid": sha, "success": True})

    def resolve(self, _: bytes, revision: str, path: str) -> None:
        sha, files = self.files(revision)
        headers = {"ETag": f'"{digest(files[path])}"', "X-Repo-Commit": sha}
        self.send(files[path], headers=headers)


def digest(data: bytes) -> str:
    return hashlib.sha1(data).hexdigest()


ROUTES = {
    "POST /api/repos/create": Handler.create,
    f"GET /api/models/{NAME}": Handler.info,
    f"GET /api/models/{NAME}/revision/(\\w+)": Handler.info,
    f"GET /api/models/{NAME}/tree/(\\w+)": Handler.tree,
    "POST /api/validate-yaml": Handler.validate,
    f"POST /api/models/{NAME}/preupload/main": Handler.preupload,
    f"POST /{NAME}.git/info/lfs/objects/batch": Handler.batch,
    "PUT /large/(\\w+)": Handler.upload,
    f"POST /api/models/{NAME}/commit/main": Handler.commit,
    f"(?:GET|HEAD) /{NAME}/resolve/(\\w+)/(.+)": Handler.resolve,
}


@pytest.fixture
def server(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[StandIn]:
    """The stand-in, where HF_ENDPOINT points to."""
    with StandIn() as server:
        threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True).start()
        monkeypatch.setenv("HF_ENDPOINT", server.url)
        monkeypatch.setattr(constants, "HF_HUB_DISABLE_XET", True)  # another way of large files
        monkeypatch.setattr(constants, "HF_HUB_CACHE", str(tmp_path / "cache"))
        monkeypatch.setattr(constants, "HF_HUB_OFFLINE", False)
        monkeypatch.setenv("HF_TOKEN", "secret")
        monkeypatch.chdir(tmp_path)
        yield server
        server.shutdown()


@pytest.fixture
def run(tmp_path: Path) -> Run:
    """What training would have left, with a calibration and files that stay here."""
    run = Run(tmp_path / "run")
    run.folder.mkdir()
    CLIP.write(run.features_file)
    model = models.create("mlp", num_classes=3, feature_sizes=(4,))
    models.save(model, run.folder, class_names=["cat", "dog", "owl"])
    run.write_config(TrainConfig(data="/home/me/secret/films", model="mlp"))
    run.write_rated_classes([0, 2], ["cat", "dog", "owl"])
    result = RatedResult(0.5, 0.4, classes=2, all_classes=3, rated=9, positives=4)
    best = replace(result, map=0.75)
    for step, found in ((5, result), (10, best), (15, result)):
        run.append_to_log("evaluate", step=step, after="finetune", **found.values())
    run.append_to_log("evaluate", data="/home/me/more", part="all", **result.values())
    (run.folder / "more.pkl").write_bytes(b"not sent")
    return run


def test_a_model_comes_back_with_the_same_predictions(
    run: Run, server: StandIn, monkeypatch: pytest.MonkeyPatch
) -> None:
    commit = pyseg.push(run.folder, NAME, license="cc-by-4.0")
    sent = server.commits[-1]
    assert set(sent) == {
        *(".gitattributes", "README.md", "model.safetensors", "model.json"),
        *("features.json", "segment_vocabulary.csv"),
    }
    assert server.tokens == {"Bearer secret", None}  # none where the large file goes
    assert not [name for name, data in sent.items() if b"/home/me" in data]
    server.commits[-1] = sent | {"evil.pkl": b"", "config.yaml": b"", "sub/model.json": b""}
    server.asked.clear()
    local, loaded = pyseg.load(run.folder, device="cpu"), pyseg.load(NAME, device="cpu")
    assert not [line for line in server.asked if re.search(r"evil|config|sub|README", line)]
    assert loaded.class_names == local.class_names == ("cat", "owl")
    np.testing.assert_array_equal(loaded.predict(FRAMES).scores, local.predict(FRAMES).scores)
    other = models.create("mlp", num_classes=3, feature_sizes=(4,))
    models.save(other, run.folder)
    pyseg.push(run.folder, NAME, license="cc-by-4.0")
    again = pyseg.load(NAME, device="cpu", revision=commit)
    np.testing.assert_array_equal(again.predict(FRAMES).scores, loaded.predict(FRAMES).scores)
    newest = pyseg.load(NAME, device="cpu").predict(FRAMES).scores
    assert not np.array_equal(newest, loaded.predict(FRAMES).scores)
    Path(NAME).mkdir(parents=True)  # a folder wins
    server.asked.clear()
    with pytest.raises(UserError, match=f"{NAME} is not a run folder"):
        pyseg.load(NAME)
    assert server.asked == []


def test_a_calibration_goes_and_leaves_with_its_weights(run: Run, server: StandIn) -> None:
    rng = np.random.default_rng(0)
    logits, classes, present = rng.standard_normal(600), np.arange(600) % 3, rng.random(600) < 0.5
    fitted = Calibration.fit(logits, classes, present, num_classes=3)
    fitted = replace(fitted, weights=run.weights_digest(), source="9 ratings of /home/me/films")
    fitted.write(run.calibration_file)
    pyseg.push(run.folder, NAME, license="cc-by-4.0")
    assert b"are calibrated" in server.commits[-1]["README.md"]
    found = pyseg.load(NAME, device="cpu").calibration
    assert found is not None
    assert found.source == "9 ratings of films"
    np.testing.assert_array_equal(found.slopes, fitted.slopes)
    run.calibration_file.unlink()
    pyseg.push(run.folder, NAME, license="cc-by-4.0")
    assert "calibration.json" not in server.commits[-1]
    assert b"not calibrated" in server.commits[-1]["README.md"]
    assert pyseg.load(NAME, device="cpu").calibration is None


def test_the_card(run: Run, server: StandIn) -> None:
    pyseg.push(run.folder, NAME, license="cc-by-4.0", data="200 films.", limits="Films only.")
    card = server.commits[-1]["README.md"].decode()
    front = yaml.safe_load(card.split("---\n")[1])
    assert (front["license"], front["library_name"]) == ("cc-by-4.0", "pyseg")
    for text in (
        "# films\n",
        "segments of 3 s of videos: 3 classes",
        "preset `mlp`",
        "features `clip (4)`, computed by `net.onnx`",
        f'pyseg.load("{NAME}")',
        "- held-out videos, after `finetune`: MAP@100k 0.7500 (mean over 2 classes",  # the best
        "- `more`, `all`: MAP@100k 0.5000",
        "200 films.\nTrained on `films`; 20% of the videos were held out (seed 0).",
        "not calibrated",
        "1 of 3 classes have no positive among the ratings",
        "- Films only.\n",
        "## Licence\n\n`cc-by-4.0`.",
    ):
        assert text in card, text
    run.log_file.unlink()
    run.config_file.unlink()
    pyseg.push(run.folder, NAME, license="cc-by-4.0")
    card = server.commits[-1]["README.md"].decode()
    for text in ("None are known.", "Not described.", "It has not been measured."):
        assert text in card


def test_a_model_names_no_code_to_run(run: Run, server: StandIn) -> None:
    """Or it could have any function of this machine called, with any path as its weights."""
    for made, message in (
        (BackboneInfo("shutil:rmtree", "0" * 64, {}), r"names code .* give backbone='shutil:rmtr"),
        (BackboneInfo("net.onnx", "0" * 64, {}, "/home/me"), "a path in features.json"),
        (BackboneInfo("net.onnx", "0" * 64, {}, None, "/home/me"), "a path in features.json"),
    ):
        pyseg.push(run.folder, NAME, license="cc-by-4.0")
        replace(CLIP, backbone=made).write(run.features_file)
        server.commits[-1]["features.json"] = run.features_file.read_bytes()
        with pytest.raises(UserError, match=message):
            pyseg.load(NAME, device="cpu")
        if made.name == "shutil:rmtree":
            assert (
                pyseg.load(NAME, device="cpu", backbone="my_module:make").features.backbone == made
            )


def test_what_is_refused(run: Run, server: StandIn, monkeypatch: pytest.MonkeyPatch) -> None:
    with pytest.raises(ArgumentError, match=r'name: expected "organisation/name", found \'films\''):
        pyseg.push(run.folder, "films", license="mit")
    with pytest.raises(ArgumentError, match=r"license: expected an identifier .*, found 'a: b'"):
        pyseg.push(run.folder, NAME, license="a: b")
    with pytest.raises(ArgumentError, match=r"revision: expected none, as .*run is not the name"):
        pyseg.load(run.folder, revision="main")
    with pytest.raises(UserError, match=r"run: expected a folder or .*, found no folder no/film: "):
        pyseg.load("no/film")
    monkeypatch.setitem(ROUTES, "POST /api/repos/create", lambda self, _: self.send(b"{}", 403))
    with pytest.raises(UserError, match=r"name: no/film cannot be written: "):
        pyseg.push(run.folder, "no/film", license="mit")
    server.commits.append({"model.json": b"{}"})
    with pytest.raises(UserError, match=r"a model without model.safetensors, which pyseg.push"):
        pyseg.load(NAME)
    run.weights_file.write_bytes(run.weights_file.read_bytes()[:-1])
    server.asked.clear()
    with pytest.raises(DataError, match=r"model.safetensors"):
        pyseg.push(run.folder, NAME, license="mit")
    run.checkpoints_folder.mkdir()
    (run.checkpoints_folder / "step-5.pt").touch()
    monkeypatch.setattr(Run, "is_unfinished", True)
    with pytest.raises(UserError, match=r"expected a run whose training has ended; .*--resume"):
        pyseg.push(run.folder, NAME, license="mit")
    assert server.asked == []
    monkeypatch.setitem(sys.modules, "huggingface_hub", None)
    with pytest.raises(UserError, match=r"no folder studio/films, .* needs hugging.*\[hub\]'"):
        pyseg.load(NAME)
