"""The options of a training run, which its run folder stores for later commands."""

from __future__ import annotations

import functools
import json
import math
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass, field, fields
from typing import TYPE_CHECKING, Any, ClassVar, Literal, TypeVar, cast, get_args

from pyseg import _cli, models
from pyseg._precision import MixedPrecisionName
from pyseg._registry import suggestion
from pyseg.data.memory import MOST_WORKERS
from pyseg.data.records import OnError
from pyseg.errors import ArgumentError

if TYPE_CHECKING:
    from jsonargparse import ArgumentParser, Namespace

Options = TypeVar("Options")


@dataclass
class StageConfig:
    """One stage of training.

    Args:
        steps: Optimizer steps; 0 leaves the stage out.
        learning_rate: Adam's learning rate.
        batch_size: Examples per step, of all processes together.
        schedule: Schedule of the learning rate: "constant"; "step": times --decay every
            --decay_examples examples, as in the public YouTube-8M code; "cosine": down to 0 at the
            last step.
        decay: The factor of the schedule "step".
        decay_examples: Examples between two decays of the schedule "step".
        warmup_steps: Steps of linear growth of the learning rate.
        clip_norm: Maximum norm of all gradients together; default: no limit.
        ema: Decay of the moving average of weights that is evaluated and saved; 0: no average.
        noise: Standard deviation of the Gaussian noise on half of a frame's dimensions.
        l2: Strength of the L2 penalty on the head's weights (`pyseg.nn.l2_penalty`).
        loss: A registered loss; "rated-bce" is binary cross-entropy with the weights and targets of
            --loss.
        loss_overrides: Arguments of the loss to change, as in --finetune.loss_overrides.gamma 2.
        evaluate_every: Steps between evaluations on held-out videos; 0: only at the end. The best
            weights are kept.
        patience: Evaluations without improvement until training stops; 0: never.

    Raises:
        ValueError: A value is out of its range.
    """

    steps: int
    learning_rate: float
    batch_size: int = 80
    schedule: Literal["constant", "step", "cosine"] = "constant"
    decay: float = 0.8
    decay_examples: int = 2_000_000
    warmup_steps: int = 0
    clip_norm: float | None = None
    ema: float = 0.0
    noise: float = 0.0
    l2: float = 0.0
    loss: str = "rated-bce"
    loss_overrides: dict[str, Any] = field(default_factory=dict)
    evaluate_every: int = 0
    patience: int = 0

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.check_range("batch_size", self.batch_size, 1, _cli.MOST_EXAMPLES)
        for name, least in (
            ("steps", 0),
            ("decay_examples", 1),
            ("warmup_steps", 0),
            ("evaluate_every", 0),
            ("patience", 0),
            ("noise", 0.0),
            ("l2", 0.0),
        ):
            _cli.check_range(name, getattr(self, name), least)
        for name in ("learning_rate", "decay", "clip_norm"):
            _cli.check_above(name, getattr(self, name), 0)
        if not 0 <= self.ema < 1:
            raise ArgumentError(f"ema: expected a number in [0, 1), found {self.ema}")
        if self.patience and not self.evaluate_every:
            raise ArgumentError("patience: expected evaluate_every with it, found 0")

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, counted from 0.

        Example:
            >>> stage = StageConfig(100, 0.5, batch_size=10, schedule="step", decay_examples=200)
            >>> [stage.learning_rate_at(step) for step in (0, 19, 20)]
            [0.5, 0.5, 0.4]
        """
        rate = self.learning_rate
        if self.schedule == "step":
            rate *= self.decay ** (step * self.batch_size // self.decay_examples)
        elif self.schedule == "cosine":
            after = max(0, step - self.warmup_steps)
            total = max(1, self.steps - self.warmup_steps)
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, after / total)))
        return rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass
class LossConfig:
    """The loss of fine-tuning on rated segments: the paper's sections 3.2 and 3.3.

    Args:
        rated_weight: The weight m of a rated class (eq. 3).
        unrated_weight: The weight n of every other class.
        correlation: Correlation of labels for the targets of unrated classes (eq. 6): a file of
            pyseg.cooccur; "auto": counted from the labels of the training videos; or "none".
        threshold: Counted probabilities below it are dropped (eq. 5).
        min_support: Counted pairs of fewer videos are dropped.
        prior: Videos that the base rates of labels are worth where probabilities are counted
            (`pyseg.labels.prior_strength`): 0: none (eq. 4); "fit": what the counts say.
        absent_evidence: Evidence of a class rated 0, relative to one rated 1: how much it says of
            the other classes; 0 in the paper. "bayes": what it says by Bayes' rule, if a rater is
            asked about a class because of one that comes with it
            (`pyseg.labels.LabelCorrelation.when_absent`).

    Raises:
        ValueError: A value is out of its range.
    """

    rated_weight: float = 2.5
    unrated_weight: float = 0.1
    correlation: str = "auto"
    threshold: float = 0.5
    min_support: int = 1
    prior: float | Literal["fit"] = 0.0
    absent_evidence: float | Literal["bayes"] = 0.0

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("rated_weight", "unrated_weight"):
            _cli.check_range(name, getattr(self, name), 0)
        _cli.check_range("threshold", self.threshold, 0, 1)
        if self.absent_evidence != "bayes":
            _cli.check_range("absent_evidence", self.absent_evidence, 0, 1)
        _cli.check_range("min_support", self.min_support, 1)
        if self.prior != "fit":
            _cli.check_range("prior", self.prior, 0)


# The values of each recipe that differ from the defaults. The paper gives learning rates, batch
# size and steps; the decay and the penalty are those of the public NeXtVLAD code. "best" closes
# most of the gap between plain targets and complete labels on YouTube-8M (`pyseg.reproduce`, tables
# "best" and "curve"); the weights count for a model that takes steps in place of its own.
RECIPES: dict[str, dict[str, Any]] = {
    "sample": {},
    "best": {
        "model": "ridge",
        "loss.rated_weight": 1.0,
        "loss.unrated_weight": 0.2,
        "loss.threshold": 0.0,
        "loss.absent_evidence": "bayes",
    },
    "paper": {
        "model": "paper-mixture",
        "pad_frames": True,
        "pretrain.steps": 200_000,
        "pretrain.learning_rate": 2e-4,
        "pretrain.batch_size": 80,
        "pretrain.schedule": "step",
        "pretrain.decay_examples": 2_500_000,
        "pretrain.l2": 1e-5,
        "pretrain.evaluate_every": 20_000,
        "finetune.steps": 250_000,
        "finetune.learning_rate": 1e-5,
        "finetune.batch_size": 80,
        "finetune.l2": 1e-5,
        "finetune.noise": 0.1,
        "finetune.evaluate_every": 5_000,
    },
}


def _takes_defaults(config_class: type[Options]) -> type[Options]:
    """Gives options that are not given the values of the recipe and the preset, in Python too."""
    make = config_class.__init__
    names = [option.name for option in fields(cast(Any, config_class))]

    @functools.wraps(make)
    def init(self: Any, *values: Any, **options: Any) -> None:
        make(self, *values, **options)
        if self.recipe not in RECIPES:
            known = ", ".join(RECIPES)
            raise ArgumentError(f"recipe: expected one of {known}, found {self.recipe!r}")
        given = {*names[: len(values)], *options}
        if "model" not in given:
            self.model = RECIPES[self.recipe].get("model", self.model)
        for name, value in recipe_defaults(vars(self)).items():
            group, _, key = name.rpartition(".")
            if (group or key) not in given:
                setattr(getattr(self, group) if group else self, key, value)

    cast(Any, config_class).__init__ = init
    return config_class


@_takes_defaults
@dataclass
class TrainConfig:
    """What to train, and on which data.

    Args:
        data: Records as a folder, a glob or a file, local or as a URL; or "sample", a small
            collection that is generated in the user's cache folder at first use.
        labels: Tables of AudioSet's strong labels, file or glob; default: those beside the
            records.
        vocabulary: A vocabulary.csv that names the classes; default: the one beside the records.
        model: A preset of pyseg.models, or a registered one. "linear", for few ratings, has a
            learning rate, a schedule and an L2 penalty of its own.
        overrides: Arguments of the preset to change, as in --overrides.hidden_size 256.
        copies: Models of this kind to train together, each with its own weights: the mixture with
            distillation of the paper's section 3.1. Not for a model that is a mixture already.
        eigenvalues: A .npy file of the features' PCA eigenvalues, which
            --overrides.normalization unwhiten needs.
        node_features: Features of the labels (C, D) for a model with the head "gcn", whose graph
            starts as the correlation of --loss.correlation: a .npy file; or "auto", which embeds
            the labels by how often they occur together in the training videos, in
            --overrides.node_size numbers. Default: learnt from random ones.
        graph_threshold: Smaller probabilities are left out of the label graph, though not of the
            targets; --loss.threshold leaves out of both.
        recipe: Defaults of other options: "paper" is the paper's schedule and mixture, of 200,000
            and 250,000 steps; "best" makes the most of few ratings, by ridge regression unless a
            model is given. Given options take precedence;
            in Python a whole `StageConfig` or `LossConfig` is one option.
        solver: "gradient" takes the steps of the stages; "ridge" solves a linear model as a ridge
            regression of the targets, in two passes over the data, without weights of the loss and
            all other options of a stage but its batch size, and 0 steps, which leave it out.
        stage: The stages to run.
        classes: Classes to fine-tune: all, or only the rated ones, whose rows the head keeps.
        final_fit: Fine-tune again on all ratings: from the same weights on all rated segments, also
            those of held-out videos, for the best number of steps; these weights are kept.
        init: A saved model to start from: a run folder, or one saved by `pyseg.models`.
        run: The folder to write; default: the next free runs/<data>-<model>-<number>.
        pretrain: Pretraining on video labels.
        finetune: Fine-tuning on rated segments; skipped where the data has none.
        loss: The loss of fine-tuning; that of pretraining is plain cross-entropy.
        max_frames: Frames of a video to use, from its start.
        pad_frames: Pad all videos to --max_frames, and all segments to their full length, as the
            public YouTube-8M code does; default: a batch to the longest of its examples. The
            statistics of batch normalization include padding. It gives all batches one shape.
        test_fraction: The fraction of the videos to hold out for evaluation.
        seed: Seeds weights, order and split: the initial weights, the order of the data and the
            choice of held-out videos.
        workers: Processes that read ahead; 0 reads in this process, the default on a CPU. On a GPU
            the default is one less than the cores, at most 8 for each process of training.
        device: The device, as "cpu" or "cuda"; default: a GPU if there is one.
        precision: Mixed precision: automatic, with "bf16" or "fp16"; "fp32" is none, the default
            on a CPU. The default on a GPU with fast bfloat16 products is "bf16". On a CPU without
            them, "bf16" only stores results as bfloat16.
        tf32: Let a GPU round the inputs of float32 products to TF32; default: unless --precision
            fp32 is given.
        cuda_graph: Replay steps as CUDA graphs: recorded once for each length of batches and then
            launched whole; default: on a GPU, where all of a step is known to allow it. A line says
            why not. True also tries a model of your own.
        compile: Run the model through torch.compile.
        on_error: "raise" at a damaged record, or "skip" and report it.
        on_nan: "raise" at a loss that is not finite, or "skip" the batch; an error names the
            examples, skipped batches are counted.
        checkpoint_minutes: Minutes between checkpoints.
        checkpoint_steps: Steps between checkpoints; default: only by the clock.
        keep_checkpoints: Checkpoints to keep, the last ones.
        tensorboard: Write TensorBoard files too: the numbers of metrics.jsonl, into the run folder.
            The same as --tracker tensorboard.
        tracker: Send the numbers of metrics.jsonl to "mlflow", "wandb", "tensorboard" or a
            registered tracker.
        timeout_minutes: Minutes that torchrun's processes wait for each other.
        resume: A run folder to resume: training continues from its last checkpoint. All other
            options are the run's; steps, workers, device, --cuda_graph, checkpoint intervals, and
            --run (to resume in a copy of the run) may be given anew.

    Raises:
        ValueError: A value is out of its range.
    """

    GROUPS: ClassVar[dict[str, tuple[str, ...]]] = {
        "Data": (
            "data",
            "labels",
            "classes",
            "max_frames",
            "test_fraction",
            "on_error",
        ),
        "Model": ("model", "overrides", "copies", "init"),
        "Training": (
            "recipe",
            "solver",
            "stage",
            "pretrain",
            "finetune",
            "loss",
            "final_fit",
            "seed",
        ),
        "Machine": ("device", "workers", "precision", "cuda_graph", "compile"),
        "Run folder": (
            "run",
            "resume",
            "checkpoint_minutes",
            "tracker",
        ),
    }

    data: str = "sample"
    labels: str | None = None
    vocabulary: str | None = None
    model: str = "nextvlad-small"
    overrides: dict[str, Any] = field(default_factory=dict)
    copies: int = 1
    eigenvalues: str | None = None
    node_features: str | None = None
    graph_threshold: float = 0.0
    recipe: Literal["sample", "paper", "best"] = "sample"
    solver: Literal["gradient", "ridge"] = "gradient"
    stage: Literal["both", "pretrain", "finetune"] = "both"
    classes: Literal["all", "rated"] = "all"
    final_fit: bool = False
    init: str | None = None
    run: str | None = None
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(200, 2e-3, 40))
    finetune: StageConfig = field(default_factory=lambda: StageConfig(200, 1e-3, noise=0.1))
    loss: LossConfig = field(default_factory=LossConfig)
    max_frames: int = 300
    pad_frames: bool = False
    test_fraction: float = 0.2
    seed: int = 0
    workers: int | None = None
    device: str | None = None
    precision: MixedPrecisionName | None = None
    tf32: bool | None = None
    cuda_graph: bool | None = None
    compile: bool = False
    on_error: OnError = "raise"
    on_nan: Literal["raise", "skip"] = "raise"
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    tensorboard: bool = False
    tracker: list[str] = field(default_factory=list, metadata={"repeated": True})
    timeout_minutes: float = 10.0
    resume: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        _cli.hide_secrets(self)
        for name in ("checkpoint_minutes", "timeout_minutes"):
            _cli.check_above(name, getattr(self, name), 0)
        known = get_args(MixedPrecisionName)
        if self.precision not in (None, *known):  # int8 is for predictions
            raise ArgumentError(
                f"precision: expected one of {', '.join(known)} or None; found {self.precision!r}"
            )
        if self.final_fit and (self.stage == "pretrain" or not self.finetune.steps):
            raise ArgumentError("final_fit: expected fine-tuning with it, found none")
        if "noise" in self.overrides:
            raise ArgumentError("overrides: expected no noise, which is --pretrain.noise and so on")
        for name in ("checkpoint_steps", "keep_checkpoints", "max_frames"):
            _cli.check_range(name, getattr(self, name), 1)
        _cli.check_range("copies", self.copies, 1, 100)
        _cli.check_range("seed", self.seed, 0, 2**63 - 1)  # for torch and NumPy
        if self.workers is not None:
            _cli.check_range("workers", self.workers, 0, MOST_WORKERS)
        for name in ("test_fraction", "graph_threshold"):
            _cli.check_range(name, getattr(self, name), 0, 1)

    @property
    def trackers(self) -> list[str]:
        """The names of all trackers, each once.

        Example:
            >>> TrainConfig(tensorboard=True, tracker=["mlflow", "tensorboard"]).trackers
            ['mlflow', 'tensorboard']
        """
        return list(dict.fromkeys([*self.tracker, *["tensorboard"] * self.tensorboard]))

    @property
    def trained(self) -> str:
        """A description of the model: the preset, and the number of its copies.

        Example:
            >>> TrainConfig(model="mlp").trained, TrainConfig(model="mlp", copies=3).trained
            ('mlp', '3 x mlp')
        """
        return self.model if self.copies == 1 else f"{self.copies} x {self.model}"


def make_parser() -> ArgumentParser:
    """Returns the parser of ``python -m pyseg.train``."""
    return _cli.make_parser(
        TrainConfig,
        "pyseg.train",
        "Pretrains a model on video labels, fine-tunes it on rated segments, evaluates it on "
        "held-out videos. Without options it trains on a small generated sample.",
        torchrun=True,
    )


def recipe_defaults(options: Namespace | Mapping[str, Any]) -> dict[str, Any]:
    """Returns the defaults of the recipe and the preset of the options.

    Raises:
        pyseg.errors.ArgumentError: The preset names an option that does not exist.

    Example:
        >>> recipe_defaults({"recipe": "sample", "model": "linear"})["finetune.learning_rate"]
        0.03
    """
    model = options["model"]
    of_model = models.training_defaults(model)
    names = list(_option_names()) if of_model else []
    for name in of_model:
        if name not in names:
            raise ArgumentError(
                f"training_defaults: expected options of pyseg.train, found {name!r} of the preset "
                f"{model}{suggestion(name, names, '{!r}')}"
            )
    return {**of_model, **RECIPES[options["recipe"]]}


def _option_names() -> Iterator[str]:
    """Yields the names of all options of training, as the command line has them."""
    for option in fields(TrainConfig):
        group = {"pretrain": StageConfig, "finetune": StageConfig, "loss": LossConfig}
        if option.name in group:
            yield from (f"{option.name}.{key.name}" for key in fields(group[option.name]))
        else:
            yield option.name


def flat_options(config: TrainConfig) -> dict[str, Any]:
    """Returns the options by their names on the command line, with JSON values."""

    def flat(values: Mapping[str, Any], prefix: str = "") -> dict[str, Any]:
        found: dict[str, Any] = {}
        for name, value in values.items():
            if isinstance(value, Mapping):
                found |= flat(value, f"{prefix}{name}.")
            else:
                found[prefix + name] = value
        return found

    return flat(json.loads(json.dumps(asdict(config))))


_OF_STEPS = {"compile": True, "cuda_graph": True, "on_nan": "skip", "pad_frames": True}
"""Options that only steps use, with the value that asks for something."""


def unused_by_ridge(config: TrainConfig) -> list[str]:
    """Returns the options that are given though ``--solver ridge`` has no use for them.

    Example:
        >>> unused_by_ridge(TrainConfig(model="ridge", compile=True))
        ['--compile']
        >>> unused_by_ridge(TrainConfig(model="mlp", compile=True))
        []
    """
    if config.solver != "ridge":
        return []
    default = flat_options(TrainConfig(recipe=config.recipe, model=config.model))
    given = flat_options(config)
    used = ("batch_size", "loss", "loss_overrides")
    of_steps = [option.name for option in fields(StageConfig) if option.name not in used]
    names = [f"{stage}.{name}" for stage in ("pretrain", "finetune") for name in of_steps]
    names += ["loss.rated_weight", "loss.unrated_weight"]
    unused = [
        name
        for name in names
        if given[name] != default[name]
        and (given[name] or not name.endswith(".steps"))  # 0 leaves the stage out
    ]
    unused += [name for name, value in _OF_STEPS.items() if given[name] == value]
    if config.precision in ("bf16", "fp16"):
        unused.append("precision")
    return [f"--{name}" for name in unused]
