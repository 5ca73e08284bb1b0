from __future__ import annotations

import numpy as np
import pytest
import torch
from torch import nn
from torch.utils.data import IterableDataset

from pyseg.data import Example, Ratings, collate, encode_frames, encode_video, write_records
from pyseg.errors import DataError, RecordError, UserError
from pyseg.evaluate import (
    label_metrics,
    main,
    predictions,
    rank_ratings,
)
from pyseg.metrics import map_at_k
from pyseg.results import RatedResult


class Listed(IterableDataset):
    def __init__(self, examples):
        self.examples = examples

    def __iter__(self):
        return iter(self.examples)


class Mean(nn.Module):
    """Logits are the means of the valid frames."""

    def __init__(self):
        super().__init__()
        self.scale = nn.Parameter(torch.ones(()))

    def forward(self, frames, num_frames):
        assert not self.training
        return self.scale * frames.float().sum(1) / num_frames.unsqueeze(1)


def example(name, length, classes, scores):
    frames = np.full((length, 3), length, np.uint8)
    return Example(name, frames, np.array(classes, np.int64), np.array(scores, np.float32))


def scored(examples, **options):
    return predictions(Mean(), Listed(examples), **options)


def test_predictions_keep_order_and_mode():
    examples = [example("a", 1, [0], [1]), example("b", 4, [], []), example("c", 2, [2, 1], [0, 1])]
    model = Mean().train()
    found = list(predictions(model, Listed(examples), batch_size=2))
    assert model.training
    assert [batch.ids for batch, _ in found] == [["a", "b"], ["c"]]
    assert [logits.tolist() for _, logits in found] == [[[1.0] * 3, [4.0] * 3], [[2.0] * 3]]


@pytest.mark.parametrize(
    ("precision", "expected"),
    [(None, torch.float32), ("fp32", torch.float32), ("bf16", torch.bfloat16)],
)
def test_predictions_are_in_the_precision_asked_for(precision, expected):
    found = []

    class Product(Mean):
        def forward(self, frames, num_frames):
            found.append((frames.float() @ self.scale.expand(3, 2)).dtype)
            return super().forward(frames, num_frames)

    examples = Listed([example("a", 1, [], [])])
    with torch.autocast("cpu", torch.float16):  # the caller's does not count
        [(_, logits)] = predictions(Product(), examples, precision=precision)
        assert (torch.ones(1, 1) @ torch.ones(1, 1)).dtype == torch.float16
    assert found == [expected]
    assert logits.dtype == np.float32


@pytest.mark.parametrize("batch_size", [1, 3, 10])
def test_ranks_are_among_rated_pairs_only(batch_size):
    # Class 0 is rated for the first three and ranks them c, a, b: AP = (1/1 + 2/3) / 2.
    # Class 1 is rated once, negative; class 2 never. d's high score for class 0 is unrated.
    examples = [
        example("a", 2, [0], [0.0]),
        example("b", 1, [0], [1.0]),
        example("c", 3, [0], [1.0]),
        example("d", 9, [1], [0.0]),
    ]
    result = rank_ratings(scored(examples, batch_size=batch_size), 3)
    assert result.per_class.tolist() == pytest.approx([(1 + 2 / 3) / 2, 0, 0])
    assert result.rated.tolist() == [3, 1, 0]


def test_rated_results_count_classes_without_a_positive_or_not():
    # Class 0: AP = (1/1 + 2/3) / 2; class 1 is rated once, negative; class 2 never.
    result = map_at_k([0, 0, 0, 1], [3, 2, 1, 9], [1, 0, 1, 0], num_classes=3)
    found = RatedResult.of(result)
    assert found.map == pytest.approx((1 + 2 / 3) / 2)
    assert found.map_all_classes == pytest.approx((1 + 2 / 3) / 6)
    assert RatedResult.of(result, 2).map_all_classes == pytest.approx((1 + 2 / 3) / 4)
    assert (found.classes, found.rated, found.positives) == (1, 4, 2)
    assert "MAP@100k 0.8333" in found.describe()
    assert "0.2778 over all 3" in found.describe()
    assert found.describe().endswith("4 ratings, 2 positive)")
    only_positive = RatedResult.of(map_at_k([0, 0], [2, 1], [1, 1], num_classes=1))
    assert only_positive.describe().endswith("2 positive; with no negative one it says nothing)")


@pytest.mark.parametrize("split", [1, 2])
def test_label_metrics(split):
    logits = np.array([[300, 100, -5], [-1, 200, 100]], np.float32)  # sigmoid(100) is 1
    batches = [
        collate([example("a", 1, [0, 1], [1, 1])]),
        collate([example("b", 1, [2], [1])]),
    ]
    scored = list(zip(batches, (logits[:1], logits[1:]), strict=True))
    if split == 1:
        both = collate([example("a", 1, [0, 1], [1, 1]), example("b", 1, [2], [1])])
        scored = [(both, logits)]
    result = label_metrics(scored, 3)
    # Video 0: labels 0 and 1 come first and second. Video 1: label 2 comes second.
    assert result.hit_at_1 == pytest.approx(0.5)
    assert result.perr == pytest.approx(0.5)
    # All six in order: 300 hit, 200 miss, 100 hit (video 0), 100 hit (video 1; a tie), ...
    assert result.gap == pytest.approx((1 + 2 / 3 + 3 / 4) / 3)
    assert result.map == pytest.approx(np.mean([1, 1 / 2, 1]))
    assert (result.examples, result.classes) == (2, 3)
    assert "GAP@20" in result.describe()


def test_nothing_to_evaluate_is_an_error():
    with pytest.raises(UserError, match="there is nothing to evaluate: no video"):
        label_metrics(scored([]), 3)


def test_records_of_any_name_serve_as_truth(tmp_path, capsys):
    rated = Ratings(np.array([0, 5]), np.array([1, 1]), np.array([1.0, 0.0]))
    frames = np.ones((12, 1152), np.uint8)
    records = [encode_frames(f"v{k}", frames, [1], rated) for k in range(4)]
    submission = tmp_path / "submission.csv"
    submission.write_text("Class,Segments\n1," + " ".join(f"v{k}:0" for k in range(3)) + "\n")
    for name in ("a.tfrecord-00000-of-00001", "a.tfrec", "a.tfrecords.gz", "validate", "train.csv"):
        path = tmp_path / name
        write_records(path, records, compress="gz" in name)
        for truth in (path, f"{path}*"):
            main(["--submission", str(submission), "--truth", str(truth)])
            assert "8 ratings, 4 positive" in capsys.readouterr().out
        path.unlink()
    path = tmp_path / "damaged.tfrecord"
    write_records(path, records)
    data = bytearray(path.read_bytes())
    data[300] ^= 1
    path.write_bytes(data)
    words = ["--submission", str(submission), "--truth", str(path)]
    with pytest.raises(RecordError, match="record 0"):
        main(words)
    main([*words, "--on_error", "skip"])
    lines = capsys.readouterr().out.splitlines()
    assert "6 ratings, 3 positive" in lines[0]
    assert lines[1].startswith(f"truth: skipped 1 record (the first: {path}: record 0 at byte 0")
    path.write_text("segment,class,score\nv0:0,1,1\n")
    with pytest.raises(RecordError, match="a table of comma-separated values"):
        main(words)


def test_a_truth_without_ratings_names_skipped_records(tmp_path):
    write_records(tmp_path / "a0.tfrecord", [encode_video("v", np.zeros(1152), [1])])
    write_records(tmp_path / "a1.tfrecord", [encode_video("w", np.zeros(1152), [1])])
    frames = np.ones((2, 1152), np.uint8)
    write_records(tmp_path / "b.tfrecord", [encode_frames("v", frames, [1])])
    submission = tmp_path / "submission.csv"
    submission.write_text("1,v:0\n")
    with pytest.raises(
        DataError, match=r"expected ratings of segments, found none; left out 1 fil"
    ):
        main(["--submission", str(submission), "--truth", str(tmp_path)])


def test_a_truth_that_contradicts_itself_and_has_no_positive(tmp_path, capsys):
    truth, submission = tmp_path / "t.csv", tmp_path / "s.csv"
    truth.write_text("segment,class,score\nv0:0,1,1\nv0:5,1,0\nv0:0,1,0\n")
    submission.write_text("1,v0:0\n")
    main(["--submission", str(submission), "--truth", str(truth)])
    lines = capsys.readouterr().out.splitlines()
    assert lines[0] == "MAP@100k nan: none of the 2 ratings is positive, so that no class counts"
    assert lines[1] == "truth: overwrote 1 ratings by later ones of the same pair"
    with pytest.raises(UserError, match=r"--submission \S+: expected a file, found a folder"):
        main(["--submission", str(tmp_path), "--truth", str(truth)])
