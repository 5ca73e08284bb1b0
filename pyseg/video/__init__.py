"""Frames and sound of video files, on one exact clock; it needs the extra ``video`` (PyAV).

`sample_frames` yields the frames that a player shows at regular times, `read_excerpt` returns those
of a part, `read_audio` the sound from the first frame on, `probe` tells what a file holds,
`stated_duration` only how long it is, and `find_videos` lists files.
"""

from pyseg.video.audio import read_audio as read_audio
from pyseg.video.excerpt import read_excerpt as read_excerpt
from pyseg.video.frames import sample_frames as sample_frames
from pyseg.video.info import VideoInfo as VideoInfo
from pyseg.video.info import probe as probe
from pyseg.video.info import stated_duration as stated_duration
from pyseg.video.paths import find_videos as find_videos
from pyseg.video.source import DecodeReport as DecodeReport
