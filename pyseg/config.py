"""The options of a training run, which its run folder keeps and later commands read back."""

from __future__ import annotations

import functools
import math
from dataclasses import dataclass, field, fields
from typing import TYPE_CHECKING, Any, Literal, TypeVar, cast

from pyseg import _cli
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
        steps: Optimiser steps; 0 leaves the stage out.
        learning_rate: Adam's learning rate.
        batch_size: Examples a step, of all processes together.
        schedule: "constant"; "step": times --decay every --decay_examples examples, as the public
            YouTube-8M code does; "cosine": down to 0 at the last step.
        decay: For "step": the factor.
        decay_examples: For "step": after how many examples.
        warmup_steps: Steps in which the learning rate grows to its value.
        clip_norm: Gradients are scaled down to this norm, of all together; default: not at all.
        ema: Decay of the moving average of weights that is evaluated and saved; 0: no average.
        noise: Standard deviation of the Gaussian noise on half of a frame's dimensions.
        l2: Strength of the L2 penalty on the head's weights (`pyseg.nn.l2_penalty`).
        evaluate_every: Steps between two evaluations on held-out videos; 0: at the end alone. The
            best weights are kept.
        patience: Stop after so many evaluations without a better one; 0: never.

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
            value = getattr(self, name)
            if value is not None and not 0 < value < float("inf"):
                raise ArgumentError(f"{name}: expected above 0, found {value}")
        if not 0 <= self.ema < 1:
            raise ArgumentError(f"ema: expected a number in [0, 1), found {self.ema}")
        if self.patience and not self.evaluate_every:
            raise ArgumentError("patience: expected evaluate_every with it, found 0")

    def learning_rate_at(self, step: int) -> float:
        """Returns the learning rate of a step, the first one being 0.

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
            whole = max(1, self.steps - self.warmup_steps)
            rate *= 0.5 * (1 + math.cos(math.pi * min(1.0, after / whole)))
        return rate * min(1.0, (step + 1) / max(1, self.warmup_steps))


@dataclass
class LossConfig:
    """The loss of fine-tuning on rated segments: the paper's sections 3.2 and 3.3.

    Args:
        rated_weight: The weight m of a rated class (eq. 3).
        unrated_weight: The weight n of every other class.
        correlation: What a rated class says of others (eq. 6): a file of pyseg.cooccur; "auto":
            counted from the labels of the training videos; or "none".
        threshold: For "auto": probabilities below it are dropped (eq. 5).
        min_support: For "auto": pairs seen in fewer videos are dropped.
        absent_evidence: What a class that is rated 0 says of others, in parts of what one that is
            rated 1 does: 0 in the paper.

    Raises:
        ValueError: A value is out of its range.
    """

    rated_weight: float = 2.5
    unrated_weight: float = 0.1
    correlation: str = "auto"
    threshold: float = 0.5
    min_support: int = 1
    absent_evidence: float = 0.0

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("rated_weight", "unrated_weight"):
            _cli.check_range(name, getattr(self, name), 0)
        for name in ("threshold", "absent_evidence"):
            if not 0.0 <= getattr(self, name) <= 1.0:
                raise ArgumentError(
                    f"{name}: expected a number in [0, 1], found {getattr(self, name)}"
                )
        _cli.check_range("min_support", self.min_support, 1)


# What a recipe has instead of the defaults. The paper names learning rates, batch and steps; the
# decay and the penalty are those of the public NeXtVLAD code. "best" closes most of the gap between
# plain cross-entropy and complete labels on YouTube-8M (`pyseg.reproduce`, table "best"); it leaves
# the kind of model and the schedule as they are.
RECIPES: dict[str, dict[str, Any]] = {
    "sample": {},
    "best": {
        "loss.rated_weight": 1.0,
        "loss.unrated_weight": 0.2,
        "loss.threshold": 0.0,
        "loss.absent_evidence": 1.0,
        "copies": 3,
    },
    "paper": {
        "model": "paper-mixture",
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


def _takes_recipes(config_class: type[Options]) -> type[Options]:
    """Makes a recipe's values the defaults of the options that are not given, in Python too."""
    make = config_class.__init__
    names = [option.name for option in fields(cast(Any, config_class))]

    @functools.wraps(make)
    def init(self: Any, *values: Any, **options: Any) -> None:
        make(self, *values, **options)
        if self.recipe not in RECIPES:
            known = ", ".join(RECIPES)
            raise ArgumentError(f"recipe: expected one of {known}, found {self.recipe!r}")
        given = {*names[: len(values)], *options}
        for name, value in RECIPES[self.recipe].items():
            group, _, key = name.rpartition(".")
            if (group or key) not in given:
                setattr(getattr(self, group) if group else self, key, value)

    cast(Any, config_class).__init__ = init
    return config_class


@_takes_recipes
@dataclass
class TrainConfig:
    """What to train, on what.

    Args:
        data: Records as a folder, glob or file; "sample" is a small generated collection, made
            in the user's cache folder at first use.
        labels: Tables of strong labels for AudioSet's records, a file or a glob; default: those
            beside the records.
        vocabulary: A vocabulary.csv naming the classes; default: the one beside the records.
        model: A preset of pyseg.models.
        overrides: Arguments of the preset to change, as in --overrides.hidden_size 256.
        copies: So many models of this kind, with weights of their own, which learn together: the
            mixture with distillation of the paper's section 3.1. Not for what is one already.
        eigenvalues: The .npy file of the features' PCA eigenvalues, which
            --overrides.normalization unwhiten needs.
        node_features: The .npy file of a label graph's node features (C, D), for a model with the
            head "gcn"; its graph starts as the correlation of --loss.correlation.
        recipe: Other defaults: "paper" is the paper's schedule and mixture, of 200,000 and 250,000
            steps; "best" what makes most of few ratings. Options that are given change it; in
            Python a whole `StageConfig` or `LossConfig` is one of them.
        stage: Which stages to run.
        classes: "rated" fine-tunes for the rated classes alone: the head keeps their rows.
        final_fit: After fine-tuning, do it once more from the same weights on all rated segments,
            of held-out videos too, for as many steps as were best; these weights stay.
        init: A run folder, or one saved by `pyseg.models`: its weights are the start.
        run: The folder to write; default: the next free runs/<data>-<model>-<number>.
        pretrain: Pretraining on video labels.
        finetune: Fine-tuning on rated segments; skipped where the data has none.
        loss: The loss of fine-tuning; that of pretraining is plain cross-entropy.
        max_frames: Frames of a video that are used, from its start.
        test_fraction: The part of the videos that is held out for evaluation.
        seed: Seeds the weights, the order of the data and the choice of held-out videos.
        workers: Processes that read ahead; 0 reads in this process.
        device: "cpu", "cuda", ...; default: a GPU where there is one.
        precision: "fp32", or automatic mixed precision with "bf16" or "fp16". On a CPU that has no
            quick products of bfloat16, "bf16" keeps their results only.
        tf32: Let a GPU round the inputs of float32 products to TF32.
        compile: Run the model through torch.compile.
        on_error: "raise" stops at a damaged record, "skip" leaves it out and says so.
        on_nan: What a loss that is not finite does: "raise" stops and names the examples, "skip"
            leaves the batch out and counts it.
        checkpoint_minutes: Minutes between two checkpoints.
        checkpoint_steps: Steps between two checkpoints; default: by the clock alone.
        keep_checkpoints: How many of the last checkpoints are kept.
        tensorboard: Write the numbers of metrics.jsonl for TensorBoard too, into the run's folder.
        timeout_minutes: Under torchrun: how long the processes wait for each other.
        resume: A run folder: go on with its training where the last checkpoint is. All other
            options are the run's; steps, workers, device, how often to save, and --run (a copy of
            the run goes on there) may be given anew.

    Raises:
        ValueError: A value is out of its range.
    """

    data: str = "sample"
    labels: str | None = None
    vocabulary: str | None = None
    model: str = "nextvlad-small"
    overrides: dict[str, Any] = field(default_factory=dict)
    copies: int = 1
    eigenvalues: str | None = None
    node_features: str | None = None
    recipe: Literal["sample", "paper", "best"] = "sample"
    stage: Literal["both", "pretrain", "finetune"] = "both"
    classes: Literal["all", "rated"] = "all"
    final_fit: bool = False
    init: str | None = None
    run: str | None = None
    pretrain: StageConfig = field(default_factory=lambda: StageConfig(200, 2e-3, 40))
    finetune: StageConfig = field(default_factory=lambda: StageConfig(200, 1e-3, noise=0.1))
    loss: LossConfig = field(default_factory=LossConfig)
    max_frames: int = 300
    test_fraction: float = 0.2
    seed: int = 0
    workers: int = 0
    device: str | None = None
    precision: Literal["fp32", "bf16", "fp16"] = "fp32"
    tf32: bool = False
    compile: bool = False
    on_error: OnError = "raise"
    on_nan: Literal["raise", "skip"] = "raise"
    checkpoint_minutes: float = 10.0
    checkpoint_steps: int | None = None
    keep_checkpoints: int = 2
    tensorboard: bool = False
    timeout_minutes: float = 10.0
    resume: str | None = None

    def __post_init__(self) -> None:
        """Checks the values."""
        for name in ("checkpoint_minutes", "timeout_minutes"):
            if not getattr(self, name) > 0:
                raise ArgumentError(f"{name}: expected above 0, found {getattr(self, name)}")
        if self.final_fit and (self.stage == "pretrain" or not self.finetune.steps):
            raise ArgumentError("final_fit: expected fine-tuning with it, found none")
        if "noise" in self.overrides:
            raise ArgumentError("overrides: expected no noise, which is --pretrain.noise and so on")
        for name in ("checkpoint_steps", "keep_checkpoints", "max_frames"):
            _cli.check_range(name, getattr(self, name), 1)
        _cli.check_range("copies", self.copies, 1, 100)
        _cli.check_range("seed", self.seed, 0, 2**63 - 1)  # what torch and NumPy both take
        _cli.check_range("workers", self.workers, 0, MOST_WORKERS)
        _cli.check_range("test_fraction", self.test_fraction, 0, 1)

    @property
    def trained(self) -> str:
        """What is trained, in words: the preset, and how many copies of it learn together.

        Example:
            >>> TrainConfig(model="mlp").trained, TrainConfig(model="mlp", copies=3).trained
            ('mlp', '3 x mlp')
        """
        return self.model if self.copies == 1 else f"{self.copies} x {self.model}"


def make_parser() -> ArgumentParser:
    """Returns the command line of ``python -m pyseg.train``."""
    return _cli.make_parser(
        TrainConfig,
        "pyseg.train",
        "Pretrains a model on video labels, fine-tunes it on rated segments, evaluates it on "
        "held-out videos. Without options it trains on a small generated sample.",
        torchrun=True,
    )


def recipe_defaults(options: Namespace) -> dict[str, Any]:
    """Returns the defaults of the recipe that the options name (`RECIPES`)."""
    return RECIPES[options["recipe"]]
