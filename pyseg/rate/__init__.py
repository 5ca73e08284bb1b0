"""Asks a person what teaches a model most: ``python -m pyseg.rate --data <...> --videos <...>``.

A local web page plays segments of videos, and asks of each whether it shows a class. Every answer
is appended to a table of ratings at once (`AnswerFile`), and the table is all that is kept: the
same command goes on where it ended. A model learns meanwhile (`Learner`), chooses what to ask next
(`register_strategy`), and says when further answers no longer pay (`Stopping`). With ``--check``
the command asks again about the answers that the model doubts most (`rank_doubts`).
"""

from pyseg.rate.answers import AnswerFile, settle
from pyseg.rate.cli import main, rate
from pyseg.rate.config import RateConfig
from pyseg.rate.doubts import Doubt, rank_doubts, worth_a_look
from pyseg.rate.held_out import held_out_score
from pyseg.rate.learner import Beliefs, Learner
from pyseg.rate.media import Media
from pyseg.rate.pool import Pool
from pyseg.rate.questions import RANDOM, Answers, Question
from pyseg.rate.server import serve
from pyseg.rate.session import Session
from pyseg.rate.stopping import Advice, Stopping
from pyseg.rate.strategies import State, choose, register_strategy

__all__ = [
    "RANDOM",
    "Advice",
    "AnswerFile",
    "Answers",
    "Beliefs",
    "Doubt",
    "Learner",
    "Media",
    "Pool",
    "Question",
    "RateConfig",
    "Session",
    "State",
    "Stopping",
    "choose",
    "held_out_score",
    "main",
    "rank_doubts",
    "rate",
    "register_strategy",
    "serve",
    "settle",
    "worth_a_look",
]
