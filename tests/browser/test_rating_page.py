"""The rating page in a browser: it asks, plays, and loses no answer."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest

from pyseg.errors import UserError
from pyseg.rate import web
from pyseg.rate.media import Link, Media
from pyseg.rate.server import RatingServer
from pyseg.rate.views import QuestionView, Verdict
from tests.rate.fake_session import QUESTIONS, FakeSession, write_film
from tests.video.make_videos import Sound, Video

pytest.importorskip("jinja2")
pytest.importorskip("av")
pytest.importorskip("PIL")

SHOWN = "document.querySelector('.pictures > :not(.off)')"
CLASS = ".question .class"


@pytest.fixture(scope="module")
def films(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Path]:
    """A film that a browser plays, and one that it does not."""
    folder = tmp_path_factory.mktemp("films")
    return {
        "film-0": write_film(folder / "film-0.webm", "libvpx"),
        "film-1": write_film(folder / "film-1.mp4", "mpeg4"),
    }


class Page:
    """The page of a session.

    Attributes:
        view: The page in the browser.
        session: The session.
        server: Its server.
    """

    def __init__(self, view: Any, media: Media) -> None:
        self.view = view
        self.media = media
        self.session = FakeSession()
        self.server: RatingServer | None = None

    def serve(self, port: int = 0) -> None:
        self.server = RatingServer(self.session, self.media, port=port, token="secret")
        self.server.__enter__()

    def stop(self) -> None:
        assert self.server is not None
        self.server.__exit__()

    def open(self, questions=QUESTIONS, **options: Any) -> None:
        """Opens the page; waits until the first question is shown."""
        self.session = FakeSession(questions)
        self.serve()
        self.view.open(self.server.url, **options)
        self.asks(questions[0].name)

    def asks(self, name: str) -> None:
        """Waits until the page asks about a class and shows a picture."""
        self.view.wait(f"document.querySelector('{CLASS}').textContent === {name!r}")
        self.view.wait("document.querySelector('.question').checkVisibility()")
        self.view.wait("document.querySelector('.waiting').hidden")
        self.view.wait("performance.now() > 0 && document.readyState === 'complete'")

    def press(self, key: str) -> None:
        """Types a key, not before a person could."""
        self.view.run("new Promise((done) => setTimeout(done, 170))")
        self.view.press(key)

    def saved(self, text: str) -> None:
        self.view.wait(f"document.querySelector('.saved').textContent === {text!r}")

    def errors(self) -> list[str]:
        """Returns the errors in the console, which are then forgotten."""
        return [entry["message"] for entry in self.view.browser.get_log("browser")]


@pytest.fixture
def page(view, films: dict[str, Path], tmp_path: Path) -> Iterator[Page]:
    found = Page(view, Media(films))
    yield found
    blank = tmp_path / "blank.html"
    blank.write_text("<link rel=icon href='data:,'>")
    view.browser.get(blank.as_uri())
    if found.server is not None:
        found.stop()


def test_keys(page: Page) -> None:
    page.open()
    view = page.view
    view.wait(f"{SHOWN}.tagName === 'VIDEO' && !{SHOWN}.paused && {SHOWN}.muted")
    view.run("window.times = []")
    view.run(f"window.timer = setInterval(() => times.push({SHOWN}.currentTime), 30)")
    view.wait("times.some((time, i) => i && time < times[i - 1])")  # it is repeated
    view.run("clearInterval(timer)")
    assert view.run("Math.min(...times)") > 1.9
    assert view.run("Math.max(...times)") < 3.1
    view.wait("document.querySelectorAll('.pictures > *').length === 2")  # the next one is loaded
    view.wait("document.querySelector('.pictures > .off')?.naturalWidth === 64")
    assert view.run("document.querySelectorAll('.pictures > :not(.off)').length") == 1
    page.press("y")
    page.asks("car")
    page.saved("Saved: sun, film-0, 0:02 – 0:03: yes")
    assert view.run(f"{SHOWN}.tagName") == "IMG"
    page.press("n")
    page.asks("<b>night</b>")
    page.press("s")
    page.asks("sun")
    page.press("y")
    view.wait("document.querySelector('.end').checkVisibility()")
    page.saved("Saved: sun, film-1, 0:06 – 0:07: yes")
    assert page.session.stored == [("q0", "yes"), ("q1", "no"), ("q2", "skip"), ("q3", "yes")]
    assert view.texts(".counts") == ["3 answered, 1 skipped"]
    assert view.texts(".held-out") == ["Held-out score 0.750 ± 0.030 on 3 random answers: mean AP."]
    assert view.texts(".classes td") == ["sun", "2", "0", "car", "0", "1", "<b>night</b>", "0", "0"]
    assert view.texts(".answers button") == []
    page.press("u")
    page.asks("sun")
    page.press("n")
    view.wait("document.querySelector('.end').checkVisibility()")
    assert page.session.stored[-2:] == [("q3", "undo"), ("q3", "no")]


def test_buttons_and_the_player(page: Page) -> None:
    page.open()
    view = page.view
    view.wait(f"{SHOWN}.currentTime > 2.1")
    view.click(".pause")
    view.wait(f"{SHOWN}.paused && document.querySelector('.play').checkVisibility()")
    page.press(" ")  # the button that was clicked does not take it
    view.wait(f"!{SHOWN}.paused")
    view.click(".context")
    view.wait("document.querySelector('.badge').textContent === 'before the segment'")
    assert view.run(f"{SHOWN}.currentTime") < 2
    view.run(f"{SHOWN}.currentTime = 5.5")
    view.wait("document.querySelector('.badge').textContent === 'after the segment'")
    page.press("c")
    view.wait(f"document.querySelector('.badge').hidden && {SHOWN}.currentTime < 3")
    page.press("m")
    view.wait(f"!{SHOWN}.muted")
    view.click(".answers .no")
    page.asks("car")
    view.wait("document.activeElement === document.body")
    view.run("document.querySelector('.answers .yes').focus()")
    page.press("\ue006")  # enter
    page.asks("<b>night</b>")
    assert not view.run(f"{SHOWN}.muted")
    view.click(".undo")
    page.asks("car")
    assert page.session.stored == [("q0", "no"), ("q1", "yes"), ("q1", "undo")]
    page.press("?")
    assert view.run("document.querySelector('dialog').open")
    view.press("y")  # answers nothing
    view.click("dialog .close")
    assert not view.run("document.querySelector('dialog').open")
    assert page.session.stored[3:] == []


def test_reload_and_undo(page: Page) -> None:
    page.open()
    page.press("y")
    page.asks("car")
    page.saved("Saved: sun, film-0, 0:02 – 0:03: yes")
    page.view.browser.refresh()
    page.asks("car")
    assert page.view.texts(".counts") == ["1 answered"]
    page.press("u")
    page.asks("sun")
    page.saved("Taken back.")
    assert page.view.texts(".undo:disabled") != []
    page.press("u")  # nothing is left
    page.press("n")
    page.asks("car")
    page.saved("Saved: sun, film-0, 0:02 – 0:03: no")
    assert page.session.stored == [("q0", "yes"), ("q0", "undo"), ("q0", "no")]


def test_a_lost_connection(page: Page) -> None:
    page.open()
    view, port = page.view, page.server.port
    view.wait("document.querySelectorAll('.pictures > *').length === 2")
    view.wait("document.querySelector('.pictures > .off')?.naturalWidth === 64")
    page.stop()
    page.press("y")
    page.asks("car")  # it was there already
    view.wait("document.querySelector('.banner').checkVisibility()")
    page.press("n")
    view.wait("document.querySelector('.saved').textContent.includes('2 answers wait')")
    assert "The connection is lost" in view.texts(".banner")[0]
    assert "2 answers wait in this window" in view.texts(".banner")[0]
    assert view.texts(".question") == []
    assert view.texts(".waiting") == ["Waiting for the next question…"]
    page.press("y")  # answers nothing
    view.run("(() => {const now = performance.now(); performance.now = () => now + 30000})()")
    view.wait(f"document.querySelector('.banner').textContent.includes('--port {port}')")
    assert page.session.stored == []
    page.errors()
    page.serve(port)
    page.asks("<b>night</b>")
    view.wait("!document.querySelector('.banner').checkVisibility()")
    assert page.session.stored == [("q0", "yes"), ("q1", "no")]
    page.saved("Saved: car, film-1, 0:01 – 0:02: no")
    page.errors()


def test_answers_that_wait_survive_a_reload_and_a_new_address(page: Page) -> None:
    """The command was started again; nothing is stored twice, and what was not stored is."""
    page.open()
    view, port = page.view, page.server.port
    page.press("y")
    page.asks("car")
    page.stop()
    page.press("n")
    view.wait("document.querySelector('.saved').textContent.includes('1 answer waits')")
    page.server = RatingServer(page.session, page.media, port=port, token="another")
    page.server.__enter__()
    view.wait("document.querySelector('.banner').textContent.includes('started anew')")
    page.errors()
    view.browser.get(page.server.url)
    with contextlib.suppress(Exception):
        view.browser.switch_to.alert.accept()
    page.asks("<b>night</b>")
    assert page.session.stored == [("q0", "yes"), ("q1", "no")]
    page.errors()


def test_answers_that_cannot_be_stored(page: Page) -> None:
    page.open()
    page.session.error = UserError("ratings.csv: no space is left")
    page.press("y")
    banner = "document.querySelector('.banner')"
    page.view.wait(f"{banner}.textContent.includes('ratings.csv: no space is left')")
    assert page.session.stored == []
    page.errors()
    page.session.error = None
    page.view.wait(f"!{banner}.checkVisibility()")
    assert page.session.stored == [("q0", "yes")]
    page.errors()


def test_an_answer_is_stored_once_though_its_confirmation_is_lost(
    page: Page, monkeypatch: pytest.MonkeyPatch
) -> None:
    page.open()
    lost: list[str] = []

    def answer(id: str, verdict: Verdict) -> bool:
        holds = FakeSession.answer(page.session, id, verdict)
        if len(lost) < 2:
            lost.append(id)
            raise ConnectionError
        return holds

    monkeypatch.setattr(page.session, "answer", answer)
    page.press("y")
    page.saved("Saved: sun, film-0, 0:02 – 0:03: yes")
    assert lost == ["q0", "q0"]
    assert page.session.stored == [("q0", "yes")]
    page.asks("car")
    page.errors()


def test_many_classes(page: Page) -> None:
    """Those with answers are listed, and the one that is asked about."""
    names = ["sun", *(f"class {number}" for number in range(500))]
    page.open([QuestionView(name, "film-0", 2.0, 3.0, name, "change") for name in names])
    page.press("y")
    page.asks("class 0")
    page.view.wait("document.querySelectorAll('.classes tbody tr').length === 2")
    assert page.view.texts(".classes td") == ["sun", "1", "0", "class 0", "0", "0"]
    assert page.view.texts(".others") == ["499 classes have no answer yet."]


def test_a_large_file_comes_in_pieces(
    page: Page, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    path = write_film(tmp_path / "film.webm", seconds=20, noise=120)
    assert path.stat().st_size > 10 * 10_000
    monkeypatch.setattr(web, "_LONGEST_PIECE", 10_000)
    page.media = Media({"film-0": path, "film-1": path})
    page.open([QUESTIONS[0]._replace(start=17.0, end=18.0), *QUESTIONS[1:]])
    page.view.wait(f"{SHOWN}.tagName === 'VIDEO' && {SHOWN}.currentTime > 17.5")
    page.press("y")
    page.asks("car")
    page.view.wait(f"{SHOWN}.tagName === 'VIDEO' && {SHOWN}.currentTime > 1.5")


def test_files_that_the_browser_cannot_play(page: Page, films, tmp_path: Path) -> None:
    """Those without a picture, those with sound that plays and a picture that does not."""
    (tmp_path / "no film.mp4").write_text("no film")
    silent = tmp_path / "silent.mkv"
    silent.write_bytes(films["film-1"].read_bytes())
    sounding = Video(range(100), codec="libx265", sound=Sound(4)).write(tmp_path / "hevc.mp4")
    page.media = Media({"silent": silent, "hevc": sounding, "none": tmp_path / "no film.mp4"})
    names = ["silent", "hevc", "none", "unknown"]
    page.open([QuestionView(name, name, 1.0, 3.0, name, "change") for name in names])
    view = page.view
    view.wait(f"{SHOWN}.naturalWidth === 64")
    first = view.run(f"{SHOWN}.src")
    view.wait(f"{SHOWN}.src !== {first!r}")  # they move
    page.press(" ")
    still = view.run(f"{SHOWN}.src")
    page.press("c")
    view.wait(f"{SHOWN}.src !== {still!r}")  # now from a second before
    view.wait("document.querySelector('.badge').textContent === 'before the segment'")
    page.press("y")
    page.asks("hevc")
    view.wait(f"{SHOWN}.naturalWidth === 64")
    page.press("n")
    page.asks("none")
    view.wait(f"{SHOWN}.textContent.includes('no film.mp4: expected a video')")
    page.press("s")
    page.asks("unknown")
    assert view.texts(".card") == ["There is no file and no link of this video."]
    assert all("404" in error for error in page.errors())  # the frames of what is no film


NUMBER = """(() => {
  const canvas = Object.assign(document.createElement("canvas"), {width: 64, height: 48});
  const context = canvas.getContext("2d", {willReadFrequently: true});
  context.drawImage(document.querySelector(".pictures video:not(.off)"), 0, 0);
  const isWhite = (place) =>
    context.getImageData(16 * (place % 4) + 8, 16 * Math.floor(place / 4) + 8, 1, 1).data[1] > 127;
  return [...Array(10).keys()].reduce((sum, bit) => sum + (isWhite(bit + 1) << bit), 0);
})()"""
"""The number that a frame of `make_videos` shows."""


def test_the_picture_is_that_of_the_segment(page: Page, tmp_path: Path) -> None:
    """The sound begins a second before the picture, whose first frame is second 0."""
    sound = Sound(4, codec="libopus", rate=48000)
    video = Video(range(100), codec="libvpx-vp9", start=1.0, sound=sound)
    page.media = Media({"late": video.write(tmp_path / "late.webm")})
    page.open([QuestionView("a", "late", 2.0, 3.0, "sun", "change")])
    page.view.wait(f"{SHOWN}.currentTime > 3.3 && {SHOWN}.currentTime < 3.7")
    page.press(" ")
    number, time = page.view.run(f"[{NUMBER}, {SHOWN}.currentTime]")
    assert number / 25 + 1 == pytest.approx(time, abs=0.15)


def test_links(page: Page, films) -> None:
    page.serve()
    film = f"http://127.0.0.1:{page.server.port}/secret/video/0?.webm"  # no such film
    page.stop()
    youtube = Link("https://www.youtube.com/watch?v=abc", 30)
    page.media = Media({}, {"film-0": youtube, "film-1": Link(film + "/a.webm")})
    page.open()
    view = page.view
    assert view.run("document.querySelector('.card a').href").endswith("?v=abc&t=32s")
    assert view.run("document.querySelector('.card a').rel") == "noopener noreferrer"
    before = len(view.browser.window_handles)
    page.press("o")
    view.wait("true")
    assert len(view.browser.window_handles) == before + 1
    own = view.browser.current_window_handle
    [other] = {*view.browser.window_handles} - {own}
    view.browser.switch_to.window(other)
    view.browser.close()
    view.browser.switch_to.window(own)
    page.errors()


def test_two_windows(page: Page) -> None:
    page.open()
    view = page.view
    own = view.browser.current_window_handle
    view.browser.switch_to.new_window("tab")
    try:
        view.browser.get(page.server.url)
        page.asks("sun")
        page.press("y")
        page.asks("car")
        page.saved("Saved: sun, film-0, 0:02 – 0:03: yes")
        other = view.browser.current_window_handle
        view.browser.switch_to.window(own)
        page.asks("car")  # it has followed
        page.press("n")
        page.asks("<b>night</b>")
        view.browser.switch_to.window(other)
    finally:
        view.browser.close()
        view.browser.switch_to.window(own)
    assert page.session.stored == [("q0", "yes"), ("q1", "no")]


def test_a_second_look_on_a_phone_in_the_dark(page: Page) -> None:
    note = "The model expects no."
    look = QUESTIONS[0]._replace(second_look=True, before="yes", note=note)
    page.open([look, *QUESTIONS[1:]], width=390, dark=True)
    view = page.view
    assert view.texts(".second") == [f"A second look. The answer was yes. {note}"]
    assert view.run("getComputedStyle(document.body).backgroundColor") == "rgb(20, 23, 28)"
    view.check_fits()
    for button in (".yes", ".no", ".skip", ".undo", ".pause", ".context", ".sound"):
        box = f"document.querySelector('{button}').getBoundingClientRect()"
        assert view.run(f"{box}.height") >= 44
        assert view.run(f"{box}.bottom") < 800
    view.click(".answers .no")
    page.asks("car")
    assert view.texts(".second") == []
    view.check_fits()


def test_learning_advice_and_little_motion(page: Page) -> None:
    motion = [{"name": "prefers-reduced-motion", "value": "reduce"}]
    page.session = FakeSession()
    page.serve()
    page.view.command("Emulation.setEmulatedMedia", features=motion)
    page.view.browser.get(page.server.url)
    page.asks("sun")
    view = page.view
    assert view.run(f"{SHOWN}.paused")
    view.click(".play")
    view.wait(f"!{SHOWN}.paused")
    assert view.texts(".learning") == []
    page.session.learning = True
    page.session.advice = "More answers of <i>car</i> would help."
    page.press("y")
    page.asks("car")
    view.wait("document.querySelector('.learning').checkVisibility()")
    assert view.texts(".advice") == ["More answers of <i>car</i> would help."]
    page.session.learning = False
    view.wait("!document.querySelector('.learning').checkVisibility()")
    page.view.command("Emulation.setEmulatedMedia", features=[])
