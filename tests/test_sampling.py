from __future__ import annotations

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from pyseg.data import sample_random_frames, sample_random_sequence


def uniform(seed: int, *shape: int) -> np.ndarray:
    generator = torch.Generator().manual_seed(seed)
    return torch.rand(shape, generator=generator, dtype=torch.float64).numpy()


@given(
    lengths=st.lists(st.integers(1, 400), min_size=1, max_size=6),
    samples=st.integers(1, 40),
    seed=st.integers(0, 1000),
)
def test_the_starter_codes_formulas(lengths: list[int], samples: int, seed: int) -> None:
    num_frames = torch.tensor(lengths)
    drawn = sample_random_frames(num_frames, samples, generator=torch.Generator().manual_seed(seed))
    u = uniform(seed, len(lengths), samples)
    expected = [[int(x * n) for x in row] for row, n in zip(u, lengths, strict=True)]
    assert drawn.tolist() == expected

    drawn = sample_random_sequence(
        num_frames, samples, generator=torch.Generator().manual_seed(seed)
    )
    starts = [
        int(x * (max(n - samples, 0) + 1))
        for x, n in zip(uniform(seed, len(lengths)), lengths, strict=True)
    ]
    expected = [
        [min(start + i, n - 1) for i in range(samples)]
        for start, n in zip(starts, lengths, strict=True)
    ]
    assert drawn.tolist() == expected


def test_every_frame_and_every_start_can_be_drawn() -> None:
    generator = torch.Generator().manual_seed(0)
    frames = sample_random_frames(torch.full((200,), 7), 10, generator=generator)
    assert set(frames.flatten().tolist()) == set(range(7))
    starts = sample_random_sequence(torch.full((200,), 7), 3, generator=generator)[:, 0]
    assert set(starts.tolist()) == set(range(5))


def test_ordered_is_the_same_draw_in_time() -> None:
    num_frames = torch.tensor([50, 3])
    free = sample_random_frames(num_frames, 20, generator=torch.Generator().manual_seed(1))
    ordered = sample_random_frames(
        num_frames, 20, ordered=True, generator=torch.Generator().manual_seed(1)
    )
    assert not torch.equal(free, ordered)
    assert torch.equal(free.sort(dim=1).values, ordered)


@pytest.mark.parametrize("sample", [sample_random_frames, sample_random_sequence])
def test_no_frames_is_an_error(sample) -> None:
    with pytest.raises(ValueError, match="num_frames: expected at least 1, found 0"):
        sample(torch.tensor([5, 0]), 3)
    with pytest.raises(ValueError, match="num_samples: expected at least 1, found 0"):
        sample(torch.tensor([5]), 0)


@pytest.mark.parametrize("sample", [sample_random_frames, sample_random_sequence])
def test_no_videos(sample) -> None:
    assert sample(torch.empty(0, dtype=torch.int64), 3).shape == (0, 3)
