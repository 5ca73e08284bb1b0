"""frame_mask: any length, not only 300."""

from __future__ import annotations

import numpy as np
import pytest
import torch

from pyseg.nn import frame_mask


@pytest.mark.parametrize("length", [1, 5, 300, 301])
def test_marks_the_first_frames(length: int) -> None:
    num_frames = torch.tensor([length, 1, (length + 1) // 2])
    mask = frame_mask(num_frames, torch.empty(3, length, 2))
    assert mask.shape == (3, length)
    assert mask.dtype == torch.bool
    assert mask.sum(1).tolist() == num_frames.tolist()
    assert mask[1, 0]
    assert length == 1 or not mask[1, 1]


@pytest.mark.parametrize("dtype", [torch.uint8, torch.int32, torch.int64])
def test_any_integers(dtype: torch.dtype) -> None:
    assert frame_mask(torch.tensor([2], dtype=dtype), torch.empty(1, 3, 2)).tolist() == [
        [True, True, False]
    ]


def test_empty_batch() -> None:
    assert frame_mask(torch.empty(0, dtype=torch.int64), torch.empty(0, 3, 2)).shape == (0, 3)


@pytest.mark.parametrize("dtype", ["int8", "uint8", "uint16", "uint32", "uint64"])
def test_integers_of_every_kind(dtype: str) -> None:
    mask = frame_mask(np.array([1, 3], dtype), torch.empty(2, 3, 2))
    assert mask.tolist() == [[True, False, False], [True, True, True]]


@pytest.mark.parametrize(("value", "found"), [(4, 4), (0, 0), (-1, -1)])
def test_out_of_range(value: int, found: int) -> None:
    with pytest.raises(ValueError, match=rf"num_frames: .* 1\.\.3 .* found {found}"):
        frame_mask(torch.tensor([1, value]), torch.empty(2, 3, 2))


def test_bad_shape_and_dtype() -> None:
    with pytest.raises(ValueError, match=r"num_frames: expected shape \(2,\).*found \(3,\)"):
        frame_mask(torch.tensor([1, 1, 1]), torch.empty(2, 3, 2))
    with pytest.raises(ValueError, match=r"num_frames: .*found \(2, 1\)"):
        frame_mask(torch.tensor([[1], [1]]), torch.empty(2, 3, 2))
    with pytest.raises(TypeError, match=r"num_frames: expected integers, found torch.float32"):
        frame_mask(torch.ones(2), torch.empty(2, 3, 2))
