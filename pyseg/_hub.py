"""Models on a hub, by huggingface_hub; `pyseg.load` and `pyseg.push` use it.

Nothing but the files of `FILES` is downloaded, none of which is unpickled or run.
"""

from __future__ import annotations

import contextlib
import json
import os
import re
import tempfile
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

from pyseg import models, results
from pyseg._extras import requires
from pyseg._text import counted
from pyseg.backbones.registry import imports_code
from pyseg.calibration import Calibration
from pyseg.data import FeatureSet
from pyseg.data.features import FILE as FEATURES
from pyseg.data.vocabulary import SEGMENT_FILE
from pyseg.errors import ArgumentError, UserError
from pyseg.nn import FrameClassifier
from pyseg.results import RatedResult, Result
from pyseg.runs import Run

FILES = (models.WEIGHTS, models.CONFIG, FEATURES, SEGMENT_FILE, "calibration.json")
"""What a model on a hub consists of, beside its card: what `pyseg.predict.Predictor` reads."""

CARD = "README.md"
"""The file of the card."""

_NAME = re.compile(r"\w[\w.-]*/\w[\w.-]*", re.ASCII)
_LICENSE = re.compile(r"[a-z0-9][a-z0-9.+-]*")


def find(
    run: str | os.PathLike[str], revision: str | None = None, backbone: str | None = None
) -> str | os.PathLike[str]:
    """Returns a run folder: the given one, or one with the files of a model of that name.

    Args:
        run: A folder, or the name ``org/name`` of a model where there is no such folder.
        revision: The branch, tag or commit of the model.
        backbone: The network that the user has named.

    Raises:
        pyseg.errors.ArgumentError: A revision of a folder is asked for.
        pyseg.errors.UserError: There is no such model, it was not made by `push`, it names code
            that the user has not, it cannot be downloaded, or huggingface_hub is not installed.
        pyseg.errors.DataError: Its features.json is malformed.
    """
    if not isinstance(run, str) or not _NAME.fullmatch(run) or os.path.exists(run):
        if revision is not None:
            raise ArgumentError(
                f"revision: expected none, as {os.fspath(run)} is not the name of a model on a "
                f"hub, found {revision!r}"
            )
        return run
    with requires("hub", f"run: there is no folder {run}, and a model of that name"):
        from huggingface_hub import snapshot_download
    what = f"run: expected a folder or a model on the hub, found no folder {run}"
    with _explained(what):
        folder = snapshot_download(
            run, revision=revision, allow_patterns=list(FILES), endpoint=_endpoint()
        )
    for name in (models.CONFIG, models.WEIGHTS, FEATURES):
        if not Path(folder, name).is_file():
            raise UserError(f"{what}, and a model without {name}, which pyseg.push writes")
    made = Run(folder).features().backbone
    if made is not None and (made.weights or made.location):
        raise UserError(f"{what}, and a model with a path in {FEATURES}: not made by pyseg.push")
    if made is not None and backbone is None and imports_code(made.name):
        raise UserError(
            f"{what}, and a model whose {FEATURES} names code of this machine to compute features: "
            f"if that is what you want to run, give backbone={made.name!r}"
        )
    return folder


def push(
    run: str | os.PathLike[str],
    name: str,
    *,
    license: str,
    data: str | None = None,
    limits: str | None = None,
    private: bool = True,
) -> str:
    """Does the work of `pyseg.push`."""
    if not isinstance(name, str) or not _NAME.fullmatch(name):
        raise ArgumentError(f'name: expected "organisation/name", found {name!r}')
    if not isinstance(license, str) or not _LICENSE.fullmatch(license):
        raise ArgumentError(
            f'license: expected an identifier such as "apache-2.0" or "other", found {license!r}'
        )
    source = Run(run)
    if source.is_unfinished:
        raise UserError(
            f"{source}: expected a run whose training has ended; {source.how_to_resume}"
        )
    contents: dict[str, str | bytes] = dict(_contents(source, source.model()))
    contents[CARD] = card(source, name, license, data, limits).encode()
    with requires("hub", "pyseg.push"):
        from huggingface_hub import CommitOperationAdd, CommitOperationDelete, HfApi
    api = HfApi(_endpoint())
    with _explained(f"name: {name} cannot be written"):
        api.create_repo(name, private=private, exist_ok=True)
        stale = {*FILES} & {*api.list_repo_files(name)} - contents.keys()
        operations: list[Any] = [CommitOperationDelete(path) for path in sorted(stale)]
        operations += [CommitOperationAdd(path, content) for path, content in contents.items()]
        done = api.create_commit(name, operations, commit_message="A model of pyseg")
    return str(done.oid)


def _contents(run: Run, model: FrameClassifier) -> Iterator[tuple[str, str | bytes]]:
    """Yields the files to send by name, each as the path of a file or as its content.

    Raises:
        pyseg.errors.UserError: The run has no features.json.
        pyseg.errors.DataError: A file is damaged.
    """
    for path in (run.weights_file, run.folder / models.CONFIG):
        yield path.name, str(path)
    if run.rated_classes() is not None:
        yield run.vocabulary_file.name, str(run.vocabulary_file)
    written: dict[str, FeatureSet | Calibration] = {FEATURES: _without_places(run.features())}
    if (found := run.calibration(model.num_classes)) is not None:
        source = re.sub(r"\S*/", "", found.source)  # which may name data by their path
        written[run.calibration_file.name] = replace(found, source=source)
    with tempfile.TemporaryDirectory() as folder:
        for name, content in written.items():
            content.write(file := Path(folder, name))
            yield name, file.read_bytes()


def _without_places(features: FeatureSet) -> FeatureSet:
    """Returns the features without the paths of this machine."""
    made = features.backbone
    if made is None:
        return features
    name = Path(made.name).name if os.path.isabs(made.name) else made.name
    return replace(features, backbone=replace(made, name=name, weights=None, location=None))


def card(run: Run, name: str, license: str, data: str | None, limits: str | None) -> str:
    """Returns the card of a run's model, in Markdown; arguments are those of `push`."""
    model: Any = run.model()
    found = _evaluations(run)
    parts = (
        f"---\nlicense: {json.dumps(license)}\nlibrary_name: pyseg\n"
        "tags:\n- video-classification\n- pyseg\n---",
        f"# {name.partition('/')[2]}",
        _description(run, model),
        "## Use",
        f'```python\nimport pyseg\n\nmodel = pyseg.load("{name}")\n'
        'timeline = model.predict("frames.npy")  # features of a video\'s frames, or its file\n'
        "timeline.events()\n```"
        if model.config.level != "video"
        else "The files are a run folder of pyseg: `pyseg.models.load(folder)`.",
        "## Metrics",
        "\n".join(f"- {where}: {result.describe()}" for where, result in found.items())
        or "None are known.",
        "## Data",
        "\n".join(line for line in [data, *_data(run)] if line) or "Not described.",
        "## Limits",
        "\n".join(
            f"- {line}" for line in [*_limits(run, model, found), *([limits] * bool(limits))]
        ),
        "## Licence",
        f"`{license}`. The data, and the network that computes the features, have their own.",
    )
    return "\n\n".join(parts) + "\n"


def _description(run: Run, model: Any) -> str:
    features = _without_places(run.features())
    widths = ", ".join(f"{name} ({width})" for name, width in features.features)
    parameters = sum(parameter.numel() for parameter in model.parameters())
    unit = "videos" if model.config.level == "video" else "segments"
    length = "" if unit == "videos" else f" of {features.segment_seconds:g} s"
    made = f", computed by {_code(features.backbone.name)}" if features.backbone else ""
    return (
        f"Classifies {unit}{length} of videos: {counted(model.num_classes, 'class')}, any number "
        f"of which may be present. A model of the preset {_code(model.config.name)} with "
        f"{parameters:,} parameters, for frames every {features.frame_seconds:g} s of the features "
        f"{_code(widths)}{made}."
    )


def _evaluations(run: Run) -> dict[str, Result]:
    """Returns results by what they are of.

    They are that of the weights that training kept, and the last one of `pyseg.evaluate` for each
    data and part.
    """
    lines = [line for line in run.log() if line["stage"] == "evaluate"]
    found: dict[str, Result] = {}
    last = next((line["after"] for line in reversed(lines) if "after" in line), None)
    for line in lines:
        result = results.parse(line)
        if "after" not in line:
            found[f"{_place(line.get('data'))}, {_code(line.get('part'))}"] = result
        elif line["after"] == last:
            where = f"held-out videos, after {_code(last)}"
            if where not in found or not result.score <= found[where].score:
                found[where] = result
    return found


def _data(run: Run) -> Iterator[str]:
    if not run.config_file.is_file():
        return
    config = run.config()
    yield (
        f"Trained on {_place(config.data)}; {config.test_fraction:.0%} of the videos were held out "
        f"(seed {config.seed})."
    )
    if config.final_fit:
        yield (
            "After they were evaluated, the weights were fine-tuned again on all ratings, also "
            "those of held-out videos."
        )


def _limits(run: Run, model: Any, found: dict[str, Result]) -> Iterator[str]:
    yield "It knows the classes of its training data only, and says nothing about others."
    if run.calibration_file.is_file():
        yield "Its probabilities are calibrated on data like those of training, not on others."
    else:
        yield "Its scores rank; they are not calibrated, so that 0.5 is not a probability of 50%."
    if found:
        yield "It was measured on the data above only; other videos may give worse results."
    else:
        yield "It has not been measured."
    for result in found.values():
        if isinstance(result, RatedResult) and result.classes < result.all_classes:
            known = counted(result.all_classes, "class")
            yield (
                f"{result.all_classes - result.classes} of {known} have no "
                "positive among the ratings of an evaluation, so that it says nothing about them."
            )
            break


def _place(data: Any) -> str:
    """Returns the name of data without the folders that it lies in."""
    return _code(Path(str(data)).name or "data")


def _code(text: Any) -> str:
    return f"`{' '.join(str(text).replace('`', ' ').split())}`"


def _endpoint() -> str | None:
    """Returns where the hub is, which the client reads only once, when it is imported."""
    return os.environ.get("HF_ENDPOINT") or None


@contextlib.contextmanager
def _explained(what: str) -> Iterator[None]:
    """Makes a `UserError` of any failure of the client, whose errors have no common base."""
    try:
        yield
    except Exception as error:
        reason = next(iter(str(error).strip().splitlines()), type(error).__name__)
        raise UserError(f"{what}: {reason}") from error
