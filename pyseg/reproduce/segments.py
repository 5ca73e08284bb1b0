"""The table "segments": what tells segments apart that their own frames do not."""

from __future__ import annotations

import functools
from collections.abc import Callable, Iterator, Sequence
from dataclasses import replace

import numpy as np
import torch
from torch import Tensor, nn

from pyseg.data import Batch, RecordDataset
from pyseg.data.loading import loader
from pyseg.evaluate import predictions
from pyseg.predict.scorer import merged
from pyseg.reproduce.comparisons import Variant, segment_models
from pyseg.reproduce.experiments import Experiment, Scored
from pyseg.reproduce.runner import Runner
from pyseg.reproduce.ways import Ways

Windows = Callable[[int, int, int], list[tuple[int, int]]]
"""Returns the windows, (first frame, end), to score for a segment: of its start and its end, and of
the number of its video's frames."""

_BATCH = 256


def segment_tables(experiment: Experiment) -> list[Ways]:
    """Returns the tables of ways to score the segments of trained models."""
    return [
        Ways(
            f"segments-{variant.model.name}",
            f"ways to score a segment, {variant.name}",
            functools.partial(_rows, variant),
        )
        for variant in segment_models(experiment)
    ]


def _rows(variant: Variant, runner: Runner, seed: int) -> Iterator[tuple[Variant, Scored]]:
    for name, scored in _ways(runner, variant, seed):
        yield replace(variant, name=name), scored


def _ways(runner: Runner, variant: Variant, seed: int) -> Iterator[tuple[str, Scored]]:
    """Yields the ways to score segments, by name; the first one is to score their own frames."""
    folder, before = runner.trained(variant, seed)
    tuned, pretrained = runner.load(folder), None if before is None else runner.load(before)
    collection = runner.experiment.collection(seed)
    videos = {e.id: torch.tensor(e.frames) for e in collection.videos("test")}
    in_windows = functools.partial(_scored_in_windows, tuned, videos)
    yield "fine-tuned", functools.partial(predictions, tuned)
    if pretrained is not None:
        yield "pretrained alone", functools.partial(predictions, pretrained)
    for frames in (1, 2):
        yield f"  with {frames} more on each side", in_windows(_extended(frames))
    yield "  on the whole video", in_windows(_whole)
    for shift in (1, 2):
        yield f"  mean of windows shifted by up to {shift}", in_windows(_shifted(shift))
    if pretrained is not None:
        whole = _scored_in_windows(pretrained, videos, _whole)
        for weight in (0.25, 0.5):
            name = f"  and the pretrained model on the whole video, weight {weight}"
            yield name, _merged(functools.partial(predictions, tuned), whole, weight)


def _extended(frames: int) -> Windows:
    return lambda start, end, length: [(max(0, start - frames), min(length, end + frames))]


def _whole(start: int, end: int, length: int) -> list[tuple[int, int]]:
    del start, end
    return [(0, length)]


def _shifted(most: int) -> Windows:
    def windows(start: int, end: int, length: int) -> list[tuple[int, int]]:
        moves = range(max(-most, -start), min(most, length - end) + 1)
        return [(start + move, end + move) for move in moves]

    return windows


def _scored_in_windows(model: nn.Module, videos: dict[str, Tensor], windows: Windows) -> Scored:
    """Returns what scores segments by the mean logits of some windows of their videos."""

    def scored(segments: RecordDataset) -> Iterator[tuple[Batch, np.ndarray]]:
        for batch in loader(segments, _BATCH):
            parts, owners = [], []
            for owner, (id, size) in enumerate(zip(batch.ids, batch.num_frames, strict=True)):
                video, _, start = id.rpartition(":")
                first = int(start)
                frames = videos[video]
                for begin, end in windows(first, first + int(size), len(frames)):
                    parts.append(frames[begin:end])
                    owners.append(owner)
            yield batch, _means(model, parts, torch.tensor(owners), len(batch))

    return scored


@torch.inference_mode()
def _means(model: nn.Module, parts: Sequence[Tensor], owners: Tensor, count: int) -> np.ndarray:
    """Returns the mean logits of the windows of each of `count` segments."""
    device = next(model.parameters()).device
    padded = nn.utils.rnn.pad_sequence(list(parts), batch_first=True)
    num_frames = torch.tensor([len(part) for part in parts])
    logits = torch.cat(
        [
            model.eval()(frames.to(device), lengths.to(device)).float().cpu()
            for frames, lengths in zip(padded.split(_BATCH), num_frames.split(_BATCH), strict=True)
        ]
    )
    sums = torch.zeros(count, logits.shape[1]).index_add_(0, owners, logits)
    return (sums / torch.bincount(owners, minlength=count).unsqueeze(1)).numpy()


def _merged(own: Scored, whole: Scored, weight: float) -> Scored:
    """Returns what merges two scores as ``pyseg.predict --video_weight`` does."""

    def scored(segments: RecordDataset) -> Iterator[tuple[Batch, np.ndarray]]:
        of_whole: dict[str, np.ndarray] = {}
        for batch, logits in whole(segments):
            of_whole |= dict(zip(batch.ids, logits, strict=True))
        for batch, logits in own(segments):
            video = np.stack([of_whole[id] for id in batch.ids])
            both = torch.from_numpy(logits), torch.from_numpy(video)
            yield batch, merged(*both, weight).numpy()

    return scored
