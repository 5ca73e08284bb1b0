"""A rater's session: what is asked, what was answered, and learning meanwhile; see `Session`."""

from __future__ import annotations

import contextlib
import hashlib
import logging
import re
import threading
from collections import deque
from collections.abc import Sequence
from typing import get_args

import numpy as np
import numpy.typing as npt

from pyseg.data.hashing import stable_hash
from pyseg.errors import ArgumentError, UserError
from pyseg.rate.answers import AnswerFile
from pyseg.rate.doubts import Doubt
from pyseg.rate.held_out import LEAST, counted, held_out_score
from pyseg.rate.learner import Beliefs, Learner
from pyseg.rate.ledger import Known, Ledger, Pair, verdict_of
from pyseg.rate.pool import Pool
from pyseg.rate.questions import RANDOM, Answers, Question
from pyseg.rate.stopping import Advice, Stopping
from pyseg.rate.strategies import GROUP, State, Strategy, choose
from pyseg.rate.views import (
    ClassView,
    HeldOutView,
    ProgressView,
    QuestionView,
    Verdict,
)

CHECK = "check"
"""The reason of answers at a second look."""

_LOG = logging.getLogger("pyseg")
_SCORES = {"yes": 1.0, "no": 0.0, "skip": None}
_ID = re.compile(r"(\d{1,9})-(\d{1,9})-([cr])-([0-9a-f]{16})")


class Session:
    """Asks a rater about the segments of a pool, and learns from the answers.

    All methods may be called from any thread. Every answer is in the file when `answer` returns,
    and the file is all that is kept: a new session goes on where another one ended, however that
    was. What other raters write into the file meanwhile counts too, and nobody is asked what
    somebody has answered or skipped.

    Questions are chosen ahead, so that none has to be waited for. A thread learns after every
    ``every`` answers, unless it is still learning, and then chooses the next ones anew.

    Args:
        pool: The segments.
        file: The file of answers, with the name of the rater.
        learner: Learns from the answers; with cross-fitting.
        strategy: The strategy that chooses questions, or its name.
        every: Answers after which the model is trained again, at least 1.
        stopping: Says whether further answers pay; None: nothing is said.
        rated: The ratings of the data, which are learned from and not asked again.
        second_look: Answers to look at again, in this order, instead of new questions. What they
            were is told once there is a second answer, which replaces the first.
        sample: (S,) bool, the segments of random questions, see `State`.
        seed: The seed of random choices.

    Raises:
        pyseg.errors.ArgumentError: ``every`` is out of range, or there is no such strategy.
        pyseg.errors.DataError: The file of answers has become something else.
        OSError: It cannot be read.
    """

    def __init__(
        self,
        pool: Pool,
        file: AnswerFile,
        learner: Learner,
        *,
        strategy: Strategy | str = "change",
        every: int = 20,
        stopping: Stopping | None = None,
        rated: Answers | None = None,
        second_look: Sequence[Doubt] | None = None,
        sample: npt.NDArray[np.bool_] | None = None,
        seed: int = 0,
    ) -> None:
        if every < 1:
            raise ArgumentError(f"every: expected at least 1, found {every}")
        self._pool, self._file, self._learner = pool, file, learner
        self._strategy, self._every, self._seed = strategy, every, seed
        self._sample = sample
        self._ledger = Ledger(pool, file.rater, rated)
        self._stopping = stopping
        self._doubts = {(d.segment, d.label): d for d in second_look or ()}
        self._is_check = second_look is not None
        self._lock = threading.RLock()
        self._wake = threading.Condition(self._lock)
        self._closed = self._learning = self._exhausted = False
        self._ahead: list[Question] = []  # what is asked now, and what the rater knows to follow
        self._taken_back: dict[Pair, Verdict] = {}
        self._looked: Question | None = None  # the last one that had a second look
        self._beliefs: Beliefs | None = None
        self._held_out: HeldOutView | None = None
        self._advice: Advice | None = None
        self._problem = ""
        self._thread: threading.Thread | None = None
        self._lines = self._most = 0  # of the file: now, and at most so far
        file.refresh()
        self._known = self._read()
        self._learned = self._lines  # when the model was trained last
        if self._is_check:
            self._queue = deque(Question(*pair, CHECK) for pair in self._doubts)
            return
        self._queue = deque()
        self._must_judge = True
        self._learn()
        self._thread = threading.Thread(target=self._work, name="pyseg-rate", daemon=True)
        self._thread.start()

    def question(self, ahead: int = 0) -> QuestionView | None:
        """Returns the question that is asked now, the same until someone answers it.

        Args:
            ahead: 0 for the question that is asked now, 1 for the one that will follow.

        Returns:
            The question; None if there is none left.
        """
        with self._lock:
            if ahead == 0:
                self._hear()
            while len(self._ahead) <= ahead:
                if (question := self._take()) is None:
                    return None
                self._ahead.append(question)
            return self._view(self._ahead[ahead])

    def answer(self, id: str, verdict: Verdict) -> bool:
        """Stores an answer; on return it is on disk.

        A question that has an answer keeps it, unless it is the one asked now.

        Args:
            id: The id of a question of this session or an earlier one.
            verdict: "yes", "no" or "skip".

        Returns:
            Whether this is the answer that holds now.

        Raises:
            KeyError: There can be no question of this id.
            pyseg.errors.PysegError: The answer could not be stored.
        """
        if verdict not in get_args(Verdict):
            raise ArgumentError(f"verdict: expected yes, no or skip, found {verdict!r:.60}")
        with self._lock:
            question = self._find(id)
            pair = question.segment, question.label
            is_asked = bool(self._ahead) and self._ahead[0][:2] == pair
            if not is_asked and pair in self._known.own:
                return self._known.own[pair] == verdict
            start, end = self._pool.times(question.segment)
            video = self._pool.video_of(question.segment)
            name = self._pool.class_names[question.label]
            try:
                self._file.add(video, start, end, name, _SCORES[verdict], question.reason)
            except OSError as error:
                raise UserError(
                    f"{self._file.path}: the answer could not be stored: {error.strerror}"
                ) from error
            self._ahead = [other for other in self._ahead if other[:2] != pair]
            self._taken_back.pop(pair, None)
            self._known = self._read()
            self._looked = question if self._is_check else None
            self._wake.notify_all()
            return True

    def undo(self) -> QuestionView | None:
        """Takes the rater's last answer back, on disk; its question is asked again.

        Returns:
            The question; None if there is no answer to take back.

        Raises:
            pyseg.errors.PysegError: It could not be taken back.
        """
        with self._lock:
            self._file.refresh()
            self._known = self._read()
            if (question := self._undoable()) is None:
                return None
            try:
                taken = self._file.undo()
            except OSError as error:
                raise UserError(
                    f"{self._file.path}: the answer could not be taken back: {error.strerror}"
                ) from error
            pair = question.segment, question.label
            if taken is not None:
                self._taken_back[pair] = verdict_of(taken.score)
            self._known = self._read()
            self._looked = None
            self._ahead = [question, *(other for other in self._ahead if other[:2] != pair)]
            return self._view(question)

    def progress(self) -> ProgressView:
        """Returns how far the session is."""
        with self._lock:
            known = self._known
            answered = int((known.yes + known.no).sum()) + len(known.ties)
            skipped = int(known.skipped.sum())
            undoable = self._undoable()
            remaining = None
            if self._is_check:
                remaining = len(self._ahead) + len(self._queue)
            counts = zip(self._pool.class_names, known.yes, known.no, strict=True)
            return ProgressView(
                asked=answered + skipped,
                answered=answered,
                skipped=skipped,
                classes=tuple(ClassView(name, int(yes), int(no)) for name, yes, no in counts),
                held_out=self._held_out,
                advice="" if self._advice is None else str(self._advice),
                notes=tuple(self._notes()),
                learning=self._learning,
                remaining=remaining,
                undoable=None if undoable is None else self._id(undoable),
            )

    @property
    def skipped(self) -> list[int]:
        """The number of skipped questions of each class."""
        with self._lock:
            return [int(count) for count in self._known.skipped]

    def close(self) -> None:
        """Ends learning; waits for it where it is at work."""
        with self._lock:
            self._closed = True
            self._wake.notify_all()
        if self._thread is not None:
            self._thread.join()

    def _read(self) -> Known:
        rows = self._file.rows()
        self._lines = len(rows)
        self._most = max(self._most, self._lines)
        return self._ledger.read(rows)

    def _hear(self) -> None:
        """Takes in what other raters have written; what they have answered is not asked."""
        with contextlib.suppress(OSError):  # the next answer will say so
            if self._file.refresh():
                self._known = self._read()
                self._wake.notify_all()
        if not self._is_check:
            done = self._known.asked - self._taken_back.keys()
            self._ahead = [question for question in self._ahead if question[:2] not in done]

    def _id(self, question: Question) -> str:
        start, end = self._pool.times(question.segment)
        video = self._pool.video_of(question.segment)
        text = f"{video}\n{start}\n{end}\n{self._pool.class_names[question.label]}"
        digest = hashlib.blake2b(text.encode(), digest_size=8).hexdigest()
        kind = "r" if question.reason == RANDOM else "c"
        return f"{question.segment}-{question.label}-{kind}-{digest}"

    def _find(self, id: str) -> Question:
        """Returns the question of an id, which may come from an earlier session.

        Raises:
            KeyError: There can be none.
        """
        match = _ID.fullmatch(id)
        if match is None:
            raise KeyError(id)
        segment, label = int(match[1]), int(match[2])
        if segment >= len(self._pool) or label >= len(self._pool.class_names):
            raise KeyError(id)
        reason = RANDOM if match[3] == "r" else self._reason
        question = Question(segment, label, reason)
        if self._id(question) != id or (self._is_check and (segment, label) not in self._doubts):
            raise KeyError(id)
        return question

    @property
    def _reason(self) -> str:
        """The reason of questions that are not drawn at random."""
        if self._is_check:
            return CHECK
        if isinstance(self._strategy, str):
            return self._strategy
        return getattr(self._strategy, "__name__", "strategy")

    def _view(self, question: Question) -> QuestionView:
        pair = question.segment, question.label
        start, end = self._pool.times(question.segment)
        return QuestionView(
            id=self._id(question),
            video=self._pool.video_of(question.segment),
            start=start,
            end=end,
            name=self._pool.class_names[question.label],
            reason=question.reason,
            second_look=pair in self._doubts,
            before=self._taken_back.get(pair),
        )

    def _undoable(self) -> Question | None:
        """Returns the question whose answer `undo` would take back."""
        last = self._known.last
        if last is None or (self._is_check and last.reason != CHECK):
            return None
        pairs = self._ledger.pairs(last)
        if len(pairs) != 1 or (self._is_check and pairs[0] not in self._doubts):
            return None
        return Question(*pairs[0], RANDOM if last.reason == RANDOM else self._reason)

    def _take(self) -> Question | None:
        """Takes the next question from those chosen ahead; there are more unless all were asked."""
        waiting = {question[:2] for question in self._ahead}
        while True:
            while self._queue:
                question = self._queue.popleft()
                new = self._is_check or question[:2] not in self._known.asked
                if new and question[:2] not in waiting:
                    return question
            if self._is_check or not self._choose(self._every):
                return None

    def _choose(self, count: int) -> bool:
        """Replaces the questions that nobody has seen; returns whether there are any."""
        with self._lock:
            waiting = {(question.segment, question.label) for question in self._ahead}
            pairs = np.array(sorted(self._known.asked | waiting), np.int64).reshape(-1, 2)
            beliefs = self._beliefs
        assert beliefs is not None
        state = State(
            self._pool, beliefs, pairs, self._learner.correlation, self._seed, self._sample
        )
        chosen = choose(state, count, self._strategy)
        # Raters begin with different classes, so that they are not asked the same at once.
        turn = stable_hash(self._file.rater) % max(1, len(chosen) // GROUP) * GROUP
        chosen = chosen[turn:] + chosen[:turn]
        with self._lock:
            self._queue = deque(chosen)
            self._exhausted = len(chosen) < count
        return bool(chosen)

    @property
    def _must_learn(self) -> bool:
        """Whether there are enough new lines to train the model again."""
        return self._lines - self._learned >= self._every

    def _due(self) -> bool:
        """Returns whether the thread has something to do."""
        few = len(self._queue) < self._every and not self._exhausted
        return self._closed or self._must_judge or self._must_learn or few

    def _work(self) -> None:
        """Learns when it is time, until the session is closed."""
        while True:
            with self._lock:
                self._wake.wait_for(self._due)
                if self._closed:
                    return
                self._learning = must_learn = self._must_learn
            try:
                if must_learn:
                    self._learn()
                if self._must_judge:
                    self._judge()
                else:
                    self._choose(2 * self._every)
            except Exception as error:  # answers must go on
                _LOG.exception("learning from the answers failed")
                with self._lock:
                    self._exhausted = True  # until the next training: it would fail again at once
                    self._problem = (
                        f"Learning has failed: {error}. Answers are stored all the same; questions "
                        "are chosen by what was learned before."
                    )
            with self._lock:
                self._learning = False

    def _learn(self) -> None:
        """Trains the model on all answers, and chooses questions by what it believes then."""
        with self._lock:
            self._learned, known = self._lines, self._known
        beliefs = self._learner.fit(known.answers)
        with self._lock:
            self._beliefs = beliefs
        self._must_judge = True
        self._choose(2 * self._every)

    def _judge(self) -> None:
        """Finds out how good the model is, and whether further answers pay."""
        self._must_judge = False
        beliefs = self._beliefs
        assert beliefs is not None
        held_out = held_out_score(self._pool, beliefs, seed=self._seed)
        advice = None
        if self._stopping is not None and len(beliefs.answers):
            advice = self._stopping.advise(beliefs)
        with self._lock:
            self._held_out, self._advice, self._problem = held_out, advice, ""

    def _comparison(self, question: Question) -> str:
        """Says what the first look and the model had made of a question."""
        view, pair = self._view(question), (question.segment, question.label)
        doubt = self._doubts[pair]
        first, now = verdict_of(doubt.score), self._known.own[pair]
        return (
            f"{view.name} in {view.video} from {view.start:g} to {view.end:g} s: {first} at the "
            f"first look, which the model gives a probability of {doubt.confidence:.2f}, {now} now."
        )

    def _notes(self) -> list[str]:
        """Returns sentences that the rater should know."""
        known, notes = self._known, []
        if self._problem:
            notes.append(self._problem)
        if self._looked is not None:
            notes.append(self._comparison(self._looked))
        if known.ties:
            one = known.ties[0]
            notes.append(
                f"Raters disagree on {len(known.ties)} answers, such as {one.name} in {one.video} "
                f"from {one.start:g} to {one.end:g} s."
            )
        if known.elsewhere:
            notes.append(
                f"Lines of {self._file.path} about other videos or classes: {known.elsewhere}."
            )
        if known.rated:
            notes.append(f"Ratings of the data, which are learned from, too: {known.rated:,}.")
        if lost := self._most - self._lines:
            notes.append(f"{self._file.path} has lost {lost} lines since this session began.")
        if self._held_out is None and not self._is_check:
            scores = known.answers.scores[counted(known.answers)]
            yes = int((scores > 0.5).sum())
            notes.append(
                f"No held-out score yet: it takes {LEAST} answers yes and {LEAST} no to random "
                f"questions about classes that have both; there are {yes} and {len(scores) - yes}."
            )
        return notes
