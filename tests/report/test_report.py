"""pyseg.report: a self-contained page for any run, finished or not, with the right numbers."""

from __future__ import annotations

import base64
import hashlib
import json
import re
import shutil
import sys
from html.parser import HTMLParser
from pathlib import Path

import numpy as np
import pytest
import torch

from pyseg.errors import DataError, UserError

pytest.importorskip("networkx")
pytest.importorskip("jinja2")

from pyseg import evaluate, models, report, train
from pyseg.checkpoint import save_checkpoint
from pyseg.config import LossConfig, StageConfig, TrainConfig
from pyseg.data import Ratings, encode_frames, encode_video, write_records
from pyseg.metrics import MeanAveragePrecision
from pyseg.report.runs import Evaluation, ReportedRun
from pyseg.report.sections.class_precision import class_precision

CLASSES = 6
NAMES = ["<b>&", "$x_1$ and $", "_hidden", 'a "quote"', "plain", "日本"]
TINY = {"clusters": 4, "groups": 2, "hidden_size": 8, "reduction": 2}
VOID = {"meta", "img", "br", "link", "input"}


class Page(HTMLParser):
    """A parsed page; checks that every element is closed."""

    def __init__(self, path: Path) -> None:
        super().__init__()
        self.open: list[str] = []
        self.tags: list[tuple[str, dict[str, str]]] = []
        self.text: list[str] = []
        self.feed(path.read_text(encoding="utf-8"))
        self.close()
        assert self.open == []

    def handle_starttag(self, tag, attrs):
        self.tags.append((tag, dict(attrs)))
        if tag not in VOID:
            self.open.append(tag)

    def handle_endtag(self, tag):
        assert self.open.pop() == tag

    def handle_data(self, data):
        self.text.append(data)

    @property
    def words(self) -> str:
        return " ".join(" ".join(self.text).split())

    def figures(self) -> list[str]:
        """The descriptions of the figures."""
        return [attributes["aria-label"] for tag, attributes in self.tags if tag == "figure"]

    def data(self) -> list[dict]:
        """What the script draws, by figure."""
        return [json.loads(text) for text in self.text if text.startswith("{")]


def write_vocabulary(folder: Path) -> None:
    lines = [f'{i},"{name.replace(chr(34), 2 * chr(34))}"' for i, name in enumerate(NAMES)]
    (folder / "vocabulary.csv").write_text("\n".join(["Index,Name", *lines, ""]))


@pytest.fixture(scope="module")
def data(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """40 rated videos of 30 frames, the first ones with the most ratings."""
    folder = tmp_path_factory.mktemp("data")
    rng = np.random.default_rng(0)
    records = []
    for number in range(40):
        frames = rng.integers(0, 256, (30, 1152), np.uint8)
        starts = np.arange(0, 30, 5)[: max(1, 6 - number // 7)]
        classes = rng.integers(0, CLASSES, len(starts))
        ratings = Ratings(starts, classes, rng.integers(0, 2, len(starts)).astype(np.float32))
        labels = rng.choice(CLASSES, 3, replace=False)
        records.append(encode_frames(f"v{number:02d}", frames, labels, ratings))
    write_records(folder / "validate0.tfrecord", records)
    write_vocabulary(folder)
    return folder


def fit(data: Path, run: Path, **options) -> Path:
    stages = {
        "pretrain": StageConfig(12, 1e-2, 8, evaluate_every=6),
        "finetune": StageConfig(3, 1e-2, 8),
    }
    options = {"overrides": TINY, "test_fraction": 0.5, **stages, **options}
    return train.train(TrainConfig(data=str(data), run=str(run), **options))


@pytest.fixture(scope="module")
def runs(data: Path, tmp_path_factory: pytest.TempPathFactory) -> list[Path]:
    """Two runs that differ only in the seed of the weights: the held-out videos are the same."""
    folder = tmp_path_factory.mktemp("runs")
    correlated = LossConfig(correlation="auto", threshold=0.4)
    return [
        fit(data, folder / "first", loss=correlated),
        fit(
            data,
            folder / "other",
            pretrain=StageConfig(5, 1e-3, 8),
            loss=LossConfig(correlation="none"),
        ),
    ]


def draw(*runs: Path, out: Path, **options) -> Page:
    report.report(report.ReportConfig([str(run) for run in runs], out=str(out), **options))
    return Page(out)


@pytest.fixture(scope="module")
def both(runs: list[Path], tmp_path_factory: pytest.TempPathFactory) -> Path:
    out = tmp_path_factory.mktemp("page") / "r.html"
    report.main(["--run", *map(str, runs), "--out", str(out), "--videos", "2"])
    return out


def test_page_of_two_runs(both: Path) -> None:
    page = Page(both)
    check_self_contained(both, page)
    alts = page.figures()
    expected = [
        "Training loss over the steps of pretrain",
        "Training loss over the steps of finetune",
        "MAP@100k over steps",
        "Examples a second over steps",
        "Average precision of all classes: first, other",
        "Average precision of every class, best first: first, other",
        "Average precision of every class against its number of positives: first, other",
        "Classes whose average precision differs most between other and first",
        "Micro-averaged precision over recall: first, other",
        "Precision, recall and F1 over the threshold of the probability: first",
        "Precision, recall and F1 over the threshold of the probability: other",
        "Precision over recall of the classes with the most positives: first",
        "Share of positive ratings over the probability that first gives them",
        "Share of positive ratings over the probability that other gives them",
    ]
    assert alts[:14] == expected
    assert alts[14].startswith("Label graph of first: ")
    videos = [alt for alt in alts[15:] if alt.startswith("Scores of v0")]
    assert len(videos) == len(alts[15:]) == 4
    assert "other used no label correlation" in page.words
    assert "pretrain.steps (default 200)" in page.words
    # Names are escaped: otherwise the parser would find an element.
    assert "b" not in {tag for tag, _ in page.tags}
    assert {"<b>&", "$x_1$ and $", 'a "quote"', "日本"} <= set(page.text)


def check_self_contained(path: Path, page: Page) -> None:
    """Checks that a page loads nothing, and runs the script that its policy names alone."""
    for tag, attributes in page.tags:
        assert tag not in ("link", "iframe", "object"), tag
        assert not {"srcset"} & attributes.keys(), tag
        assert not any(name.startswith("on") for name in attributes), tag
        assert attributes.get("href", "#").startswith("#")
    text = path.read_text(encoding="utf-8")
    assert set(re.findall(r"https?://[^\s\"']+", text)) == {"http://www.w3.org/2000/svg"}
    assert "@import" not in text
    assert len(text) < 3e6
    [policy] = [a["content"] for tag, a in page.tags if a.get("http-equiv")]
    [script] = re.findall("<script>(.*?)</script>", text, re.DOTALL)
    digest = base64.b64encode(hashlib.sha256(script.encode()).digest()).decode()
    assert policy.startswith("default-src 'none'; ")
    assert f"script-src 'sha256-{digest}'" in policy.split("; ")
    scripts = [attributes for tag, attributes in page.tags if tag == "script"]
    assert [a for a in scripts if a != {"type": "application/json"}] == [{}]


def test_charts_have_the_numbers_of_the_log(both: Path, runs: list[Path]) -> None:
    page = Page(both)
    charts = {chart.get("y"): chart for chart in page.data()}
    curves = charts["MAP@100k of held-out videos"]
    assert [curve["name"] for curve in curves["series"]] == ["first", "other"]
    log = [json.loads(line) for line in (runs[0] / "metrics.jsonl").read_text().splitlines()]
    found = [line["map"] for line in log if line["stage"] == "evaluate"]
    np.testing.assert_allclose(curves["series"][0]["y"], found, rtol=1e-4)
    assert curves["series"][0]["x"] == [6, 12, 15]
    ranked = charts["AP"]["series"][0]
    assert sorted(ranked["names"]) == sorted(" ".join(n.split()) for n in NAMES)
    for value in ranked["y"]:  # also without scripts
        assert f" {value:.4f} " in page.words


def test_a_class_that_is_always_positive_is_not_praised(tmp_path: Path) -> None:
    """Its average precision is 1 whatever the model does."""
    precision = MeanAveragePrecision(
        0.6, np.array([1.0, 0.8, 0.6, 0.0]), np.array([5, 2, 3, 0]), np.array([5, 10, 10, 4])
    )
    none = np.zeros(0)
    evaluation = Evaluation(True, precision, none, none, none, {}, True)
    names = ["certain", "good", "poor", "no positive"]
    run = ReportedRun(tmp_path, "run", TrainConfig(), [], False, 1, 4, names)
    run.evaluation = evaluation
    section = class_precision([run], report.ReportConfig(["run"]))
    bars = section.figures[0]
    assert [row["name"] for row in bars.content["groups"][0]["rows"]] == ["good", "poor"]
    assert "Left out: 1 with positive ratings only" in bars.caption
    assert [(row[1], row[3]) for row in section.tables[0].rows] == [
        ("good", "0.7500"), ("poor", "0.4286"), ("certain", "0.0000")
    ]  # fmt: skip


def test_numbers_are_those_of_evaluate(both: Path, runs: list[Path]) -> None:
    words = Page(both).words
    for run in runs:
        result = evaluate.evaluate_run(evaluate.EvaluateConfig(run=str(run)))
        assert f"{run.name} {result.map:.4f}" in words


def test_pages_are_reproducible(both: Path, runs: list[Path], tmp_path: Path) -> None:
    draw(*runs, out=tmp_path / "r.html", videos=2)
    assert both.read_bytes() == (tmp_path / "r.html").read_bytes()


def test_a_model_of_the_rated_classes(data: Path, tmp_path: Path) -> None:
    folder = tmp_path / "data"
    shutil.copytree(data, folder)
    (folder / "segment_vocabulary.csv").write_text("Index\n4\n1\n3\n")
    run = fit(folder, tmp_path / "run", classes="rated", loss=LossConfig(threshold=0.1))
    page = draw(run, out=tmp_path / "r.html")
    result = evaluate.evaluate_run(evaluate.EvaluateConfig(run=str(run)))
    assert f"run {result.map:.4f}" in page.words
    assert "relations of 3 labels" in page.words
    for number in (4, 1, 3):
        assert f" {number} {' '.join(NAMES[number].split())} " in page.words
    assert NAMES[0] not in page.text
    assert sum(alt.startswith("Scores of v") for alt in page.figures()) == 4
    # Until it is fine-tuned, the model has all classes, the correlation these three.
    models.save(models.create("nextvlad-small", num_classes=CLASSES, **TINY), run)
    page = draw(run, out=tmp_path / "r.html", evaluate=False)
    [graph] = [alt for alt in page.figures() if alt.startswith("Label graph")]
    assert "class 0" in graph
    assert not any(name in graph for name in NAMES)


def test_without_evaluation(runs: list[Path], tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    report.main(["--run", str(run), "--evaluate", "false"])
    assert f"report: {run / 'report.html'} (" in capsys.readouterr().out
    page = Page(run / "report.html")
    assert page.words.count("run was not evaluated: left out with --evaluate false") == 4
    assert len(page.figures()) == 5
    assert [chart["y"] for chart in page.data()][-1] == "examples/s"


def test_two_points_are_no_curve(runs: list[Path], tmp_path: Path) -> None:
    page = draw(runs[1], out=tmp_path / "r.html", evaluate=False)
    assert "MAP@100k over steps" not in page.figures()
    assert "MAP@100k was evaluated at the ends of the stages only" in page.words


def test_missing_data(runs: list[Path], tmp_path: Path, capsys) -> None:
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    config = run / "config.yaml"
    [line] = [line for line in config.read_text().splitlines() if line.startswith("data:")]
    config.write_text(config.read_text().replace(line, f"data: {tmp_path}/gone/*.tfrecord"))
    page = draw(run, out=tmp_path / "r.html")
    reason = f"run was not evaluated: {tmp_path}/gone/*.tfrecord: no file matches"
    assert reason in page.words
    assert reason in capsys.readouterr().out
    with pytest.raises(FileNotFoundError, match="no file matches"):
        draw(run, out=tmp_path / "r.html", data=str(tmp_path / "none*"))


def test_a_run_that_has_just_begun(data: Path, runs: list[Path], tmp_path: Path) -> None:
    run = tmp_path / "begun"
    run.mkdir()
    shutil.copy(runs[0] / "config.yaml", run)
    page = draw(run, out=tmp_path / "r.html")
    assert page.figures() == []
    assert "Nothing is logged yet: begun." in page.words
    assert "model.json: no such file" in page.words
    assert f" nextvlad-small on {data} " in page.words
    options = (run / "config.yaml").read_text()
    (run / "config.yaml").write_text(options.replace("copies: 1\n", "copies: 3\n"))
    page = draw(run, out=tmp_path / "r.html")
    assert f" 3 x nextvlad-small on {data} " in page.words
    assert " model 3 x nextvlad-small " in page.words
    assert "copies" not in page.words
    save_checkpoint(run / "checkpoints", 10, {"step": 10}, keep=1)
    whole = (runs[0] / "metrics.jsonl").read_text().splitlines(keepends=True)[:2]
    (run / "metrics.jsonl").write_text("".join(whole) + '{"stage": "pretr')  # is being written
    page = draw(run, out=tmp_path / "r.html")
    assert "unfinished" in page.words
    assert "10 of 12 steps" in page.words
    assert page.figures() == [
        "Training loss over the steps of pretrain",
        "Examples a second over steps",
    ]


def test_mean_features_without_names(tmp_path: Path) -> None:
    rng = np.random.default_rng(0)
    records = [
        encode_video(f"v{n}", rng.normal(size=1152).astype(np.float32), rng.integers(0, 3862, 3))
        for n in range(30)
    ]
    data = tmp_path / "train0.tfrecord"
    write_records(data, records)
    run = fit(data, tmp_path / "run", pretrain=StageConfig(2, 1e-3, 8))
    copy = shutil.copytree(run, tmp_path / "copy")
    page = draw(run, copy, out=tmp_path / "r.html")
    assert "mean features of whole videos have no time" in page.words
    assert "GAP@20" in page.words
    assert "GAP@20 over steps" not in page.figures()
    assert "No class differs between copy and run." in page.words
    assert not any(alt.startswith("Scores of") for alt in page.figures())


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"run": []}, "run: expected at least one folder, found none"),
        ({"run": ["a", "./a"]}, "run: expected each folder once, found a, ./a"),
        ({"run": ["a"], "videos": -1}, "videos: expected at least 0, found -1"),
        ({"run": ["a"], "batch_size": 0}, "batch_size: expected at least 1, found 0"),
    ],
)
def test_invalid_options(options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        report.ReportConfig(**options)


def test_folders_that_are_no_run(runs: list[Path], tmp_path: Path) -> None:
    with pytest.raises(UserError, match="is not a run folder"):
        draw(tmp_path, out=tmp_path / "r.html")
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    (run / "metrics.jsonl").write_text('{"stage": "pretrain"}\n[1, 2]\n')
    with pytest.raises(DataError, match=r"metrics\.jsonl, line 2: expected a JSON object"):
        draw(run, out=tmp_path / "r.html")
    assert not (tmp_path / "r.html").exists()


@pytest.mark.parametrize("package", ["jinja2", "networkx"])
def test_missing_packages(
    runs: list[Path], tmp_path: Path, package: str, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(UserError, match=rf"{package}: pip install .*\[report\]'"):
        draw(runs[0], out=tmp_path / "r.html")


def test_scores_that_are_no_numbers(runs: list[Path], tmp_path: Path) -> None:
    model = models.load(runs[0])
    with torch.no_grad():
        next(model.parameters()).fill_(float("nan"))
    run = tmp_path / "run"
    shutil.copytree(runs[0], run)
    models.save(model, run)
    with pytest.raises(DataError, match=r"model\.safetensors: .*: expected finite .*, found NaN"):
        draw(run, out=tmp_path / "r.html")
