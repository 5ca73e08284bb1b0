"""Ways to score a segment."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch
from torch import nn

from pyseg.errors import UserError
from pyseg.reproduce import ModelSpec, ReproduceConfig, main, reproduce
from pyseg.reproduce.experiments import open_experiment
from pyseg.reproduce.segments import (
    _extended,
    _merged,
    _scored_in_windows,
    _shifted,
    _whole,
)


@pytest.mark.parametrize(
    ("windows", "segment", "expected"),
    [
        (_extended(2), (3, 8, 10), [(1, 10)]),
        (_extended(2), (0, 5, 6), [(0, 6)]),
        (_whole, (3, 8, 10), [(0, 10)]),
        (_shifted(2), (1, 6, 7), [(0, 5), (1, 6), (2, 7)]),
        (_shifted(1), (0, 5, 5), [(0, 5)]),
    ],
)
def test_windows_stay_within_the_video(windows, segment, expected) -> None:
    assert windows(*segment) == expected


class Length(nn.Module):
    """Tells the number of frames, and the sum of the first dimension's bytes."""

    def __init__(self) -> None:
        super().__init__()
        self.unused = nn.Parameter(torch.zeros(1))

    def forward(self, frames, num_frames):
        mask = torch.arange(frames.shape[1]) < num_frames[:, None]
        return torch.stack((num_frames, (frames[:, :, 0] * mask).sum(1)), 1)


def test_windows_are_scored_and_averaged() -> None:
    segments = open_experiment("sample", Path("none")).collection(0).segments("test")
    assert segments is not None
    videos: dict[str, torch.Tensor] = {}
    for example in segments:
        video, _, start = example.id.rpartition(":")
        known = videos.setdefault(video, torch.zeros(400, 1152, dtype=torch.uint8))
        known[int(start) : int(start) + len(example.frames)] = torch.tensor(example.frames)
    own = _scored_in_windows(Length(), videos, _extended(0))
    for batch, logits in own(segments):
        sums = [
            int(frames[:length, 0].long().sum())
            for frames, length in zip(batch.frames, batch.num_frames.tolist(), strict=True)
        ]
        assert logits[:, 0].tolist() == batch.num_frames.tolist()
        assert logits[:, 1].tolist() == sums
    longer = _scored_in_windows(Length(), videos, _extended(3))
    assert max(logits[:, 0].max() for _, logits in longer(segments)) == 11
    (batch, first), *_ = own(segments)
    merged = next(iter(_merged(own, longer, 0.0)(segments)))[1]
    np.testing.assert_allclose(merged, -np.logaddexp(0, -first), rtol=1e-5, atol=1e-6)


def test_command(tiny: ModelSpec, tmp_path: Path) -> None:
    main(["--table", "segments", "--data", "sample", "--quick", "--out", str(tmp_path / "out")])
    text = (tmp_path / "out/tables.md").read_text()
    assert text.count("| fine-tuned | ") == 2
    assert text.count("| – on the whole video | ") == 2
    assert "## segments-ridge: ways to score a segment, --recipe best" in text


def test_only_where_videos_have_time(tmp_path: Path, monkeypatch) -> None:
    from pyseg.reproduce.experiments import GeneratedSample

    monkeypatch.setattr(GeneratedSample, "pretrain", None)
    with pytest.raises(UserError, match=r"--table segments: expected one of 2, .*, mixtures, "):
        reproduce(ReproduceConfig(table="segments", out=str(tmp_path)))
