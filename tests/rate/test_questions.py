"""Questions and answers."""

from __future__ import annotations

import numpy as np

from pyseg.rate.questions import RANDOM, Answers, Question


def test_number_of_answers() -> None:
    answers = Answers(np.arange(3), np.zeros(3, int), np.ones(3, np.float32), np.ones(3, bool))
    assert len(answers) == 3
    assert len(answers.take(slice(0))) == 0
    assert answers.take(np.array([2, 0])).segments.tolist() == [2, 0]


def test_question() -> None:
    assert Question(4, 1, RANDOM) == (4, 1, "random")
