"""The metrics of torchmetrics equal pyseg's, in collections, over batches and over processes."""

from __future__ import annotations

import doctest
import importlib
import itertools
import multiprocessing
import pickle
import sys
import warnings
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from pyseg.errors import UserError
from pyseg.metrics import gap_at_k, hit_at_1, map_at_k_dense, perr

try:
    from pyseg.metrics import torchmetrics as ours
except UserError as error:  # also where it imports packages that are for another torch
    pytest.skip(str(error), allow_module_level=True)

from torchmetrics import MetricCollection

RNG = np.random.default_rng(3)
# Few distinct scores, so that the order of rows decides; the later ones are no float32.
SCORES = torch.from_numpy(RNG.integers(0, 6, (40, 3)) / 8)
SCORES[20:] += 1e-12
LABELS, RATED = (torch.from_numpy(RNG.random((40, 3)) < share) for share in (0.4, 0.8))
FULL = {"scores": SCORES, "labels": LABELS, "rated": RATED}


def collection() -> MetricCollection:
    return MetricCollection(
        {
            "map": ours.MeanAveragePrecisionAtK(3, k=7),
            "map at 2": ours.MeanAveragePrecisionAtK(3, k=2, empty_classes="skip"),
            "gap": ours.GlobalAveragePrecisionAtK(3, k=2),
            "hit": ours.HitAt1(3),
            "perr": ours.PrecisionAtEqualRecallRate(3),
        }
    )


def expected() -> dict[str, float]:
    of_map = SCORES, LABELS, RATED
    return {
        "map": map_at_k_dense(*of_map, k=7).map,
        "map at 2": map_at_k_dense(*of_map, k=2, empty_classes="skip").map,
        "gap": gap_at_k(SCORES, LABELS, k=2),
        "hit": hit_at_1(SCORES, LABELS),
        "perr": perr(SCORES, LABELS),
    }


def values(found: dict[str, torch.Tensor]) -> dict[str, float]:
    assert {value.dtype for value in found.values()} == {torch.float64}
    return {name: value.item() for name, value in found.items()}


def part(begin: int, end: int) -> dict[str, torch.Tensor]:
    own = {name: tensor[begin:end] for name, tensor in FULL.items()}
    return own | ({"scores": own["scores"].float()} if end <= 20 else {})  # the same values


@pytest.mark.parametrize("forward", [False, True])
@pytest.mark.parametrize("bounds", [(0, 40), (0, 13, 13, 20, 40), (0, 1, 2, 40)])
def test_values_are_those_of_the_functions(bounds: tuple[int, ...], forward: bool) -> None:
    metrics = collection()
    for _ in range(2):
        for begin, end in itertools.pairwise(bounds):
            if forward and end > begin:
                batch = values(metrics(**part(begin, end)))
                assert batch["gap"] == gap_at_k(SCORES[begin:end], LABELS[begin:end], k=2)
            elif end > begin:
                metrics.update(**part(begin, end))
            else:  # the means have no value for a batch without rows
                metrics["map"].update(**part(begin, end))
        assert values(metrics.compute()) == values(metrics.compute()) == expected()
        metrics.reset()


def test_states_are_stored_and_copied() -> None:
    metrics = collection()
    metrics.persistent(True)
    metrics.update(**part(0, 15))
    restored = collection()
    restored.load_state_dict(metrics.state_dict())
    copied, unpickled = metrics.clone(), pickle.loads(pickle.dumps(metrics))
    for metric in (metrics, restored, copied, unpickled):
        metric.update(**part(15, 20))
        metric.update(**part(20, 40))
        assert values(metric.compute()) == expected()


def check_process(rank: int, size: int, ends: tuple[int, int], store: str) -> None:
    torch.distributed.init_process_group(
        "gloo", init_method=f"file://{store}", rank=rank, world_size=size
    )
    begin, end = (0, *ends, 40)[rank : rank + 2]
    metrics = collection()
    if begin < end:  # a process without rows makes no update at all
        metrics.update(**part(begin, end))
    with warnings.catch_warnings():
        warnings.filterwarnings("ignore", "The ``compute`` method .* before the ``update`` method")
        assert values(metrics.compute()) == expected()
    assert all(isinstance(state, list) for state in (metrics["gap"].scores, metrics["hit"].values))
    torch.distributed.destroy_process_group()


@pytest.mark.skipif(not torch.distributed.is_gloo_available(), reason="torch without gloo")
@pytest.mark.parametrize("ends", [(13, 30), (0, 20), (20, 20)])
def test_processes_share_their_states(ends: tuple[int, int], tmp_path: Path) -> None:
    fork = multiprocessing.get_context("fork")
    arguments = 3, ends, str(tmp_path / "store")
    processes = [fork.Process(target=check_process, args=(rank, *arguments)) for rank in range(3)]
    for process in processes:
        process.start()
    for process in processes:
        process.join()
    assert [process.exitcode for process in processes] == [0, 0, 0]


def test_bad_input_changes_nothing() -> None:
    metric = ours.MeanAveragePrecisionAtK(3, k=7)
    metric.update(*FULL.values())
    with pytest.raises(ValueError, match="scores: expected 3 classes"):
        metric.update(torch.zeros(1, 2), torch.zeros(1, 2))
    with pytest.raises(ValueError, match="scores: expected numbers, found NaN"):
        metric.update(torch.full((1, 3), torch.nan), torch.zeros(1, 3))
    assert metric.compute().item() == expected()["map"]
    with pytest.raises(ValueError, match="k: expected at least 1, found 0"):
        ours.GlobalAveragePrecisionAtK(3, k=0)


def test_examples_of_docstrings() -> None:
    assert doctest.testmod(ours).failed == 0


def test_a_missing_package_is_named(monkeypatch: Any) -> None:
    monkeypatch.setitem(sys.modules, "torchmetrics", None)
    monkeypatch.delitem(sys.modules, "pyseg.metrics.torchmetrics")
    with pytest.raises(UserError, match=r"pyseg.metrics.torchmetrics needs torchmetrics: pip inst"):
        importlib.import_module("pyseg.metrics.torchmetrics")
