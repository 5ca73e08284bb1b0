"""What a rating session shows; see `QuestionView` and `ProgressView`."""

from __future__ import annotations

from typing import Literal, NamedTuple, Protocol

Verdict = Literal["yes", "no", "skip"]
"""An answer: the segment shows the class, it does not, or the rater cannot tell."""


class QuestionView(NamedTuple):
    """A question as a rater sees it: does this segment show this class?

    Attributes:
        id: Names the question; the same pair of segment and class has the same id after a restart,
            so that an answer which was on its way meanwhile still finds its question.
        video: The id of the video.
        start: Where the segment starts, in seconds from the first frame of the video.
        end: Where it ends.
        name: The name of the class.
        reason: Why it is asked: `pyseg.rate.questions.RANDOM`, or the name of a strategy.
        second_look: Whether it was answered before, and the model doubts that answer.
        before: The answer that holds, if it is a second look or was taken back; else None.
        note: What else the rater should know, such as the model's doubt; may be empty.
    """

    id: str
    video: str
    start: float
    end: float
    name: str
    reason: str
    second_look: bool = False
    before: Verdict | None = None
    note: str = ""


class ClassView(NamedTuple):
    """The answers about one class.

    Attributes:
        name: The name of the class.
        yes: How many segments show it.
        no: How many do not.
    """

    name: str
    yes: int
    no: int


class HeldOutView(NamedTuple):
    """How well the model predicts answers that it has not learned from.

    Attributes:
        score: The score in [0, 1].
        error: Its standard error.
        answers: The number of answers it was measured on.
        metric: What the score is, such as "mean average precision".
    """

    score: float
    error: float
    answers: int
    metric: str


class ProgressView(NamedTuple):
    """How far a session is.

    Attributes:
        asked: The questions shown so far: answered and skipped ones.
        answered: Those answered with yes or no.
        skipped: Those skipped.
        classes: The answers of each class.
        held_out: The score on held-out answers; None before there are enough.
        advice: Whether further answers pay, as a sentence; may be empty.
        notes: Sentences the rater should know, such as disagreements of raters.
        learning: Whether the model is being trained right now.
        remaining: The questions left where their number is known, as in a second look; else None.
        undoable: The id of the question whose answer `SessionProtocol.undo` would take back; None
            if there is none.
    """

    asked: int
    answered: int
    skipped: int
    classes: tuple[ClassView, ...]
    held_out: HeldOutView | None = None
    advice: str = ""
    notes: tuple[str, ...] = ()
    learning: bool = False
    remaining: int | None = None
    undoable: str | None = None


class SessionProtocol(Protocol):
    """What the server and the page need of a session; any thread may call its methods."""

    def question(self, ahead: int = 0) -> QuestionView | None:
        """Returns the question that is asked now, the same until it is answered.

        Args:
            ahead: 0 for the question that is asked now; 1 for the one that will follow, so that its
                video can be loaded before. Once told, it does follow, unless `undo` comes between.

        Returns:
            The question; None if there is none.
        """

    def answer(self, id: str, verdict: Verdict) -> bool:
        """Stores an answer; on return it is on disk.

        A question that has an answer keeps it, unless it is the one asked now (a second look, or
        after `undo`). So an answer that arrives twice is stored once, and one from a window that
        has fallen behind changes nothing.

        Args:
            id: The id of any question: the one asked now, the next, or one of an earlier session.
            verdict: The answer.

        Returns:
            Whether this is the answer that holds now.

        Raises:
            KeyError: There can be no question of this id.
            pyseg.errors.PysegError: The answer could not be stored.
        """

    def undo(self) -> QuestionView | None:
        """Takes the rater's last answer back, on disk; its question is asked again.

        Returns:
            The question; None if there is no answer to take back.
        """

    def progress(self) -> ProgressView:
        """Returns how far the session is."""
