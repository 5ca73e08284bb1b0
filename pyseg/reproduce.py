"""The paper's tables on data at hand: ``python -m pyseg.reproduce --data yt8m --table 3``.

Every row of a table is a training run (`pyseg.train`) for each of some seeds, on the data of a
protocol (`pyseg.protocols`). Written are, in one folder:

* ``tables.md``: the tables, beside the paper's numbers;
* ``tables.json``: the same, with the values of every seed;
* ``table-<name>.png``: pictures of them, with the extra ``report``;
* ``runs``: the run folders, which say what was trained. Rows that have been run are not run again:
  an interrupted command goes on, and a second one for another table takes what it shares with the
  first.

What the tables are:

* 2: architectures; 3: reweighting; 4: label correlation; 5: a graph of the labels on DBoF. They are
  the paper's.
* best: how much of the distance between plain cross-entropy and training on complete labels is
  closed by the paper's recipe, by ``--recipe best`` of pyseg.train, and by that with a part of it
  taken out.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import importlib.util
import json
import math
import shutil
import time
from collections.abc import Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal, NamedTuple

import numpy as np
import torch

import pyseg
from pyseg import _charts, _cli, distributed, models
from pyseg._containers import parse_json
from pyseg._extras import install_command
from pyseg._files import atomic_write, remove_unfinished, sole_owner
from pyseg._memory import keep_memory
from pyseg._progress import Progress
from pyseg.config import RECIPES, LossConfig, StageConfig, TrainConfig
from pyseg.errors import DataError, UserError
from pyseg.protocols import Model, Part, Protocol, open_protocol
from pyseg.train import train

PLAIN = LossConfig(rated_weight=1.0, unrated_weight=1.0, correlation="none")
"""Cross-entropy, where what nobody rated counts as absent."""

_RESULT = "result.json"
_QUICK = 4  # times fewer steps


@dataclass
class ReproduceConfig:
    """What to reproduce, on what.

    Args:
        table: Which table of the paper, "best" for what goes beyond it, "all" for all that the data
            allows.
        data: The protocol.
        folder: Where its data are; default: the folder of its name. The sample needs none.
        seeds: Runs a row.
        quick: A quarter of the steps and one seed, to see that it works.
        part: "validation" holds out a part of the training videos instead of the test videos: for
            choosing between recipes.
        out: The folder to write; default: runs/reproduce-<data>, with the options that are not the
            default ones in its name.
        device: "cpu", "cuda", ...; default: a GPU where there is one.

    Raises:
        ValueError: A value is out of its range.
    """

    table: Literal["2", "3", "4", "5", "best", "all"] = "all"
    data: Literal["yt8m", "audioset", "sample"] = "sample"
    folder: str | None = None
    seeds: int = 3
    quick: bool = False
    part: Part = "test"
    out: str | None = None
    device: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.check_range("seeds", self.seeds, 1)


@dataclass(frozen=True)
class Row:
    """A row of a table: what is trained.

    Attributes:
        name: What it is called.
        model: The model.
        loss: The loss of fine-tuning.
        paper: The paper's number.
        complete: Whether it learns from complete labels: the ceiling.
        copies: How many models learn together, see `pyseg.config.TrainConfig`.
    """

    name: str
    model: Model
    loss: LossConfig
    paper: float | None = None
    complete: bool = False
    copies: int = 1


@dataclass(frozen=True)
class Table:
    """A table.

    Attributes:
        name: As on the command line.
        title: What it shows.
        rows: Its rows; the others are compared with the first.
        ceiling: Whether the last row is one, so that it can be said how much of the way is done.
    """

    name: str
    title: str
    rows: list[Row]
    ceiling: bool = False


def recipe_row(name: str, model: Model, recipe: str, copies: int | None = None, **loss: Any) -> Row:
    """Returns a row with a recipe of pyseg.train.

    Args:
        name: The row's name.
        model: The model.
        recipe: Which recipe.
        copies: How many models learn together; default: as many as in the recipe.
        loss: Changes to its loss.
    """
    given = RECIPES[recipe]
    own = {key.removeprefix("loss."): given[key] for key in given if key.startswith("loss.")}
    copies = given.get("copies", 1) if copies is None else copies
    return Row(name, model, LossConfig(**(own | loss)), copies=copies)


def make_tables(protocol: Protocol) -> list[Table]:
    """Returns the tables that a protocol has the data for, in order."""
    model = protocol.model
    reweighted = LossConfig(correlation="none")
    correlated = LossConfig(correlation="auto", threshold=0.5)
    tables = []
    if protocol.architectures:
        papers = (0.770, 0.773, 0.778)
        rows = [
            Row(name, architecture, PLAIN, paper=number)
            for (name, architecture), number in zip(
                protocol.architectures.items(), papers, strict=True
            )
        ]
        tables.append(Table("2", "model architectures", rows))
    tables.append(
        Table(
            "3",
            "label reweighting, n = 0.1",
            [
                Row("plain", model, PLAIN, paper=0.778),
                Row("m = 2.0", model, replace(reweighted, rated_weight=2.0), paper=0.782),
                Row("m = 2.5", model, reweighted, paper=0.783),
                Row("m = 3.0", model, replace(reweighted, rated_weight=3.0), paper=0.781),
            ],
        )
    )
    rows = [Row("m = 2.5, n = 0.1", model, reweighted, paper=0.783)]
    rows += [
        Row(f"τ = {tau}", model, replace(correlated, threshold=tau), paper=number)
        for tau, number in ((0.3, None), (0.4, 0.788), (0.5, 0.791), (0.6, 0.789))
    ]
    tables.append(Table("4", "label correlation, on top of reweighting", rows))
    numbers = zip(protocol.graph_models.items(), (0.740, 0.749), strict=True)
    tables.append(
        Table(
            "5",
            "a graph of the labels",
            [Row(name, graph, correlated, paper=number) for (name, graph), number in numbers],
        )
    )
    best = functools.partial(recipe_row, model=model, recipe="best")
    whole, alone = best("--recipe best"), functools.partial(best, copies=1)
    rows = [
        Row("plain", model, PLAIN),
        Row("the paper's recipe (m = 2.5, n = 0.1, τ = 0.5)", model, correlated),
        whole,
        alone("  one model alone"),
        alone("  alone, without absent evidence", absent_evidence=0.0),
        alone("  alone, with the paper's τ = 0.5", threshold=0.5),
        alone("  alone, with the paper's m = 2.5, n = 0.1", rated_weight=2.5, unrated_weight=0.1),
    ]
    if protocol.has_ceiling:
        ceiling = Row("complete labels, the ceiling", model, PLAIN, complete=True)
        together = f"complete labels, {whole.copies} models"
        rows += [replace(ceiling, name=together, copies=whole.copies), ceiling]
    tables.append(Table("best", "beyond the paper", rows, ceiling=protocol.has_ceiling))
    return tables


@dataclass(frozen=True)
class Outcome:
    """What the runs of a row gave.

    Attributes:
        row: The row.
        values: By measure, a value a seed.
        seconds: What a run took, on average.
    """

    row: Row
    values: dict[str, list[float]]
    seconds: float


class Estimate(NamedTuple):
    """A mean over seeds.

    Attributes:
        mean: The mean.
        error: Its standard error; NaN of a single value.
    """

    mean: float
    error: float

    @classmethod
    def of(cls, values: Sequence[float]) -> Estimate:
        """Returns the estimate of some values.

        Example:
            >>> Estimate.of([1.0, 2.0, 3.0])
            Estimate(mean=2.0, error=0.5773502691896258)
        """
        several = len(values) > 1
        error = float(np.std(values, ddof=1)) / math.sqrt(len(values)) if several else math.nan
        return cls(float(np.mean(values)), error)

    @property
    def is_clear(self) -> bool:
        """Whether it is more than two standard errors away from 0."""
        return abs(self.mean) > 2 * self.error

    def text(self, form: str) -> str:
        """Returns it with an own format for its numbers, as ``0.353 ± 0.004``."""
        error = "" if math.isnan(self.error) else f" ± {self.error:{form.replace('+', '')}}"
        return f"{self.mean:{form}}{error}"


class Experiments:
    """Carries out rows, and keeps what they gave.

    Args:
        protocol: The data.
        folder: Where runs are kept.
        quick: Whether to take fewer steps.
        device: Where to train.
    """

    def __init__(
        self, protocol: Protocol, folder: Path, *, quick: bool = False, device: str | None = None
    ) -> None:
        self.protocol = protocol
        self.folder = folder
        self.quick = quick
        self.device = device
        folder.mkdir(parents=True, exist_ok=True)

    def run(self, row: Row, seed: int) -> dict[str, Any]:
        """Returns the measures of a row with a seed, and the seconds that it took.

        A run that has been finished before is looked up.
        """
        config = self._config(row, seed)
        folder = self.folder / f"{self._key(config, row.complete)}-{seed}"
        result = folder / _RESULT
        if result.is_file():
            found: dict[str, Any] = parse_json(result.read_bytes(), str(result), finite=False)
            if not isinstance(found, dict) or found.keys() != {"measures", "seconds"}:
                raise DataError(f"{result}: expected measures and seconds: delete {folder}")
            return found
        began = time.perf_counter()
        if self.protocol.pretrain is not None:
            config = replace(config, init=str(self._pretrained(row, seed)))
        self._train(replace(config, run=str(folder)), row.complete)
        model = models.load(folder, device=distributed.pick_device(self.device))
        measures = self.protocol.measure(model, seed)
        found = {"measures": measures, "seconds": time.perf_counter() - began}
        with atomic_write(result) as file:
            file.write(json.dumps(found).encode())
        return found

    def _config(self, row: Row, seed: int) -> TrainConfig:
        return TrainConfig(
            data=self.protocol.name,
            model=row.model.name,
            overrides=dict(row.model.overrides),
            copies=row.copies,
            stage="finetune",
            finetune=self._shortened(self.protocol.finetune),
            loss=row.loss,
            seed=seed,
            device=self.device,
        )

    def _key(self, config: TrainConfig, complete: bool = False) -> str:
        """Returns a name for the runs of a row: another one where anything differs but the seed."""
        options = {
            **asdict(config),
            "seed": None,
            "complete": complete,
            "data": str(self.protocol.folder.resolve()),
            "part": self.protocol.part,
            "version": pyseg.__version__,
        }
        text = json.dumps(options, sort_keys=True)
        return f"{config.model}-{hashlib.sha256(text.encode()).hexdigest()[:10]}"

    def _pretrained(self, row: Row, seed: int) -> Path:
        """Returns the run that a row with a seed goes on from."""
        assert self.protocol.pretrain is not None
        config = replace(
            self._config(row, seed),
            stage="pretrain",
            pretrain=self._shortened(self.protocol.pretrain),
            finetune=StageConfig(0, 1.0),
            loss=self._graph_loss(row),
        )
        folder = self.folder / f"{self._key(config)}-{seed}-pretrained"
        done = folder / _RESULT
        if not done.is_file():
            self._train(replace(config, run=str(folder)), complete=False)
            with atomic_write(done) as file:
                file.write(b"{}")
        return folder

    def _graph_loss(self, row: Row) -> LossConfig:
        """Returns what pretraining needs of a loss: the graph of a model that has one."""
        known = models.options(row.model.name, head=row.model.overrides.get("head"))
        return row.loss if "correlation" in known else PLAIN

    def _shortened(self, stage: StageConfig) -> StageConfig:
        return replace(stage, steps=stage.steps // _QUICK) if self.quick else stage

    def _train(self, config: TrainConfig, complete: bool) -> None:
        folder = Path(config.run or "")
        shutil.rmtree(folder, ignore_errors=True)  # of a run that was interrupted
        log = folder.with_suffix(".log")
        loss = self.protocol.loss(config.loss, self.folder)
        collection = self.protocol.collection(config.seed, complete=complete)
        with log.open("w", encoding="utf-8") as file, contextlib.redirect_stdout(file):
            train(replace(config, loss=loss), collection)


def differences(outcomes: Sequence[Outcome], measure: str) -> list[Estimate]:
    """Returns how much better rows are than the first one, seed by seed."""
    first = np.array(outcomes[0].values[measure])
    return [Estimate.of(np.array(outcome.values[measure]) - first) for outcome in outcomes]


def gaps_closed(outcomes: Sequence[Outcome], measure: str) -> list[Estimate] | None:
    """Returns where rows lie between the first row, 0, and the last, 1, seed by seed.

    None where the two do not clearly differ: there is no gap then that could be closed. A single
    seed is believed.
    """
    gap = differences(outcomes, measure)[-1]
    if gap.mean == 0 or not (gap.is_clear or math.isnan(gap.error)):
        return None
    values = np.array([outcome.values[measure] for outcome in outcomes])
    return [Estimate.of(row) for row in (values - values[0]) / (values[-1] - values[0])]


def describe(table: Table, outcomes: Sequence[Outcome], measures: Sequence[str]) -> str:
    """Returns a table as Markdown: a row a line, beside the paper's numbers where it has any."""
    papers = any(row.paper is not None for row in table.rows)
    head = [""] + ["paper"] * papers
    columns: list[list[str]] = [[outcome.row.name.replace("  ", "– ") for outcome in outcomes]]
    if papers:
        columns.append(["" if o.row.paper is None else f"{o.row.paper:.3f}" for o in outcomes])
    for measure in measures:
        head += [measure, "difference"]
        columns.append([Estimate.of(outcome.values[measure]).text(".3f") for outcome in outcomes])
        compared = [""] + [
            difference.text("+.3f") + " *" * difference.is_clear
            for difference in differences(outcomes, measure)[1:]
        ]
        columns.append(compared)
        if table.ceiling and (closed := gaps_closed(outcomes, measure)) is not None:
            head.append("of the gap")
            columns.append([gap.text(".0%") for gap in closed])
    lines = [head, ["---", *["---:"] * (len(head) - 1)], *zip(*columns, strict=True)]
    title = f"## {'Table ' * table.name.isdigit()}{table.name}: {table.title}"
    return "\n".join([title, "", *("| " + " | ".join(line) + " |" for line in lines)]) + "\n"


def to_json(table: Table, outcomes: Sequence[Outcome], measures: Sequence[str]) -> dict[str, Any]:
    """Returns a table with the values of every seed, and what they give."""
    rows = []
    compared = {measure: differences(outcomes, measure) for measure in measures}
    closed = {m: gaps_closed(outcomes, m) for m in measures} if table.ceiling else {}
    for number, outcome in enumerate(outcomes):
        row: dict[str, Any] = {"name": outcome.row.name.strip(), "paper": outcome.row.paper}
        row["seconds_a_run"] = round(outcome.seconds, 1)
        row["loss"] = asdict(outcome.row.loss)
        row["model"] = asdict(outcome.row.model) | {"copies": outcome.row.copies}
        for measure in measures:
            row[measure] = {
                "values": outcome.values[measure],
                **_plain(Estimate.of(outcome.values[measure])),
                "difference": _plain(compared[measure][number]),
            }
            if (gaps := closed.get(measure)) is not None:
                row[measure]["gap_closed"] = _plain(gaps[number])
        rows.append(row)
    return {"table": table.name, "title": table.title, "rows": rows}


def _plain(estimate: Estimate) -> dict[str, float | None]:
    """Returns an estimate as JSON has it, which knows no NaN."""
    error = None if math.isnan(estimate.error) else estimate.error
    return {"mean": estimate.mean, "standard_error": error}


def draw(table: Table, outcomes: Sequence[Outcome], measures: Sequence[str]) -> bytes:
    """Draws a table: every row's mean with two standard errors, beside the paper's number."""
    panels = [
        (measure, [Estimate.of(outcome.values[measure]) for outcome in outcomes])
        for measure in measures
    ]
    papers = [outcome.row.paper for outcome in outcomes]
    if any(number is not None for number in papers):
        own = [Estimate(math.nan if n is None else n, math.nan) for n in papers]
        panels.append(("the paper's map@100k", own))
    names = [outcome.row.name for outcome in outcomes]
    return _charts.draw_estimates(table.title, names, panels)


def reproduce(config: ReproduceConfig) -> Path:
    """Runs experiments and writes their tables; returns the folder.

    Raises:
        pyseg.errors.UserError: The data does not allow the table.
        FileNotFoundError: The data is not there.
    """
    extras = [config.part] * (config.part != "test") + ["quick"] * config.quick
    out = Path(config.out or "runs/" + "-".join(["reproduce", config.data, *extras]))
    _cli.check_out_folder("out", out)
    folder = Path(config.folder or config.data)
    protocol = open_protocol(config.data, folder, config.part)
    tables = make_tables(protocol)
    if config.table != "all":
        known = ", ".join(table.name for table in tables)
        tables = [table for table in tables if table.name == config.table]
        if not tables:
            raise UserError(
                f"--table {config.table}: expected one of {known}, which {config.data} has the "
                "data for"
            )
    if not _can_draw():
        print(f"no pictures without matplotlib: {install_command('report')}")
    out.mkdir(parents=True, exist_ok=True)
    with sole_owner(out):
        return _reproduce(config, protocol, tables, out)


def _reproduce(
    config: ReproduceConfig, protocol: Protocol, tables: Sequence[Table], out: Path
) -> Path:
    """Does what `reproduce` says, in a folder of its own."""
    remove_unfinished(out)
    experiments = Experiments(protocol, out / "runs", quick=config.quick, device=config.device)
    seeds = range(1 if config.quick else config.seeds)
    print(f"{protocol.name}: {protocol.description}")
    texts, numbers = [], []
    total = len(seeds) * sum(len(table.rows) for table in tables)
    began = time.perf_counter()
    with Progress("reproduce", "runs", total) as bar:
        for table in tables:
            outcomes = []
            for row in table.rows:
                runs = []
                for seed in seeds:
                    runs.append(experiments.run(row, seed))
                    bar.update()
                values = {m: [run["measures"][m] for run in runs] for m in protocol.measures}
                seconds = float(np.mean([run["seconds"] for run in runs]))
                outcomes.append(Outcome(row, values, seconds))
                means = ", ".join(f"{m} {Estimate.of(v).text('.4f')}" for m, v in values.items())
                bar.write(f"{table.name}: {row.name.strip()}: {means} ({seconds:.0f} s a run)")
            measures = list(protocol.measures)
            texts.append(describe(table, outcomes, measures))
            numbers.append(to_json(table, outcomes, measures))
            if _can_draw():
                with atomic_write(out / f"table-{table.name}.png") as file:
                    file.write(draw(table, outcomes, measures))
            _write(out, config, protocol, texts, numbers, len(seeds))
    print(f"{time.perf_counter() - began:.0f} s; written: {out / 'tables.md'}")
    return out


def _can_draw() -> bool:
    return importlib.util.find_spec("matplotlib") is not None


def _write(
    out: Path,
    config: ReproduceConfig,
    protocol: Protocol,
    texts: Sequence[str],
    numbers: Sequence[dict[str, Any]],
    seeds: int,
) -> None:
    """Writes the tables that there are so far."""
    steps = f"{protocol.finetune.steps // (_QUICK if config.quick else 1)} steps"
    intro = [
        f"# The paper's tables on {protocol.name}",
        "",
        f"{protocol.description[0].upper()}{protocol.description[1:]}. {steps} of "
        f"{protocol.finetune.batch_size}; {seeds} seed{'s' * (seeds > 1)}, mean ± standard error; "
        "differences are from the first row, seed by seed; * marks those of more than two standard "
        "errors." + " Held out: the validation part." * (config.part == "validation"),
        "",
        *(f"- `{name}`: {text}" for name, text in protocol.measures.items()),
        "",
    ]
    with atomic_write(out / "tables.md") as file:
        file.write("\n".join([*intro, *texts]).encode())
    everything = {
        "protocol": protocol.name,
        "part": config.part,
        "quick": config.quick,
        "seeds": seeds,
        "pyseg": pyseg.__version__,
        "torch": torch.__version__,
        "measures": dict(protocol.measures),
        "tables": list(numbers),
    }
    with atomic_write(out / "tables.json") as file:
        file.write((json.dumps(everything, indent=2) + "\n").encode())


def main(argv: Sequence[str] | None = None) -> None:
    """Runs ``python -m pyseg.reproduce``."""
    keep_memory()
    parser = _cli.make_parser(
        ReproduceConfig, "pyseg.reproduce", "Runs the paper's experiments on the data at hand."
    )
    reproduce(_cli.parse(parser, ReproduceConfig, argv))


if __name__ == "__main__":
    _cli.run(main)
