"""Questions, answers, learning meanwhile, and what is left after a kill."""

from __future__ import annotations

import itertools
import threading
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from pyseg.errors import ArgumentError, UserError
from pyseg.labels import LabelCorrelation, count_cooccurrence
from pyseg.rate.answers import AnswerFile
from pyseg.rate.doubts import Doubt
from pyseg.rate.learner import Learner
from pyseg.rate.questions import RANDOM, Answers
from pyseg.rate.session import Session
from pyseg.rate.stopping import Stopping
from pyseg.rate.strategies import register_strategy
from pyseg.rate.views import QuestionView
from tests.rate.simulation import World, generated

Made = list[Session]


@pytest.fixture(scope="module")
def world() -> World:
    return generated(0, segments=120, width=8)


@pytest.fixture
def made() -> Any:
    """Sessions to close at the end of the test."""
    sessions: Made = []
    yield sessions
    for session in sessions:
        session.close()


def begin(
    made: Made, world: World, folder: Path, rater: str = "ann", every: int = 10, **options: Any
) -> Session:
    learner = options.pop("learner", None) or Learner(world.pool)
    file = AnswerFile(folder / "ratings.csv", rater)
    options.setdefault("stopping", Stopping(Learner(world.pool, folds=0)))
    made.append(Session(world.pool, file, learner, every=every, **options))
    return made[-1]


def truth(world: World, view: QuestionView) -> str:
    segment = world.pool.find(view.video, view.start, view.end)
    return "yes" if world.truth[segment, world.pool.class_names.index(view.name)] else "no"


def pair(view: QuestionView) -> tuple[str, float, str]:
    return view.video, view.start, view.name


def answer(session: Session, world: World, count: int) -> list[QuestionView]:
    """Answers the next questions with the truth."""
    views = []
    for _ in range(count):
        view = session.question()
        assert view is not None
        assert session.answer(view.id, truth(world, view))  # type: ignore[arg-type]
        views.append(view)
    return views


def wait(condition: Any) -> None:
    """Waits until a thread has got there."""
    end = time.monotonic() + 60
    while not condition():
        assert time.monotonic() < end
        time.sleep(0.01)


def test_answers_are_in_the_file_and_questions_do_not_repeat(
    world: World, tmp_path: Path, made: Made
) -> None:
    session = begin(made, world, tmp_path)
    first = session.question()
    assert first == session.question() == session.question(ahead=0)
    following = session.question(ahead=1)
    assert first is not None
    session.answer(first.id, "skip")
    assert session.question() == following
    views = [first, *answer(session, world, 60)]
    assert len({pair(view) for view in views}) == 61
    rows = AnswerFile(tmp_path / "ratings.csv", "bob").rows()
    assert [(row.video, row.start, row.name) for row in rows] == [pair(view) for view in views]
    assert [row.reason for row in rows] == [view.reason for view in views]
    assert rows[0].score is None
    assert {row.score for row in rows[1:]} == {0.0, 1.0}
    progress = session.progress()
    assert (progress.asked, progress.answered, progress.skipped) == (61, 60, 1)
    assert sum(one.yes + one.no for one in progress.classes) == 60
    assert sum(view.reason == RANDOM for view in views) == pytest.approx(61 / 5, abs=3)


def test_random_questions_are_about_the_videos_that_training_holds_out(
    world: World, tmp_path: Path, made: Made
) -> None:
    sample = world.pool.held_out(0.3, 0)
    assert 0 < sample.sum() < len(sample)
    ids = {world.pool.ids[video] for video in world.pool.videos[sample]}
    session = begin(made, world, tmp_path, sample=sample)
    views = answer(session, world, 40)
    assert {view.video in ids for view in views if view.reason == RANDOM} == {True}
    assert {view.video in ids for view in views if view.reason != RANDOM} == {False}


def test_what_another_rater_has_answered_is_not_asked(
    world: World, tmp_path: Path, made: Made
) -> None:
    one, two = (begin(made, world, tmp_path, rater) for rater in ("ann", "bob"))
    views = [
        pair(view) for _ in range(30) for view in (*answer(one, world, 1), *answer(two, world, 1))
    ]
    assert len(set(views)) == 60
    first = two.question()
    assert first is not None
    other = begin(made, world, tmp_path, "eve")
    other.answer(first.id, "yes")
    assert two.question() != first
    (tmp_path / "ratings.csv").write_text("video,start,end,class,score,rater,reason,time\n")
    two.question()
    assert any("has lost 61 lines" in note for note in two.progress().notes)


def test_the_model_learns_meanwhile(world: World, tmp_path: Path, made: Made) -> None:
    learned: list[int] = []

    class Noted(Learner):
        def fit(self, answers: Answers) -> Any:
            learned.append(len(answers))
            return super().fit(answers)

    session = begin(made, world, tmp_path, learner=Noted(world.pool))
    answer(session, world, 9)
    assert learned == [0]
    for _ in range(8):
        before = len(learned)
        answer(session, world, 10)
        wait(lambda before=before: len(learned) > before and not session.progress().learning)
    assert all(later - earlier >= 10 for earlier, later in itertools.pairwise(learned))
    assert session.progress().advice


def test_questions_need_not_wait_for_learning(world: World, tmp_path: Path, made: Made) -> None:
    held, released = threading.Event(), threading.Event()

    class Slow(Learner):
        def fit(self, answers: Answers) -> Any:
            if len(answers):
                held.set()
                assert released.wait(60)
            return super().fit(answers)

    session = begin(made, world, tmp_path, learner=Slow(world.pool))
    answer(session, world, 10)
    assert held.wait(60)
    assert session.progress().learning
    views = answer(session, world, 50)  # more than were chosen ahead
    assert len({pair(view) for view in views}) == 50
    released.set()
    wait(lambda: not session.progress().learning)
    assert not {pair(view) for view in answer(session, world, 20)} & {pair(view) for view in views}


def test_a_killed_session_goes_on(world: World, tmp_path: Path, made: Made) -> None:
    first = begin(made, world, tmp_path)
    views = answer(first, world, 25)
    waiting = first.question()
    assert waiting is not None
    progress = first.progress()
    second = begin(made, world, tmp_path)  # the first one was never closed
    assert second.progress()._replace(advice="", notes=(), learning=False) == progress._replace(
        advice="", notes=(), learning=False
    )
    late = views[-1]
    assert second.answer(late.id, truth(world, late))  # type: ignore[arg-type]
    assert not second.answer(late.id, "skip")  # a window that has fallen behind
    assert second.answer(waiting.id, "yes")  # an answer that was on its way
    rows = AnswerFile(tmp_path / "ratings.csv", "ann").rows()
    assert len(rows) == 26
    assert rows[-1].reason == ("random" if waiting.reason == RANDOM else "change")
    again = answer(second, world, 40)
    assert not {pair(view) for view in again} & {pair(view) for view in [*views, waiting]}


def test_undo_asks_again(world: World, tmp_path: Path, made: Made) -> None:
    session = begin(made, world, tmp_path)
    assert session.undo() is None
    first, last = answer(session, world, 2)
    following = session.question()
    assert session.progress().undoable == last.id
    back = session.undo()
    assert back is not None
    assert back == session.question()
    assert (back.id, back.before) == (last.id, truth(world, last))
    assert session.question(ahead=1) == following
    assert session.progress().answered == 1
    assert session.progress().undoable == first.id
    assert session.answer(last.id, "skip")
    assert session.question() == following
    assert session.progress().skipped == 1
    resumed = begin(made, world, tmp_path)
    undone = resumed.undo()
    assert undone is not None
    assert (undone.id, undone.before) == (last.id, "skip")


def test_two_raters_share_a_file(world: World, tmp_path: Path, made: Made) -> None:
    ann, bob = (begin(made, world, tmp_path, rater) for rater in ("ann", "bob"))
    of_ann = answer(ann, world, 20)
    of_bob = answer(bob, world, 40)
    # What both were asked before either had answered may be the same, nothing later.
    assert len({pair(view) for view in of_ann} & {pair(view) for view in of_bob}) <= 1
    view = of_ann[3]
    assert bob.answer(view.id, "no" if truth(world, view) == "yes" else "yes")
    [note] = [note for note in bob.progress().notes if note.startswith("Raters disagree")]
    assert view.name in note
    assert view.video in note
    assert bob.progress().undoable == view.id


def test_ratings_of_the_data_are_not_asked(world: World, tmp_path: Path, made: Made) -> None:
    segments, labels = (axis.ravel() for axis in np.indices(world.truth.shape))
    known = (segments >= 30) | (labels != 2)
    scores = world.truth[segments, labels].astype(np.float32)
    columns = segments[known], labels[known], scores[known], np.zeros(known.sum(), bool)
    session = begin(made, world, tmp_path, rated=Answers(*columns))
    views = answer(session, world, 30)
    assert {view.name for view in views} == {"dog"}
    assert session.question() is None
    assert session.question(ahead=1) is None
    assert session.progress().answered == 30
    assert "Ratings of the data, which are learned from, too: 450." in session.progress().notes
    assert session.undo() is not None
    assert session.question() is not None


def test_intervals_of_people_count_for_the_segments_they_cover(
    world: World, tmp_path: Path, made: Made
) -> None:
    lines = "v0000,0,12.4,dog,1\nv0000,17,20,cat,1\nv0001,0,5,sun,0\n"
    (tmp_path / "ratings.csv").write_text("video,start,end,class,score\n" + lines)
    session = begin(made, world, tmp_path)
    progress = session.progress()
    assert progress.answered == 3  # dog from 0 to 10 s, and sun
    [note] = [note for note in progress.notes if "other videos or classes" in note]
    assert note.endswith(": 1.")
    assert progress.undoable is None
    asked = answer(session, world, 80)
    assert not {("v0000", 0.0, "dog"), ("v0000", 5.0, "dog")} & {pair(view) for view in asked}


def test_a_second_look(world: World, tmp_path: Path, made: Made) -> None:
    ordinary = begin(made, world, tmp_path)
    views = answer(ordinary, world, 6)
    doubts = []
    for view in (views[4], views[1]):
        segment = world.pool.find(view.video, view.start, view.end)
        assert segment is not None
        label = world.pool.class_names.index(view.name)
        score = float(truth(world, view) == "yes")
        doubts.append(Doubt(0, segment, label, score, 0.25, 2.0))
    session = begin(made, world, tmp_path, second_look=doubts)
    first = session.question()
    assert first is not None
    assert first.second_look
    assert (first.before, first.reason, first.note) == (None, "check", "")
    assert session.progress().notes == ()
    assert pair(first) == pair(views[4])
    assert session.progress().remaining == 2
    assert session.undo() is None  # the first look's answers stay
    earlier = truth(world, views[4])
    other: Any = "no" if earlier == "yes" else "yes"
    assert session.answer(first.id, other)
    assert session.progress().notes == (
        f"{first.name} in {first.video} from {first.start:g} to {first.end:g} s: {earlier} at the "
        f"first look, which the model gives a probability of 0.25, {other} now.",
    )
    second = session.question()
    assert second is not None
    assert pair(second) == pair(views[1])
    assert session.progress().remaining == 1
    back = session.undo()
    assert back is not None
    assert (back.id, back.before) == (first.id, other)
    assert session.progress().notes == ()
    assert session.answer(first.id, other)
    session.answer(second.id, "skip")
    assert session.question() is None
    assert session.progress().answered == 5
    rows = AnswerFile(tmp_path / "ratings.csv", "ann").rows()
    assert rows[-2].score == (1.0 if other == "yes" else 0.0)
    with pytest.raises(KeyError):
        session.answer(views[0].id, "yes")


def test_a_failing_model_loses_nothing(
    world: World, tmp_path: Path, made: Made, caplog: pytest.LogCaptureFixture
) -> None:
    class Failing(Learner):
        broken = True

        def fit(self, answers: Answers) -> Any:
            if len(answers) and self.broken:
                raise RuntimeError("no more memory")
            return super().fit(answers)

    learner = Failing(world.pool)
    session = begin(made, world, tmp_path, learner=learner)
    answer(session, world, 10)
    wait(lambda: any("no more memory" in note for note in session.progress().notes))
    assert "learning from the answers failed" in caplog.text
    assert len(answer(session, world, 60)) == 60
    assert len(AnswerFile(tmp_path / "ratings.csv", "ann").rows()) == 70
    wait(lambda: not session.progress().learning)
    learner.broken = False
    answer(session, world, 20)
    wait(lambda: not any("no more memory" in note for note in session.progress().notes))


def test_ids_and_answers_that_cannot_be(world: World, tmp_path: Path, made: Made) -> None:
    session = begin(made, world, tmp_path)
    view = session.question()
    assert view is not None
    segment, label, kind, digest = view.id.split("-")
    changed = f"{segment}-{label}-{'r' if kind == 'c' else 'c'}"
    other = "0" * 16
    for id in ("", "x", view.id + "\n", f"999999-{label}-c-{digest}", f"{segment}-9-c-{digest}"):
        with pytest.raises(KeyError):
            session.answer(id, "yes")
    with pytest.raises(KeyError):
        session.answer(f"{changed}-{other}", "yes")
    with pytest.raises(ArgumentError, match="verdict: expected yes, no or skip, found 'maybe'"):
        session.answer(view.id, "maybe")  # type: ignore[arg-type]
    with pytest.raises(ArgumentError, match="every: expected at least 1, found 0"):
        begin(made, world, tmp_path, every=0)
    with pytest.raises(ArgumentError, match="strategy"):
        begin(made, world, tmp_path, strategy="psychic")


def test_an_answer_that_cannot_be_stored_is_told(
    world: World, tmp_path: Path, made: Made, monkeypatch: pytest.MonkeyPatch
) -> None:
    session = begin(made, world, tmp_path)
    view = session.question()
    assert view is not None

    def full(*_: object) -> None:
        raise OSError(28, "No space left on device")

    with monkeypatch.context() as patch:
        patch.setattr(AnswerFile, "add", full)
        with pytest.raises(UserError, match="could not be stored: No space left on device"):
            session.answer(view.id, "yes")
    assert session.question() == view
    assert session.answer(view.id, "yes")
    monkeypatch.setattr(AnswerFile, "undo", full)
    with pytest.raises(UserError, match="could not be taken back: No space"):
        session.undo()
    assert session.progress().answered == 1


def test_threads_may_answer_at_once(world: World, tmp_path: Path, made: Made) -> None:
    session = begin(made, world, tmp_path)
    problems: list[BaseException] = []

    def rate() -> None:
        try:
            for _ in range(15):
                if (view := session.question()) is not None:
                    session.answer(view.id, truth(world, view))  # type: ignore[arg-type]
                    session.progress()
        except BaseException as error:
            problems.append(error)

    threads = [threading.Thread(target=rate) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert not problems
    rows = AnswerFile(tmp_path / "ratings.csv", "ann").rows()
    assert len({row.question for row in rows}) == len(rows) >= 15


def test_a_strategy_and_a_correlation_choose(world: World, tmp_path: Path, made: Made) -> None:
    seen = []

    @register_strategy("first")
    def first(state: Any) -> np.ndarray:
        seen.append(state)
        return -np.arange(len(state.pool))[:, None] * np.ones(4, np.float32)

    counted = count_cooccurrence([0, 2, 4], [0, 1, 0, 1], 4)
    correlation = LabelCorrelation.from_counts(counted, 0.5)
    learner = Learner(world.pool, correlation=correlation)
    session = begin(made, world, tmp_path, strategy="first", learner=learner)
    views = [view for view in answer(session, world, 10) if view.reason == "first"]
    assert views[0].video == "v0000"
    assert seen[0].correlation is correlation
