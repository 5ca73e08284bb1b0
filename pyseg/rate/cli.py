"""The command ``python -m pyseg.rate``."""

from __future__ import annotations

import shlex
from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt

from pyseg import _cli
from pyseg._memory import keep_memory
from pyseg._table import Table
from pyseg._text import counted
from pyseg.errors import UserError
from pyseg.rate.answers import AnswerFile
from pyseg.rate.config import RateConfig
from pyseg.rate.doubts import LEAST_ANSWERS, Doubt, rank_doubts, worth_a_look
from pyseg.rate.learner import Learner
from pyseg.rate.ledger import Known, Ledger, verdict_of
from pyseg.rate.media import Media
from pyseg.rate.pool import Pool
from pyseg.rate.questions import Answers
from pyseg.rate.server import serve
from pyseg.rate.session import Session
from pyseg.rate.sources import (
    Records,
    RunKnowledge,
    class_names,
    count_correlation,
    files_of,
    unknown_classes,
)
from pyseg.rate.stopping import Stopping
from pyseg.rate.strategies import find_strategy

FOLDS = 5
"""Parts of the videos for cross-fitting."""

_SHOWN_CLASSES = 20  # in the table at the end


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.rate``."""
    keep_memory()
    parser = _cli.make_parser(
        RateConfig,
        "pyseg.rate",
        "Asks on a local web page whether segments of videos show classes: what teaches a model "
        "most. Every answer is stored at once.",
        several={"videos": "Videos to show, as files, folders or globs"},
    )
    config = _cli.parse(parser, RateConfig, argv)
    _cli.check_in("links", config.links)
    _cli.check_continued("out", config.out, links=config.links)
    with _cli.option_group(""):
        rate(config)


@dataclass(frozen=True)
class _Setting:
    """All that a session is made of."""

    records: Records
    media: Media
    file: AnswerFile
    pool: Pool
    learner: Learner
    stopping: Stopping
    ledger: Ledger
    sample: npt.NDArray[np.bool_] | None


def rate(config: RateConfig) -> None:
    """Asks questions on a page until the user ends it.

    Raises:
        pyseg.errors.ArgumentError: An option does not fit the data; the message names it.
        pyseg.errors.UserError: See above, or a package is missing.
        pyseg.errors.DataError: A file is malformed.
        pyseg.errors.RecordError: A record is damaged.
        OSError: A file cannot be read or written.
    """
    find_strategy(config.strategy)
    rater = config.name_of_rater()
    with _cli.option("data", config.data):
        records = Records.read(config.data, config.on_error)
    run = None
    if config.run is not None:
        run = RunKnowledge.of(config.run, config.data, config.on_error, config.device)
    media, notes = _find_media(config, records)
    rows = AnswerFile(config.out, rater).rows() if Path(config.out).exists() else []
    names = class_names(config.classes, [row.name for row in rows], records, run)
    known = [*records.names, *(() if run is None else run.names)]
    notes += tuple(unknown_classes(names, known) if config.classes else ())
    pool = Pool.read(config.data, names, ids=media.ids, on_error=config.on_error)
    rated = records.rated(pool)
    ledger = Ledger(pool, rater, rated)
    said = ledger.read(rows)
    if config.check:
        _check_answers(config, said, rater)
    correlation = None if run is None else run.correlation(names)
    if correlation is None:
        correlation = count_correlation(records, pool, said.answers)
    offsets = None if run is None else run.logits(pool)
    learner, judge = (
        Learner(
            pool,
            correlation=correlation,
            offsets=offsets,
            folds=folds,
            model=config.model,
            seed=config.seed,
        )
        for folds in (FOLDS, 0)
    )
    for note in notes:
        print(note)
    print(
        f"{counted(len(pool), 'segment', ',')} of {counted(len(pool.ids), 'video', ',')}, "
        f"{counted(len(names), 'class', ',')}, {counted(len(rated), 'rating', ',')} of the data, "
        f"{counted(len(rows), 'line', ',')} in {config.out}"
    )
    if len(said.answers):
        print(f"learning from {len(said.answers):,} answers and ratings", flush=True)
    file = AnswerFile(config.out, rater)
    stopping = Stopping(judge, threshold=config.gain, seed=config.seed)
    split = (config.test_fraction, config.seed) if run is None else run.split
    sample, note = _find_sample(pool, *split)
    print(note)
    setting = _Setting(records, media, file, pool, learner, stopping, ledger, sample)
    doubts = _second_look(setting) if config.check else None
    _ask(config, setting, rated=rated, doubts=doubts)


def _find_sample(
    pool: Pool, fraction: float, seed: int
) -> tuple[npt.NDArray[np.bool_] | None, str]:
    """Returns the segments of random questions, None for all; and a line that says so."""
    sample = pool.held_out(fraction, seed)
    if not sample.any() or sample.all():
        return None, "questions drawn at random, one in five, are about all videos"
    count = len(np.unique(pool.videos[sample]))
    return sample, (
        f"questions drawn at random, one in five, are about the {count:,} of {len(pool.ids):,} "
        "videos that training will hold out, all others about the rest"
    )


def _find_media(config: RateConfig, records: Records) -> tuple[Media, tuple[str, ...]]:
    """Returns what can be shown of the videos, and notes on what cannot."""
    videos = config.videos or files_of(records)
    if not videos and config.links is None:
        raise UserError(
            f"--videos: expected the videos of {config.data}, or --links with a table video,url of "
            "where they are: a rater has to see what the questions are about; found neither"
        )
    with _cli.path_option("videos"):
        media, notes = Media.find(records.ids, videos or None, config.links, known=records.paths)
    if missing := len(records.ids) - len(media):
        notes += (
            f"{missing:,} of {len(records.ids):,} videos of {config.data} have no file and no "
            "link, and are left out",
        )
    return media, notes


def _given(known: Known) -> set[tuple[int, int]]:
    """Returns the segments and classes that the rater has answered, and not skipped."""
    return {pair for pair, said in known.own.items() if said != "skip"}


def _check_answers(config: RateConfig, known: Known, rater: str) -> None:
    """Checks that there are answers enough for a second look."""
    if (found := len(_given(known))) < LEAST_ANSWERS:
        raise UserError(
            f"--check: expected at least {LEAST_ANSWERS} answers of {rater} in {config.out} about "
            f"these videos and classes, as the model learns from them what to doubt; found {found}"
        )


def _second_look(setting: _Setting) -> list[Doubt]:
    """Prints the rater's answers that the model doubts most, and returns them."""
    known = setting.ledger.read(setting.file.rows())
    own = _given(known)
    ranked = rank_doubts(setting.pool, setting.learner.fit(known.answers))
    doubts = worth_a_look([d for d in ranked if (d.segment, d.label) in own])
    pool, rows = setting.pool, []
    for doubt in doubts:
        start, end = pool.times(doubt.segment)
        rows.append(
            [
                pool.video_of(doubt.segment),
                f"{start:g}",
                f"{end:g}",
                pool.class_names[doubt.label],
                verdict_of(doubt.score),
                f"{doubt.confidence:.3f}",
            ]
        )
    print(f"the {len(doubts)} of {len(own)} answers that the model doubts most:")
    head = ["video", "start", "end", "class", "answer", "probability"]
    print(Table(head, rows, numeric=(1, 2, 5)).markdown())
    return doubts


def _ask(
    config: RateConfig, setting: _Setting, *, rated: Answers, doubts: Sequence[Doubt] | None
) -> None:
    """Serves the page, and then says what was answered."""
    session = Session(
        setting.pool,
        setting.file,
        setting.learner,
        strategy=config.strategy,
        every=config.every,
        stopping=setting.stopping,
        rated=rated,
        second_look=doubts,
        sample=setting.sample,
        seed=config.seed,
    )
    try:
        serve(session, setting.media, port=config.port, open_browser=config.browser)
    except KeyboardInterrupt:
        pass  # before the page was open
    finally:
        session.close()
        known = setting.ledger.read(setting.file.rows())
        if doubts is not None:
            own = known.own
            changed = sum(own[d.segment, d.label] != verdict_of(d.score) for d in doubts)
            print(f"{changed} of {counted(len(doubts), 'answer')} changed at the second look")
        for line in _summary(session):
            print(line)
        for line in _next(config, extracted=bool(setting.records.paths) and not known.rated):
            print(line)


def _summary(session: Session) -> Iterator[str]:
    """Yields lines on what was answered, by all raters."""
    progress = session.progress()
    counts = [
        (one.name, one.yes, one.no, skipped)
        for one, skipped in zip(progress.classes, session.skipped, strict=True)
        if one.yes + one.no + skipped
    ]
    most = np.argsort([-(yes + no) for _, yes, no, _ in counts], kind="stable")
    rows = [[counts[row][0], *(f"{n:,}" for n in counts[row][1:])] for row in most]
    if rows:
        table = Table(["class", "yes", "no", "skipped"], rows[:_SHOWN_CLASSES], numeric=(1, 2, 3))
        yield table.markdown()
    if len(rows) > _SHOWN_CLASSES:
        yield f"and {counted(len(rows) - _SHOWN_CLASSES, 'more class')}"
    if progress.held_out is not None:
        held = progress.held_out
        yield (
            f"held-out score {held.score:.3f} +- {held.error:.3f} on {held.answers} random "
            f"answers: {held.metric}"
        )
    if progress.advice:
        yield progress.advice
    yield from progress.notes


def _next(config: RateConfig, *, extracted: bool) -> Iterator[str]:
    """Yields lines on how to go on, and how to learn from the answers.

    Args:
        config: The options.
        extracted: Whether `pyseg.extract` wrote the data, without ratings that are not in the file.
    """
    data, out = shlex.quote(config.data), shlex.quote(config.out)
    yield f"answers: {config.out}; the same command goes on; to learn from them:"
    if extracted:
        yield f"the pyseg.extract command that wrote {config.data}, with --ratings {out}; then:"
        yield _cli.follow_up(f"pyseg.train --data {data} --model linear")
        return
    rated = "rated"
    if Path(config.data).is_dir():
        rated = shlex.quote(f"{Path(config.data)}-rated")
    yield _cli.follow_up(f"pyseg.data import --features {data} --ratings {out} --out {rated}")
    yield _cli.follow_up(f"pyseg.train --data {rated} --model linear")
