"""The local web server of the rating page; what protects it is told at `pyseg.rate.web`."""

from __future__ import annotations

import os
import re
import sys
import threading
import time
import webbrowser
from http import HTTPStatus
from typing import Any, get_args

from pyseg import _cli
from pyseg.errors import DataError, MissingFileError
from pyseg.rate.media import Media, data_address, media_type
from pyseg.rate.page import page
from pyseg.rate.views import QuestionView, SessionProtocol, Verdict
from pyseg.rate.web import Handler, LocalServer, RefusedError

_VIDEO = re.compile(r"video/(\d{1,9})", re.ASCII)
_FRAMES = re.compile(r"frames/(\d{1,9})/(\d{1,12})-(\d{1,12})", re.ASCII)


class RatingServer(LocalServer):
    """Serves the page of a rating session on 127.0.0.1 while it is open.

    No part of a request becomes the name of a file: videos are numbers.

    Args:
        session: What is asked and stored.
        media: The videos.
        port: The port; 0: a free one.
        token: The secret in the address; default: a random one.

    Attributes:
        url: The address of the page, with the secret.
        session: See above.
        media: See above.
        html: The page.
        policy: Its content security policy.
        changing: Held while an answer is stored or taken back.
        has_ended: Whether nothing may be stored any more.

    Raises:
        pyseg.errors.ArgumentError: The port is invalid, taken or not allowed.
        pyseg.errors.UserError: jinja2 is not installed.
    """

    def __init__(
        self, session: SessionProtocol, media: Media, *, port: int = 0, token: str | None = None
    ) -> None:
        self.session = session
        self.media = media
        self.html, self.policy = page(media.schemes)
        self.changing = threading.Lock()
        self.has_ended = False
        super().__init__(_Handler, port, token)

    def __exit__(self, *error: object) -> None:
        """Stops; an answer that is being stored is stored, and none after it."""
        super().__exit__(*error)
        with self.changing:
            self.has_ended = True


class _Handler(Handler):
    """Answers the requests of the page."""

    server: RatingServer

    def route(self, path: str) -> None:
        """Answers a request."""
        if path in ("answer", "undo"):
            self.expect("POST")
            body = self.read_texts()
            with self.server.changing:
                if self.server.has_ended:
                    raise RefusedError(HTTPStatus.SERVICE_UNAVAILABLE, "the command has ended")
                done = self._store(body) if path == "answer" else self._undo(body)
                state = self._state()
            self.send_json({"holds": done, **state})
            return
        self.expect("GET")
        if path == "":
            policy = f"{self.server.policy}; frame-ancestors 'none'"
            headers = {"Content-Security-Policy": policy}
            self.send(self.server.html.encode(), "text/html; charset=utf-8", headers)
        elif path == "state":
            self.send_json(self._state())
        elif match := _VIDEO.fullmatch(path):
            file = self.server.media.file(int(match[1]))
            if file is None:
                raise RefusedError(HTTPStatus.NOT_FOUND, "expected the number of a video")
            self.send_file(file, media_type(file))
        elif match := _FRAMES.fullmatch(path):
            number, start, end = map(int, match.groups())
            self._send_frames(number, start / 1000, end / 1000)
        else:
            raise RefusedError(HTTPStatus.NOT_FOUND, "expected an address of the page")

    def _store(self, body: dict[str, str]) -> bool:
        """Stores an answer; returns whether it holds."""
        verdict: Any = body.get("verdict")
        if body.keys() != {"id", "verdict"} or verdict not in get_args(Verdict):
            text = f"expected an id and a verdict ({', '.join(get_args(Verdict))})"
            raise RefusedError(HTTPStatus.BAD_REQUEST, text)
        try:
            return self.server.session.answer(body["id"], verdict)
        except KeyError as error:
            raise RefusedError(HTTPStatus.NOT_FOUND, "expected the id of a question") from error

    def _undo(self, body: dict[str, str]) -> bool:
        """Takes an answer back if it is the last one; returns whether it was."""
        if body.keys() != {"id"}:
            raise RefusedError(HTTPStatus.BAD_REQUEST, "expected an id")
        is_last = self.server.session.progress().undoable == body["id"]
        if is_last:
            self.server.session.undo()
        return is_last

    def _state(self) -> dict[str, Any]:
        """Returns what the page shows, as values of JSON."""
        session = self.server.session
        return {
            "question": self._question(session.question()),
            "next": self._question(session.question(ahead=1)),
            "progress": _plain(session.progress()),
        }

    def _question(self, view: QuestionView | None) -> dict[str, Any] | None:
        if view is None:
            return None
        media = self.server.media.describe(view.video, view.start, view.end)
        return {**view._asdict(), "media": media}

    def _send_frames(self, number: int, start: float, end: float) -> None:
        try:
            found = self.server.media.frames(number, start, end)
        except (DataError, MissingFileError) as error:
            raise RefusedError(HTTPStatus.NOT_FOUND, str(error)) from error
        if found is None:
            raise RefusedError(HTTPStatus.NOT_FOUND, "expected the number of a video, and times")
        images = [data_address(image) for image in found.images]
        self.send_json({"fps": found.fps, "images": images})


def _plain(view: Any) -> Any:
    """Returns named tuples as dicts, for JSON."""
    if not isinstance(view, tuple):
        return view
    if hasattr(view, "_asdict"):
        return {name: _plain(value) for name, value in view._asdict().items()}
    return [_plain(value) for value in view]


def serve(
    session: SessionProtocol, media: Media, *, port: int = 0, open_browser: bool = True
) -> None:
    """Serves the rating page until Ctrl-C.

    Args:
        session: What is asked and stored.
        media: The videos.
        port: The port on 127.0.0.1; 0: a free one.
        open_browser: Whether to open the page in a browser, where there is a display.

    Raises:
        pyseg.errors.ArgumentError: The port is invalid, taken or not allowed.
        pyseg.errors.UserError: jinja2 is not installed.
    """
    with RatingServer(session, media, port=port) as server, _cli.stop_requests() as stopped:
        print(f"rating page: {server.url}")
        print("every answer is stored at once; Ctrl-C ends", flush=True)
        if open_browser and _has_display():
            url = server.ticket()
            threading.Thread(target=webbrowser.open, args=(url,), daemon=True).start()
        while not stopped():
            time.sleep(0.2)


def _has_display() -> bool:
    """Returns whether a browser can open a window; one in the terminal would take that away."""
    if sys.platform != "linux":
        return True
    return any(os.environ.get(name) for name in ("DISPLAY", "WAYLAND_DISPLAY"))
