"""The reader of Label Studio's JSON export."""

from __future__ import annotations

from typing import Any, NoReturn

from pyseg._containers import parse_json
from pyseg._text import counted
from pyseg.data.annotations.interval import AnnotationFile, Interval, read_bounded
from pyseg.errors import ArgumentError, DataError


def read_label_studio(path: str, fps: float | None) -> AnnotationFile:
    """Reads the export "JSON" of Label Studio with TimelineLabels; the classes are the labels.

    A range has the numbers of its first and last frame, from 1: of 25 frames a second, 1 to 25 are
    the first second. A task that was annotated without any label counts as looked at. Cancelled
    annotations, predictions and results of other tags are left out.

    Source: https://labelstud.io/tags/timelinelabels, and the conversion of ranges in
    https://github.com/HumanSignal/label-studio-ml-backend, examples/yolo/utils/converter.py

    Args:
        path: The file.
        fps: Frames a second: the ``frameRate`` of the Video tag, by default 24.

    Raises:
        pyseg.errors.ArgumentError: ``fps`` is missing.
        pyseg.errors.DataError: The content is something else; the message names file and task.
        OSError: The file cannot be read.
    """
    content = read_bounded(path)
    try:
        text = content.decode("utf-8-sig")
    except UnicodeDecodeError as error:
        raise DataError(f"{path}: expected UTF-8 text, found {error}") from error
    tasks = parse_json(text, path)
    if isinstance(tasks, dict):  # of one task
        tasks = [tasks]
    if not isinstance(tasks, list):
        raise DataError(f"{path}: expected a JSON list of tasks, found {type(tasks).__name__}")
    if fps is None and any("annotations" in task for task in tasks if isinstance(task, dict)):
        raise ArgumentError(
            "annotation_fps: expected the frames a second of the videos, since Label Studio counts "
            f"frames in {path}; found none"
        )
    found = AnnotationFile()
    others = 0
    for number, task in enumerate(tasks):
        others += _Task(path, number, task, found, fps or 1.0).read()
    if others:
        found.notes.append(f"{path}: left out {counted(others, 'result')} without timelinelabels")
    return found


class _Task:
    """A task of an export, whose intervals are added to ``found``."""

    def __init__(
        self, path: str, number: int, task: Any, found: AnnotationFile, fps: float
    ) -> None:
        self._task, self._found, self._fps = task, found, fps
        id = task.get("id") if isinstance(task, dict) else None
        self.where = f"{path}, task {id if isinstance(id, int) else number}"

    def fail(self, expected: str) -> NoReturn:
        raise DataError(f"{self.where}: expected {expected}")

    def read(self) -> int:
        """Adds the intervals; returns the number of other results."""
        annotations = self._get(self._task, "annotations", list, "the task (export as JSON)")
        others = 0
        for annotation in annotations:
            result = self._get(annotation, "result", list, "an annotation")
            if annotation.get("was_cancelled"):
                continue
            self._found.videos.setdefault(self.video(), self.where)
            for region in result:
                value = self._get(region, "value", dict, "a result")
                if "timelinelabels" not in value:
                    others += 1
                    continue
                self._add(value)
        return others

    def video(self) -> str:
        """Returns the path of the task's video: ``video`` in its data, or the only text there."""
        data = self._get(self._task, "data", dict, "the task")
        texts = [value for value in data.values() if isinstance(value, str) and value]
        video = data.get("video", texts[0] if len(texts) == 1 else None)
        if not isinstance(video, str) or not video:
            self.fail(f"the path of a video under the key video of data, found {sorted(data)}")
        return video

    def _add(self, value: dict[str, Any]) -> None:
        labels = self._get(value, "timelinelabels", list, "a value")
        for span in self._get(value, "ranges", list, "a value"):
            first = self._get(span, "start", int, "a range")
            last = self._get(span, "end", int, "a range")
            if not 1 <= first <= last:
                self.fail(f"a range of frames from 1, start <= end, found {first} to {last}")
            if last > 2**53:
                self.fail(f"numbers of frames below 2**53, found {last}")
            for label in labels:
                if not isinstance(label, str) or not label.strip():
                    self.fail(f"the names of classes in timelinelabels, found {label!r}")
                start, end = (first - 1) / self._fps, last / self._fps
                name = label.strip()
                self._found.add(Interval(self.video(), start, end, name, 1.0, self.where))

    def _get(self, content: Any, key: str, kind: type, of: str) -> Any:
        value = content.get(key) if isinstance(content, dict) else None
        if type(value) is not kind:
            self.fail(f"{key} of {of} to be a JSON {_KINDS[kind]}, found {value!r:.60}")
        return value


_KINDS = {list: "list", dict: "object", int: "integer"}
