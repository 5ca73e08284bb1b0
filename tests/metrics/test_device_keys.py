"""Keys kept on a device: torch's operators on the CPU against the host's keys and a full sort."""

from __future__ import annotations

import itertools
from collections.abc import Callable, Iterator
from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from pyseg.metrics import TopKPerClass, _device_keys
from tests.metrics.test_top_k import lists, oracle, streams


@pytest.fixture(scope="module", params=[(2**27, 2**24), (40, 7)], autouse=True)
def sizes(request: pytest.FixtureRequest) -> Iterator[None]:
    """Lets many rows be ranked together, or few rows of single classes."""
    with pytest.MonkeyPatch.context() as patch:
        for name, value in zip(("_COLLECTED", "_RANKED"), request.param, strict=True):
            patch.setattr(_device_keys, name, value)
        patch.setattr(_device_keys, "_LEAST_ROOM", 8)
        yield


@settings(max_examples=60, deadline=None)
@given(streams(), st.integers(1, 200), st.booleans(), st.booleans())
def test_equals_a_full_sort(stream: tuple, k: int, restricted: bool, merged: bool) -> None:
    ids, scores, candidates, bounds = stream
    best, other = (TopKPerClass(scores.shape[1], k, device="cpu") for _ in range(2))
    for number, (begin, end) in enumerate(itertools.pairwise(bounds)):
        part = slice(begin, end)
        mask = torch.from_numpy(candidates[part]) if restricted else None
        target = other if merged and number % 2 else best
        target.update(ids[part], torch.from_numpy(scores[part]), mask)
    best.merge(other)
    assert lists(best.finish()) == oracle(ids, scores, k, candidates if restricted else None)


@pytest.mark.parametrize("k", [1, 20, 300, 5000])
def test_any_bits_of_scores_rank_as_on_the_host(k: int) -> None:
    rng = np.random.default_rng(k)
    scores = rng.integers(0, 2**32, (2000, 3), np.uint32).view(np.float32)
    scores[np.isnan(scores)] = 0
    scores[rng.random(scores.shape) < 0.3] = -0.0
    host, device = TopKPerClass(3, k), TopKPerClass(3, k, device="cpu")
    for first in range(0, 2000, 250):
        block = scores[first : first + 250]
        host.update(range(first, first + 250), block)
        device.update(range(first, first + 250), torch.from_numpy(block))
    for name, expected in vars(host.finish()).items():
        assert expected.tobytes() == getattr(device.finish(), name).tobytes(), name


def test_results_states_and_host_updates_between_updates() -> None:
    scores = torch.randn(40, 2, generator=torch.Generator().manual_seed(0)).round(decimals=1)
    best = TopKPerClass(2, 12, device="cpu")
    best.update(range(10), scores[:10].clone().requires_grad_())
    assert lists(best.finish()) == oracle(np.arange(10), scores[:10].numpy(), 12)
    best.update(np.arange(10, 20), scores[10:20].numpy())
    with torch.inference_mode():
        best.update(range(20, 30), scores[20:30])
    best.update(range(30, 40), scores[30:].bfloat16(), torch.zeros(10, 2, dtype=torch.bool))
    resumed = TopKPerClass.from_state(best.state())
    expected = oracle(np.arange(30), scores[:30].numpy(), 12)
    assert lists(resumed.finish()) == lists(best.finish()) == expected


def test_blocks_are_copied() -> None:
    best, scores = TopKPerClass(1, 2, device="cpu"), torch.tensor([[1.0]])
    best.update([0], scores)
    scores.fill_(5)
    assert lists(best.finish()) == [[(0, 1.0)]]


@pytest.mark.parametrize("nan", [np.nan, -np.nan])
def test_a_nan_is_found_with_the_result(nan: float) -> None:
    best = TopKPerClass(3, 2, device="cpu")
    scores = torch.full((10, 3), torch.inf)
    scores[7, 1] = nan
    best.update(range(10), scores, torch.zeros(10, 3, dtype=torch.bool))
    best.update(range(10, 20), torch.full((10, 3), torch.inf))
    with pytest.raises(ValueError, match="found NaN for segment 7 and class 1"):
        best.finish()


class Refused(TorchDispatchMode):
    """Fails at operators that would wait for a GPU."""

    def __torch_dispatch__(
        self, func: Callable, types: object, args: Any = (), kwargs: Any = None
    ) -> object:
        waits = ("item", "is_nonzero", "nonzero", "masked_select", "equal", "_local_scalar_dense")
        assert func.overloadpacket.__name__ not in waits
        return func(*args, **(kwargs or {}))


def test_updates_do_not_wait_for_the_device() -> None:
    best, mask = TopKPerClass(3, 20, device="cpu"), torch.ones(30, 3, dtype=torch.bool)
    with Refused():
        for first in range(0, 300, 30):
            best.update(range(first, first + 30), torch.randn(30, 3), mask)
    with pytest.raises(AssertionError), Refused():
        best.finish()


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        (([0], torch.zeros(1, 1)), ValueError, r"scores: expected 2 classes, found shape \(1, 1\)"),
        (([0], torch.zeros(2)), ValueError, r"scores: expected real numbers in 2 .*\(2,\)"),
        (([0], torch.zeros(1, 2) * 1j), ValueError, "scores: expected real .*complex64"),
        ((range(2), torch.zeros(1, 2)), ValueError, "segment_ids: expected 1 as.*found 2"),
        ((range(-1, 0), torch.zeros(1, 2)), ValueError, "segment_ids: expected values in .*-1"),
        (([0], torch.zeros(1, 2), [[1, 1]]), TypeError, "candidates: expected a tensor of bools"),
        (
            ([0], torch.zeros(1, 2), torch.ones(1, 1).bool()),
            ValueError,
            r"candidates: expected shape \(1, 2\)",
        ),
    ],
)
def test_bad_input_changes_nothing(arguments: tuple, error: type[Exception], message: str) -> None:
    best = TopKPerClass(2, 3, device="cpu")
    best.update([5], torch.tensor([[1.0, 2.0]]))
    with pytest.raises(error, match=message):
        best.update(*arguments)
    assert lists(best.finish()) == [[(5, 1.0)], [(5, 2.0)]]


def test_a_gpu_without_room_leaves_keys_to_the_host(monkeypatch: pytest.MonkeyPatch) -> None:
    waiting = 1000 * min(100_000, max(1, _device_keys._COLLECTED // 1000))
    needed = 16 * 1000 * 100_000 + 5 * waiting + 64 * _device_keys._RANKED
    for free, fits in ((2 * needed, True), (2 * needed - 2, False)):
        monkeypatch.setattr(torch.cuda, "mem_get_info", lambda _, free=free: (free, 10 * free))
        device = torch.device("cuda")
        assert _device_keys.DeviceKeys.fit(1000, 100_000, device) == fits
    best = TopKPerClass(1000, 100_000, device="cuda")
    best.update([0], torch.zeros(1, 1000))
    assert best.finish().offsets[-1] == 1000
