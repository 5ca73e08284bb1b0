"""The page of a timeline in a browser: it plays the video, and its strips seek."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from pyseg.timeline import Rating, Timeline

pytest.importorskip("jinja2")
av = pytest.importorskip("av")
pytest.importorskip("PIL")

SECONDS = 20
NAMES = ["cat", "dog", "</script><script>hacked = 1</script>", "<img src=x onerror=hacked=1>"]
STRIP = ".strip-row canvas"


@pytest.fixture(scope="module")
def video(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A video of 20 seconds with a hostile name."""
    path = tmp_path_factory.mktemp("films") / "a #1 100%?<b>.webm"
    with av.open(str(path), "w") as container:
        stream = container.add_stream("libvpx", rate=5, options={"deadline": "realtime"})
        stream.width, stream.height, stream.pix_fmt = 64, 48, "yuv420p"
        for number in range(5 * SECONDS):
            image = np.full((48, 64, 3), 2 * number, np.uint8)
            container.mux(stream.encode(av.VideoFrame.from_ndarray(image)))
        container.mux(stream.encode())
    return path


def make(**changes) -> Timeline:
    """Four classes over 20 seconds, with one event each."""
    scores = np.full((SECONDS, 4), 0.02)
    scores[4:7, 0], scores[10:12, 1], scores[15:18, 2], scores[1:3, 3] = 0.9, 0.95, 0.8, 0.6
    starts = np.arange(SECONDS)
    ratings = [Rating(4, 7, 0, True), Rating(10, 12, 0, False)]
    options = {"ratings": ratings, **changes}
    return Timeline('"film" <b>', starts, starts + 1, scores, NAMES, **options)


@pytest.fixture
def page(view, video: Path, tmp_path: Path):
    """The page, with the video's metadata loaded."""
    path = tmp_path / "t.html"
    make(video=str(video)).save(path)
    assert "file://" not in path.read_text()  # its address is relative
    view.open(path)
    view.wait("document.querySelector('video').readyState >= 1")
    return view


def at(page, seconds: float) -> None:
    page.wait(f"Math.abs(document.querySelector('video').currentTime - {seconds}) < 0.15")
    place = "parseFloat(document.querySelector('.playhead').style.left)"
    axis = "document.querySelector('.strip-head canvas')"
    page.wait(f"Math.abs({place} - {axis}.offsetLeft - {axis}.clientWidth * {seconds / 20}) < 9")


def test_strips_events_and_keys_seek(page) -> None:
    page.click(STRIP, 0.5)
    at(page, 10)
    page.click(".events li:nth-child(2) button")
    at(page, 4)
    assert page.texts(".events li button[aria-current='true'] span:nth-child(2)") == ["cat"]
    page.press("j")
    at(page, 10)
    page.press("k")
    at(page, 4)
    page.press("\ue014")  # right
    at(page, 9)
    page.run("document.activeElement.blur()")
    page.press(" ")
    page.wait("!document.querySelector('video').paused")
    page.press(" ")
    page.wait("document.querySelector('video').paused")
    for kind, x in (("mouseMoved", 0.1), ("mousePressed", 0.1)):
        page.pointer(STRIP, x, kind=kind)
    page.command("Input.dispatchMouseEvent", type="mouseMoved", x=700, y=10, button="left")
    page.wait("document.querySelector('video').currentTime > 3")  # dragged
    page.pointer(STRIP, 0.9, kind="mouseReleased")
    page.run("location.hash = 't=7'")
    page.browser.refresh()
    at(page, 7)
    assert page.run("typeof hacked") == "undefined"
    assert page.texts("h1") == ['"film" <b>']


def test_search_order_hover_and_thumbnails(page) -> None:
    names = ".strip-row .name"
    assert page.texts(names) == [NAMES[1], NAMES[0], NAMES[2], NAMES[3]]  # by score
    order = "(() => {const s = document.querySelector('select'); s.value = arguments[0];"
    order += "s.dispatchEvent(new Event('change'))})()"
    page.run(order, "first")
    assert page.texts(names) == [NAMES[3], NAMES[0], NAMES[1], NAMES[2]]
    page.run(order, "given")
    assert page.texts(names) == NAMES
    page.pointer(STRIP, 4.5 / 20)
    page.wait("!tip.hidden")
    assert page.run("tip.innerText").split("\n")[-2:] == [
        "cat: 0.90",
        "rated positive, 0:04 to 0:07",
    ]
    assert page.run("tip.querySelector('img').naturalWidth") > 0
    page.wait("document.querySelectorAll('.thumbs img').length > 4")
    page.press("/")
    page.press("DO")
    assert page.texts(names) == ["dog"]
    assert page.texts(".events li span:nth-child(2)") == ["dog"]
    page.press("g!")
    assert page.texts(".strips .empty") == ["No class has this name."]
    page.press("\ue00c")  # escape
    assert page.texts(names) == NAMES


def test_zoom_help_and_colors(page) -> None:
    assert page.texts(".overview") == []
    page.press("++")
    page.wait("document.querySelector('.overview').checkVisibility()")
    page.click(STRIP, 0.99)
    at_most = "document.querySelector('video').currentTime"
    page.wait(f"{at_most} > 4 && {at_most} < 6.5")  # a quarter of the video is shown
    page.press("0")
    page.wait("!document.querySelector('.overview').checkVisibility()")
    page.press("?")
    assert page.run("document.querySelector('dialog').open")
    page.press("\ue00c")
    assert not page.run("document.querySelector('dialog').open")
    color = "getComputedStyle(document.body).backgroundColor"
    light = page.run(color)
    page.press("d")
    assert page.run(color) != light
    page.click("button.theme")
    assert page.run(color) == light
    page.command(
        "Emulation.setEmulatedMedia", features=[{"name": "prefers-color-scheme", "value": "dark"}]
    )
    assert page.run(color) == light  # the choice holds
    page.check_fits()
    page.run("scrollTo({top: 300, behavior: 'instant'})")  # the video stays in view
    assert page.run("document.querySelector('video').getBoundingClientRect().top") == 0


def test_without_a_video(view, tmp_path: Path) -> None:
    path = tmp_path / "t.html"
    make(video=str(tmp_path / "gone.mp4"), ratings=[]).save(path)
    view.open(path, width=390, dark=True)
    assert view.texts(".missing") == [f"The video is not there: {tmp_path / 'gone.mp4'}"]
    view.wait("document.querySelector('.strip-row canvas').width > 300")
    view.wait("document.querySelector('.strip-row .now').textContent")
    view.click(".events li:nth-child(3) button")
    assert view.texts(".strip-row.chosen .name") == ["dog"]
    assert view.texts(".strip-row .now") == ["0.95", "0.02", "0.02", "0.02"]
    view.check_fits()
    assert view.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
