"""The examples run and give the documented results."""

from __future__ import annotations

import doctest
import importlib
import runpy
import sys
from collections.abc import Callable, Iterator
from pathlib import Path
from types import ModuleType

import pytest
import torch

from pyseg.data import loader, open_collection
from pyseg.evaluate import evaluate
from pyseg.metrics import gap_at_k

FOLDER = Path(__file__).parent.parent / "examples" / "python"


def test_netvlad_learns(capsys):
    runpy.run_path(str(FOLDER / "netvlad.py"), run_name="__main__")
    accuracy = float(capsys.readouterr().out.rsplit("accuracy ", 1)[1])
    assert accuracy > 0.9  # 0.5 is chance


@pytest.fixture
def example(monkeypatch: pytest.MonkeyPatch) -> Iterator[Callable[[str], ModuleType]]:
    """Imports an example by its name, or skips the test where a package of it does not work."""
    monkeypatch.syspath_prepend(str(FOLDER))

    def load(name: str) -> ModuleType:
        if name == "lightning_module":
            try:
                importlib.import_module("lightning")
            except (ImportError, RuntimeError) as error:  # such as torchvision for another torch
                pytest.skip(f"lightning cannot be imported: {error}")
        return importlib.import_module(name)

    yield load
    for path in FOLDER.glob("*.py"):
        sys.modules.pop(path.stem, None)


@pytest.mark.parametrize("name", sorted(path.stem for path in FOLDER.glob("*.py")))
def test_doctests(name: str, example: Callable[[str], ModuleType]) -> None:
    results = doctest.testmod(example(name))
    assert results.attempted > 0
    assert results.failed == 0


@pytest.mark.filterwarnings("ignore")  # of Lightning
def test_lightning_logs_the_values_of_an_evaluation(
    example: Callable[[str], ModuleType],
) -> None:
    module = example("lightning_module")
    collection = open_collection("sample")
    classifier = module.SegmentClassifier(collection.num_classes, "mlp")
    logged = module.fit(classifier, collection, epochs=2)
    assert logged["map"] > 0.5
    assert logged["map"] == pytest.approx(evaluate(classifier.model, collection, "test").score)
    with torch.no_grad():
        [videos] = loader(collection.videos("test"), batch_size=10_000)
        scores = classifier.model.eval()(videos.frames, videos.num_frames)
    labels = videos.targets(collection.num_classes)
    assert logged["gap"] == pytest.approx(gap_at_k(scores, labels))
