r"""Finds events in videos of your own: makes videos and ratings, and a backbone for them.

    cd examples/python
    python own_videos.py films
    python -m pyseg.extract --videos 'films/*.mp4' --backbone own_videos:backbone \
        --ratings films/ratings.csv --segment_seconds 3 --out features
    python -m pyseg.train --data features --model linear --run run
    python -m pyseg.predict --run run --video_file films/unseen/unseen.mp4 \
        --timeline unseen.html --export unseen.vtt

``films`` then has twelve films of a minute and 100 ratings of three seconds, each for one class: is
there the sun, a car, a fence, night, snow? Without a folder, this script does it all in a
temporary one:

    python examples/python/own_videos.py
"""

from __future__ import annotations

import csv
import sys
import tempfile
from pathlib import Path

import av
import numpy as np
import torch
from numpy.typing import NDArray
from torch import Tensor, nn
from torch.nn import functional

CLASSES = ("sun", "car", "fence", "night", "snow")
HEIGHT, WIDTH, RATE = 96, 128, 8  # pixels, frames a second
SECONDS, SEGMENT = 60, 3  # of a film, of a rated segment
FILMS, RATINGS = 12, 100

Events = list[tuple[str, int, int]]  # class, start and end in seconds


def draw(classes: set[str], second: float, color: NDArray, dice: np.random.Generator) -> NDArray:
    """Returns a frame (HEIGHT, WIDTH, 3) uint8 that shows the classes."""
    y, x = np.mgrid[:HEIGHT, :WIDTH]
    image = color + 15 * np.sin(x / 30 + second)[..., None]
    if "fence" in classes:
        image = image + 40 * np.sign(np.sin((x + y) / 4))[..., None]
    if "sun" in classes:
        image[(x - WIDTH / 2 - 20 * np.sin(second)) ** 2 + (y - 20) ** 2 < 12**2] = 240, 220, 60
    if "car" in classes:
        image[(abs(x - 25 * second % WIDTH) < 16) & (abs(y - 78) < 8)] = 40, 60, 220
    if "snow" in classes:
        image[dice.random((HEIGHT, WIDTH)) < 0.03] = 255
    return np.clip(image * (0.35 if "night" in classes else 1), 0, 255).astype(np.uint8)


def make_film(path: Path, seed: int) -> Events:
    """Writes a film; returns what it shows."""
    dice = np.random.default_rng(seed)
    events: Events = []
    for name in CLASSES:
        start = int(dice.integers(0, 15))
        while start < SECONDS - SEGMENT:
            end = min(SECONDS, start + int(dice.integers(6, 14)))
            events.append((name, start, end))
            start = end + int(dice.integers(10, 25))
    color = dice.uniform(60, 190, 3)
    with av.open(str(path), "w") as file:
        stream = file.add_stream("libx264", rate=RATE)
        stream.width, stream.height, stream.pix_fmt = WIDTH, HEIGHT, "yuv420p"
        for number in range(SECONDS * RATE):
            second = number / RATE
            shown = {name for name, start, end in events if start <= second < end}
            image = draw(shown, second, color, dice)
            file.mux(stream.encode(av.VideoFrame.from_ndarray(image, format="rgb24")))
        file.mux(stream.encode())
    return events


def shows(events: Events, name: str, begin: int) -> int:
    """Returns 1 if at least half of a segment shows a class, else 0.

    >>> [shows([("sun", 4, 9)], "sun", begin) for begin in (0, 3, 6, 8)]
    [0, 1, 1, 0]
    """
    end = begin + SEGMENT
    shown = [min(end, e) - max(begin, s) for label, s, e in events if label == name]
    return int(2 * max(shown, default=0) >= SEGMENT)


def make_films(folder: Path) -> Events:
    """Writes films, the ratings of a person who saw some segments, and a film that nobody rated.

    Returns:
        What the last film shows.
    """
    (folder / "unseen").mkdir(parents=True)
    films = {f"film-{n}": make_film(folder / f"film-{n}.mp4", n) for n in range(FILMS)}
    dice = np.random.default_rng(0)
    with open(folder / "ratings.csv", "w", newline="") as file:
        table = csv.writer(file)
        table.writerow(("video", "start", "end", "class", "score"))
        questions = dice.permutation(FILMS * SECONDS // SEGMENT * len(CLASSES))[:RATINGS]
        for question in questions.tolist():
            segment, number = divmod(question, len(CLASSES))
            film, place = divmod(segment, SECONDS // SEGMENT)
            video, name, begin = f"film-{film}", CLASSES[number], place * SEGMENT
            table.writerow((video, begin, begin + SEGMENT, name, shows(films[video], name, begin)))
    return make_film(folder / "unseen" / "unseen.mp4", FILMS)


class Looks(nn.Module):
    """Colors, edges and dots of the parts of a frame: a backbone without weights.

    A network that was trained on many pictures, such as ``timm:vit_small_patch14_dinov2``, tells
    far more; this one needs no download.
    """

    size = (HEIGHT, WIDTH)
    mean, std = (0.5, 0.5, 0.5), (0.25, 0.25, 0.25)

    def forward(self, images: Tensor) -> Tensor:
        """Returns features (B, N) of images (B, 3, H, W)."""
        gray = images.mean(1, keepdim=True)
        shifts = ((1, 0), (0, 1), (2, 2), (2, -2))
        edges = [(gray.roll(shift, (2, 3)) - gray).abs() for shift in shifts]
        smooth = functional.avg_pool2d(images, 7, 1, 3)
        tints = [smooth[:, [i]] - smooth[:, [j]] for i, j in ((0, 2), (2, 0), (1, 2))]
        dots = (gray - functional.avg_pool2d(gray, 3, 1, 1)).relu()
        maps = torch.cat((images, *edges, *tints, dots), 1)
        parts = [functional.adaptive_avg_pool2d(maps, 4), functional.adaptive_max_pool2d(maps, 2)]
        return torch.cat([part.flatten(1) for part in parts], 1)


def backbone() -> nn.Module:
    """Makes the backbone, for ``--backbone own_videos:backbone``."""
    return Looks()


def main() -> None:
    """Makes films, learns from the ratings, and finds the events of the film that nobody rated."""
    if sys.argv[1:]:
        make_films(Path(sys.argv[1]))
        print(f"{sys.argv[1]}: {FILMS} films, {RATINGS} ratings, and a film that nobody rated")
        return
    import pyseg
    from pyseg import extract, train

    sys.path.insert(0, str(Path(__file__).parent))  # for own_videos:backbone
    with tempfile.TemporaryDirectory() as folder:
        films, features, run = (str(Path(folder, name)) for name in ("films", "features", "run"))
        truth = make_films(Path(films))
        videos = ["--videos", f"{films}/*.mp4", "--backbone", "own_videos:backbone"]
        rated = ["--ratings", f"{films}/ratings.csv", "--segment_seconds", str(SEGMENT)]
        extract.main([*videos, *rated, "--out", features, "--processes", "0"])
        train.main(["--data", features, "--model", "linear", "--run", run])
        timeline = pyseg.load(run).predict(f"{films}/unseen/unseen.mp4")
        for name in CLASSES:
            found = [f"{e.start:.0f}-{e.end:.0f}" for e in timeline.events() if e.name == name]
            shown = [f"{start}-{end}" for label, start, end in truth if label == name]
            print(f"{name}: found {', '.join(found) or 'none'}; shown {', '.join(shown)}")


if __name__ == "__main__":
    main()
