from __future__ import annotations

import pickle

import numpy as np
import pytest
import torch

from pyseg.data import Batch, Example, collate


def example(
    id: str = "abcd",
    length: int = 3,
    classes: tuple[int, ...] = (1,),
    width: int = 4,
    value: int = 7,
) -> Example:
    frames = np.full((length, width), value, np.uint8)
    scores = np.linspace(1, 0.5, len(classes), dtype=np.float32)
    return Example(id, frames, np.array(classes, np.int64), scores)


def test_collate_pads_with_zeros_at_the_end() -> None:
    batch = collate([example(length=2), example("1e10", length=5)])
    assert batch.ids == ["abcd", "1e10"]
    assert batch.frames.shape == (2, 5, 4)
    assert batch.frames.dtype == torch.uint8
    assert batch.num_frames.tolist() == [2, 5]
    assert (batch.frames[0, :2] == 7).all()
    assert (batch.frames[0, 2:] == 0).all()
    assert (batch.frames[1] == 7).all()
    assert len(batch) == 2


def test_collate_pads_to_a_given_length() -> None:
    batch = collate([example(length=2)], frames=6)
    assert batch.frames.shape == (1, 6, 4)
    assert not batch.frames[0, 2:].any()


def test_labels_stay_ragged() -> None:
    batch = collate([example(classes=(3, 1)), example(classes=()), example(classes=(0,))])
    assert batch.offsets.tolist() == [0, 2, 2, 3]
    assert batch.classes.tolist() == [3, 1, 0]
    assert batch.scores.tolist() == [1.0, 0.5, 1.0]
    assert batch.offsets.dtype == batch.classes.dtype == batch.num_frames.dtype == torch.int64
    assert batch.scores.dtype == torch.float32


def test_dense_targets_and_rated() -> None:
    zero = Example("wxyz", np.ones((1, 4), np.uint8), np.array([2]), np.zeros(1, np.float32))
    batch = collate([example(classes=(3, 1)), example(classes=()), zero])
    expected = torch.zeros(3, 5)
    expected[0, 3], expected[0, 1] = 1, 0.5
    assert torch.equal(batch.targets(5), expected)
    rated = torch.zeros(3, 5, dtype=torch.bool)
    rated[0, 3] = rated[0, 1] = rated[2, 2] = True  # a rated 0 is rated
    assert torch.equal(batch.rated(5), rated)


@pytest.mark.parametrize("method", ["targets", "rated"])
@pytest.mark.parametrize("wrong", [4, -1])
def test_class_out_of_range_names_the_video(method: str, wrong: int) -> None:
    batch = collate([example("good"), example("bad1", classes=(2, wrong))])
    with pytest.raises(ValueError, match=rf"bad1: expected classes in \[0, 4\), found {wrong}"):
        getattr(batch, method)(4)


def test_float_frames_stay_float() -> None:
    video = example()._replace(frames=np.full((1, 4), 0.5, np.float32))
    assert collate([video]).frames.dtype == torch.float32


@pytest.mark.parametrize(
    ("examples", "options", "message"),
    [
        ([], {}, "examples: expected at least one"),
        (
            [example("a", width=4), example("b", width=5)],
            {},
            "b: expected frames of width 4 .*of a in .* found 5",
        ),
        ([example("a", length=0)], {}, "a: expected 1 to 0 frames, found 0"),
        ([example("a", length=9)], {"frames": 5}, "a: expected 1 to 5 frames, found 9"),
        (
            [example("a"), example("b")._replace(frames=np.zeros((1, 4), np.float32))],
            {},
            "b: expected frames of width 4 and uint8.* found 4 and float32",
        ),
        (
            [example("a")._replace(scores=np.zeros(2, np.float32))],
            {},
            "scores: expected one per class",
        ),
    ],
)
def test_bad_examples(examples: list[Example], options: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        collate(examples, **options)


def test_pickling_keeps_everything() -> None:
    batch = collate([example("0012", classes=(3, 1)), example("1e10", length=1)])
    again = pickle.loads(pickle.dumps(batch))
    assert isinstance(again, Batch)
    assert again.ids == ["0012", "1e10"]
    for name in ("frames", "num_frames", "offsets", "classes", "scores"):
        assert torch.equal(getattr(again, name), getattr(batch, name))
        assert getattr(again, name).dtype == getattr(batch, name).dtype


def test_to_moves_every_tensor() -> None:
    batch = collate([example()]).to("meta")
    for name in ("frames", "num_frames", "offsets", "classes", "scores"):
        assert getattr(batch, name).device.type == "meta"


@pytest.mark.skipif(not torch.cuda.is_available(), reason="pinned memory needs a GPU")
def test_pin_memory() -> None:
    batch = collate([example()]).pin_memory()
    assert batch.frames.is_pinned()
    assert batch.scores.is_pinned()
