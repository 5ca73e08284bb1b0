"""A server, and a download from it."""

from __future__ import annotations

import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest

from pyseg.data.download import DownloadConfig, DownloadReport, download
from pyseg.data.download import client as clients

from .servers import Server


@pytest.fixture
def server(monkeypatch: pytest.MonkeyPatch) -> Iterator[Server]:
    monkeypatch.setenv("no_proxy", "127.0.0.1")
    monkeypatch.setattr(clients, "FIRST_WAIT", 0.001)
    with Server() as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,), daemon=True)
        thread.start()
        yield server
        server.closing.set()
        server.shutdown()
        thread.join()


@pytest.fixture
def fetch(server: Server, tmp_path: Path) -> Callable[..., DownloadReport]:
    def fetch(**options: object) -> DownloadReport:
        given = {"server": server.url, "retries": 2, "timeout": 10.0, "folder": str(tmp_path)}
        return download(DownloadConfig("frame", "train", **(given | options)))  # type: ignore[arg-type]

    return fetch


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return tmp_path / "frame-train"
