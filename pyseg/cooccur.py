"""Counts label pairs and writes their correlation: ``python -m pyseg.cooccur --labels <table>``.

See `pyseg.labels`. ``--loss.correlation`` of `pyseg.train` reads the file that it writes. Under
torchrun, the TFRecord files are divided over the processes (`pyseg.distributed`).
"""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import torch

from pyseg import _cli, _text, distributed
from pyseg._progress import Progress
from pyseg._remote import size_of
from pyseg.data import ReadReport, vocabulary, youtube8m
from pyseg.data._tables import read_ids
from pyseg.data.collection import find_data, open_collection
from pyseg.data.formats import Inspector
from pyseg.data.label_lists import LabelLists, read_label_records, read_label_table
from pyseg.data.records import OnError
from pyseg.data.shards import find_shards
from pyseg.errors import DataError, MissingFileError, RecordError, UserError
from pyseg.labels import (
    Cooccurrence,
    CooccurrenceCounter,
    LabelCorrelation,
    prior_strength,
)
from pyseg.metrics._distributed import gather


@dataclass
class CooccurConfig:
    """What to count, and which relations to keep.

    Args:
        out: The file to write, for example correlation.npz.
        labels: A table of label lists; lines "id,label label ...", plain or gzip-compressed.
        data: TFRecords, frame-level or video-level; a folder, glob, file or URL. With --labels,
            both are counted.
        exclude_ids: A file with the ids of videos to leave out; one per line, or a table as for
            --labels. For example the test videos.
        num_classes: Number of classes C; default: that of --vocabulary, or else of the collection
            --data; of a table alone YouTube-8M's 3,862.
        threshold: The lowest probability of a relation to keep; equation (5) of the paper.
        min_support: The lowest number of videos of a pair to keep.
        prior: Videos that the base rates of labels are worth where probabilities are counted
            (`pyseg.labels.prior_strength`): 0: none (eq. 4); "fit": what the counts say.
        classes: A vocabulary of the classes to keep: its column Index, and Name for the output, as
            in segment_vocabulary.csv; default: all.
        vocabulary: A vocabulary of all classes' names, only for the output.
        top: Number of the strongest relations to print.
        on_error: "raise" at a damaged record, or "skip" and report it.

    Raises:
        ValueError: A value is out of its range.
    """

    out: str
    labels: str | None = None
    data: str | None = None
    exclude_ids: str | None = None
    num_classes: int | None = None
    threshold: float = 0.5
    min_support: int = 1
    prior: float | Literal["fit"] = 0.0
    classes: str | None = None
    vocabulary: str | None = None
    top: int = 10
    on_error: OnError = "raise"

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        _cli.check_range("num_classes", self.num_classes, 1, 2**31 - 1)
        _cli.check_range("threshold", self.threshold, 0, 1)
        _cli.check_range("min_support", self.min_support, 1)
        if self.prior != "fit":
            _cli.check_range("prior", self.prior, 0)
        _cli.check_range("top", self.top, 0)


def count(config: CooccurConfig, report: ReadReport | None = None) -> tuple[Cooccurrence, int]:
    """Counts the labels in the files of `config`; returns counts and the number of excluded videos.

    In a distributed run every process reads a part of the TFRecord files, the first one also the
    table, and all get the same result.

    Args:
        config: The options.
        report: Receives the problems found in records, by all processes; the caller reports them.

    Raises:
        pyseg.errors.DataError: A table is malformed, or there are no videos.
    """
    own = None if report is None else ReadReport()

    exclude = read_ids(config.exclude_ids) if config.exclude_ids else set()
    data = find_data(config.data) if config.data else ""
    paths = find_shards(data) if data else []
    inspector = Inspector(data, "skip")
    if config.labels is None and not paths:
        raise UserError("expected --labels or --data, found neither")
    num_classes = _num_classes(config)
    counter = CooccurrenceCounter(num_classes)
    paths = paths[distributed.rank() :: distributed.world_size()]
    labels = config.labels if distributed.is_first() else None
    left_out = 0
    sizes = {path: max(0, size_of(path)) for path in [*paths, *([labels] if labels else [])]}
    with Progress("counting", "B", sum(sizes.values()), scale=True) as bar:

        def keep(id: str) -> bool:
            return id not in exclude

        def sources() -> Iterator[tuple[str, Iterator[LabelLists]]]:
            if labels:
                yield labels, read_label_table(labels, exclude=exclude, progress=bar.update)
            for path in paths:
                yield (
                    path,
                    read_label_records(
                        path,
                        keep=keep,
                        id_key=inspector.id_key(path),
                        on_error=config.on_error,
                        report=own,
                    ),
                )
                bar.update(sizes[path])

        for name, blocks in sources():
            for lists in blocks:
                left_out += lists.left_out
                try:
                    counter.update(lists.offsets, lists.labels)
                except ValueError as error:
                    raise DataError(f"{name}: {error} (--num_classes {num_classes})") from None
    if report is not None and own is not None:
        report += distributed.total(own)
    counted, left_out = _together(counter.finish(), left_out)
    if not counted.num_videos and not left_out:
        given = [source for source in (config.labels, config.data) if source]
        raise DataError(f"{' and '.join(given)}: expected videos, found none")
    if config.exclude_ids and not left_out:
        print(f"--exclude_ids {config.exclude_ids}: none of its {len(exclude)} ids is in the data")
    return counted, left_out


def _num_classes(config: CooccurConfig) -> int:
    """Returns the number of classes that the options give, or the files that they name.

    Raises:
        pyseg.errors.UserError: The records do not say what their classes are.
    """
    if config.num_classes is not None:
        return config.num_classes
    if config.vocabulary is not None:
        return len(vocabulary.read_vocabulary(config.vocabulary))
    if config.data is None:
        return youtube8m.NUM_CLASSES
    try:
        return open_collection(config.data, on_error=config.on_error).num_classes
    except RecordError:
        raise
    except (DataError, MissingFileError) as error:
        raise UserError(f"{error}; or give --num_classes") from error


def _together(counted: Cooccurrence, left_out: int) -> tuple[Cooccurrence, int]:
    """Returns the sums over all processes."""
    arrays = counted.counts, counted.offsets, counted.columns, counted.values
    own = np.array([counted.num_videos, left_out])
    (numbers, *first), *others = gather([own, *arrays])
    merged = Cooccurrence(int(numbers[0]), *first)
    for other, *rest in others:
        merged = merged.merge(Cooccurrence(int(other[0]), *rest))
        numbers = numbers + other
    return merged, int(numbers[1])


def main(argv: Sequence[str] | None = None) -> None:
    """Counts label pairs, writes their correlation and prints a summary."""
    parser = _cli.make_parser(
        CooccurConfig,
        "pyseg.cooccur",
        "Counts label pairs and writes their correlation.",
        torchrun=True,
    )
    config = _cli.parse(parser, CooccurConfig, argv)
    names = ("labels", "data", "exclude_ids", "classes", "vocabulary")
    _cli.check_out("out", config.out, **{name: getattr(config, name) for name in names})
    with distributed.session(torch.device("cpu")):
        _run(config)


def _run(config: CooccurConfig) -> None:
    kept: list[int] | None = None
    names: dict[int, str] = {}
    if config.vocabulary:
        names = dict(enumerate(vocabulary.read_vocabulary(config.vocabulary)))
    if config.classes:
        chosen = vocabulary.read_segment_vocabulary(config.classes)
        kept = chosen.classes
        names |= dict(zip(chosen.classes, chosen.names, strict=True))
    report = ReadReport()
    counted, left_out = count(config, report)
    strength = prior_strength(counted) if config.prior == "fit" else config.prior
    with _cli.option("classes", config.classes):
        correlation = LabelCorrelation.from_counts(
            counted, config.threshold, kept, min_support=config.min_support, prior=strength
        )
    if distributed.is_first():
        correlation.save(config.out)
    if summary := report.summary():
        print(f"records: {summary}")
    print(f"videos: {counted.num_videos}, left out: {left_out}")
    print(f"labels: {counted.counts.sum()} of {_text.counted((counted.counts > 0).sum(), 'class')}")
    print(f"pairs: {counted.values.sum()}, different: {len(counted.values)}")
    if config.prior == "fit":
        print(f"base rates are worth {strength:.3g} videos")
    print(f"relations of at least {config.threshold:g}: {len(correlation.values)}")
    numbers = range(correlation.num_classes) if kept is None else kept
    for line in strongest(correlation, counted, list(numbers), names, config.top):
        print(line)
    print(f"correlation: {config.out}")


def strongest(
    correlation: LabelCorrelation,
    counted: Cooccurrence,
    numbers: list[int],
    names: dict[int, str],
    top: int,
) -> Iterator[str]:
    """Yields a line for each of the strongest relations, ties by decreasing frequency."""
    rows = np.repeat(np.arange(correlation.num_classes), np.diff(correlation.offsets.numpy()))
    columns, values = correlation.columns.numpy(), correlation.values.numpy()
    seen = counted.counts[np.array(numbers)[rows]] * values
    for at in np.lexsort((-seen, -values))[:top]:
        one, other = (numbers[k] for k in (rows[at], columns[at]))
        yield (
            f"  {names.get(one, one)} -> {names.get(other, other)}: {values[at]:.2f} "
            f"of {_text.counted(counted.counts[one], 'video')}"
        )


if __name__ == "__main__":
    _cli.run(main)
