"""A rating session without a model, and films, for the tests of the server and of the page."""

from __future__ import annotations

import time
from collections.abc import Sequence
from pathlib import Path

import numpy as np

from pyseg.rate.views import ClassView, HeldOutView, ProgressView, QuestionView, Verdict

QUESTIONS = [
    QuestionView("q0", "film-0", 2.0, 3.0, "sun", "change"),
    QuestionView("q1", "film-1", 1.0, 2.0, "car", "random"),
    QuestionView("q2", "film-0", 6.0, 7.0, "<b>night</b>", "change"),
    QuestionView("q3", "film-1", 6.0, 7.0, "sun", "change"),
]


class FakeSession:
    """Asks some questions in order.

    Attributes:
        stored: The answers and undone questions, as they came.
        error: Raised by `answer`, if set.
    """

    def __init__(self, questions: Sequence[QuestionView] = QUESTIONS) -> None:
        self.questions = list(questions)
        self.held: dict[str, Verdict] = {}
        self.order: list[str] = []
        self.undone: list[str] = []
        self.stored: list[tuple[str, str]] = []
        self.error: Exception | None = None
        self.is_measured = True
        self.learning = False
        self.advice = ""

    def _open(self) -> list[QuestionView]:
        by_id = {question.id: question for question in self.questions}
        undone = [by_id[id]._replace(before=None) for id in reversed(self.undone)]
        rest = [q for q in self.questions if q.id not in self.held and q.id not in self.undone]
        return undone + rest

    def question(self, ahead: int = 0) -> QuestionView | None:
        left = self._open()
        return left[ahead] if ahead < len(left) else None

    def answer(self, id: str, verdict: Verdict) -> bool:
        if self.error is not None:
            raise self.error
        if id not in [question.id for question in self.questions]:
            raise KeyError(id)
        if id not in self.held:
            time.sleep(0.002)  # so that another thread would come between
            self.held[id] = verdict
            self.order.append(id)
            self.stored.append((id, verdict))
            if id in self.undone:
                self.undone.remove(id)
        return self.held[id] == verdict

    def undo(self) -> QuestionView | None:
        if not self.order:
            return None
        id = self.order.pop()
        del self.held[id]
        self.undone.append(id)
        self.stored.append((id, "undo"))
        return self.question()

    def progress(self) -> ProgressView:
        verdicts = list(self.held.values())
        answered = len(verdicts) - verdicts.count("skip")
        names = dict.fromkeys(question.name for question in self.questions)
        given = [(q.name, self.held.get(q.id)) for q in self.questions]
        counts = [ClassView(n, given.count((n, "yes")), given.count((n, "no"))) for n in names]
        measured = self.is_measured and answered > 1
        return ProgressView(
            asked=len(verdicts),
            answered=answered,
            skipped=verdicts.count("skip"),
            classes=tuple(counts),
            held_out=HeldOutView(0.75, 0.03, answered, "mean AP") if measured else None,
            advice=self.advice,
            learning=self.learning,
            undoable=self.order[-1] if self.order else None,
        )


def write_film(path: Path, codec: str = "libvpx", seconds: int = 10, noise: int = 0) -> Path:
    """Writes a film of 5 frames a second that becomes brighter; noise makes its file large."""
    import av

    dice = np.random.default_rng(0)
    options = {"deadline": "realtime"} if "vpx" in codec else {}
    with av.open(str(path), "w") as container:
        stream = container.add_stream(codec, rate=5, options=options)
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5 * seconds):
            image = np.full((48, 64, 3), 2 * number, np.uint8)
            image += dice.integers(0, noise + 1, image.shape, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return path
