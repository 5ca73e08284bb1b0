"""Probabilities that mean what they say: ``python -m pyseg.calibrate --run <folder>``.

Rated segments of videos that the run was not trained on tell how often its classes are shown where
it says 0.7. From these the command fits a temperature and a bias, for all classes together and, as
far as there are ratings enough, for each, and chooses the thresholds of events. It writes
``calibration.json`` in the run's folder, which `pyseg.load` and ``python -m pyseg.predict`` use.
The order of scores within a class stays, and with it every submission and MAP.

With ``--ratings``, a file of answers of `pyseg.rate`, only the questions that were drawn at random
count: those are a sample of all segments. Other ratings are of segments that somebody chose, and
make probabilities for such segments.
"""

from pyseg.calibrate.cli import calibrate, main
from pyseg.calibrate.config import CalibrateConfig

__all__ = ["CalibrateConfig", "calibrate", "main"]
