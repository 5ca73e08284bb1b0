"""The command ``python -m pyseg.extract``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence

from pyseg import _cli
from pyseg._memory import keep_memory
from pyseg._text import counted
from pyseg.data.importing import class_table
from pyseg.extract import manifest
from pyseg.extract.config import ExtractConfig
from pyseg.extract.extraction import Extraction, extract
from pyseg.runs import Run

_TOLD = 5  # videos that are told of by name


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.extract``."""
    keep_memory()
    parser = _cli.make_parser(
        ExtractConfig,
        "pyseg.extract",
        "Computes features of videos with any network, and writes them with their ratings as a "
        "collection that --data takes.",
        several={"videos": "Videos as files, folders or globs"},
    )
    config = _cli.parse(parser, ExtractConfig, argv)
    with _cli.option_group(""):
        done = extract(config)
    for line in summary(done):
        print(line)
    print(f"written to {config.out}; what became of each video: {manifest.FILE}; next:")
    for line in _next(config, done):
        print(line)


def _next(config: ExtractConfig, done: Extraction) -> Iterator[str]:
    """Yields lines on what to do with the collection."""
    out = shlex.quote(config.out)
    if done.report.rated:
        yield _cli.follow_up(f"pyseg.train --data {out}")
        return
    if config.like is None:
        yield _cli.follow_up(f"pyseg.rate --data {out} --classes CLASS,CLASS")
        yield "or, to predict the videos with a run:"
        if done.features.has_own_ranges:
            where = "" if config.keep_parts else " and another --out"
            yield f"this command with --like RUN{where}; then:"
    is_run = config.like is not None and Run(config.like).config_file.exists()
    run = shlex.quote(str(config.like)) if is_run else "RUN"
    yield _cli.follow_up(f"pyseg.predict --run {run} --data {out}")


def summary(done: Extraction) -> Iterator[str]:
    """Yields lines on what was done."""
    for status, what in (("skipped", "could not be read"), ("truncated", "ended early")):
        found = [(video, o) for video, o in done.outcomes if o.status == status]
        if found:
            yield f"{len(found)} of {counted(len(done.outcomes), 'video')} {what}:"
            for video, outcome in found[:_TOLD]:
                reason = str(outcome.reason)
                yield "  " + (reason if video.path in reason else f"{video.path}: {reason}")
            if len(found) > _TOLD:
                yield f"  and {len(found) - _TOLD} more, see {manifest.FILE}"
    corrupt = [outcome.corrupt_frames for _, outcome in done.outcomes if outcome.corrupt_frames]
    if corrupt:
        frames, videos = counted(sum(corrupt), "damaged frame"), counted(len(corrupt), "video")
        yield f"{frames} in {videos}"
    if renamed := sum(video.note is not None for video, _ in done.outcomes):
        yield f"{counted(renamed, 'video')} with an id other than the name, see {manifest.FILE}"
    yield from done.report.lines()
    yield from class_table(done.report)
