"""Scores of a video over time: when a class is shown, as events, tables, pictures and subtitles.

`pyseg.predict.Predictor.predict` makes a `Timeline` of frames or a video.
"""

from pyseg.timeline.events import Event
from pyseg.timeline.exports import FORMATS
from pyseg.timeline.timeline import Rating, Timeline
from pyseg.timeline.times import clock

__all__ = ["FORMATS", "Event", "Rating", "Timeline", "clock"]
