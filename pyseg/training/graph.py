"""Whole training steps as CUDA graphs: one launch in place of several hundred.

See :class:`GraphedSteps`.
"""

from __future__ import annotations

import contextlib
import functools
import warnings
from collections import Counter
from collections.abc import Callable, Iterator
from contextlib import AbstractContextManager
from typing import Protocol

import torch
from torch import Tensor, nn

from pyseg import distributed
from pyseg.config import TrainConfig
from pyseg.data import Batch

MOST_GRAPHS = 8
"""The most graphs at a time; they share memory, but for their inputs and results."""

ORDINARY_STEPS = 3
"""Ordinary steps with batches of a shape before its graph: libraries set themselves up in them."""

_LEAST_RATINGS = 64

StepFunction = Callable[[Tensor, Tensor, Tensor, Tensor, Tensor], Tensor]
"""Takes a step on `Batch.tensors`; returns the loss, without a gradient."""


class Recorder(Protocol):
    """What records steps: `CudaRecorder`, or in tests something that needs no GPU."""

    def stream(self) -> AbstractContextManager[None]:
        """Returns a context in which all steps are taken."""
        ...

    def watch(self) -> AbstractContextManager[list[str]]:
        """Returns a context that gives a list of what in it made this process wait for the GPU.

        The list is complete when the context has ended.
        """
        ...

    def record(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """Records a step, whose operations do not run.

        Returns:
            The tensor that will hold the loss, and a function that takes the recorded step.
        """
        ...


class CudaRecorder:
    """Records steps as CUDA graphs that share their memory.

    Args:
        device: A GPU.

    Source: "CUDA semantics, CUDA Graphs" in PyTorch's documentation,
    https://docs.pytorch.org/docs/stable/notes/cuda.html#cuda-graphs.
    """

    def __init__(self, device: torch.device) -> None:
        self._device = torch.empty(0, device=device).device  # with a number
        self._stream = torch.cuda.Stream(self._device)
        self._pool = torch.cuda.graph_pool_handle()

    @contextlib.contextmanager
    def stream(self) -> Iterator[None]:
        """Works on the stream of the graphs; the default one cannot be recorded."""
        outer = torch.cuda.current_stream(self._device)
        self._stream.wait_stream(outer)
        try:
            with torch.cuda.stream(self._stream):
                yield
        finally:
            outer.wait_stream(self._stream)

    @contextlib.contextmanager
    def watch(self) -> Iterator[list[str]]:
        """Yields a list of operations that wait for the GPU, from torch's own warnings."""
        found: list[str] = []
        before = torch.cuda.get_sync_debug_mode()
        with warnings.catch_warnings(record=True) as caught:
            warnings.simplefilter("always")
            torch.cuda.set_sync_debug_mode("warn")
            try:
                yield found
            finally:
                torch.cuda.set_sync_debug_mode(before)
        for each in caught:
            text = str(each.message)
            if "called a synchronizing" in text:
                found.append(f"{each.filename}:{each.lineno}: {text}")
            elif "ynchronization debug mode" not in text:  # says that the mode is a prototype
                warnings.warn_explicit(each.message, each.category, each.filename, each.lineno)

    def record(self, step: Callable[[], Tensor]) -> tuple[Tensor, Callable[[], None]]:
        """See `Recorder.record`. After an error the random numbers go on as before."""
        random = torch.cuda.get_rng_state(self._device)
        graph = torch.cuda.CUDAGraph()
        try:
            # thread_local: meanwhile the thread that pins the memory of batches may go on.
            with torch.cuda.graph(
                graph, pool=self._pool, stream=self._stream, capture_error_mode="thread_local"
            ):
                loss = step()
        except BaseException:
            fresh = torch.Generator(self._device)  # the old one may still count for the graph
            fresh.set_state(random)
            generator = torch.cuda.default_generators[self._device.index]
            generator.graphsafe_set_state(fresh.graphsafe_get_state())
            raise
        return loss, graph.replay


class GraphedSteps:
    """Takes training steps, from the fourth with batches of a shape on by replaying a graph.

    A graph holds the whole step, from the forward pass to the optimizer and the moving average.
    Launching it costs as much as one kernel, while an ordinary step with short batches keeps the
    GPU waiting for this process. Batches are copied into the inputs of the graph, whose ratings
    have room for more (`pyseg.ops.rated_bce_with_logits` ignores those after ``offsets[-1]``); a
    batch with still more has the step recorded again. Frames are not padded, which would change
    the statistics of batch normalization: each length has a graph of its own, up to `MOST_GRAPHS`,
    and other batches get ordinary steps. The numbers are those of ordinary steps.

    A step that waits for the GPU cannot be recorded. The step before the recording is watched for
    that; after it, or after an error of the recording, all steps are ordinary ones, and a line
    says why.

    Args:
        step: Takes an ordinary step. The first ones may set things up; from then on all that
            changes between steps, such as the learning rate, must be in tensors that stay where
            they are.
        recorder: Records it.
    """

    def __init__(self, step: StepFunction, recorder: Recorder) -> None:
        self.step = step
        self.stream = recorder.stream
        self._recorder = recorder
        self._graphs: dict[torch.Size, _Graph] = {}
        self._taken: Counter[torch.Size] = Counter()  # ordinary steps
        self._works = True
        self._full = False  # whether a length has come too late

    def __call__(self, batch: Batch) -> Tensor:
        """Takes a step on a batch, on the device; returns the loss."""
        shape = batch.frames.shape
        graph = self._graphs.get(shape)
        if graph is None or len(batch.classes) > graph.room:
            if not self._may_record(shape):
                return self._take(batch)
            if self._taken[shape] == ORDINARY_STEPS - 1:
                return self._take_watched(batch)
            graph = self._record(batch)
            if graph is None:
                return self._take(batch)
        return graph(batch)

    def _may_record(self, shape: torch.Size) -> bool:
        """Whether steps with batches of a shape are to be recorded, now or after another one."""
        if not self._works or self._taken[shape] < ORDINARY_STEPS - 1:
            return False
        if shape in self._graphs or len(self._graphs) < MOST_GRAPHS:
            return True
        if not self._full:
            self._full = True
            self._say(
                f"{MOST_GRAPHS} lengths of batches have one, others take ordinary steps; "
                "--pad_frames gives all batches one length"
            )
        return False

    def _take(self, batch: Batch) -> Tensor:
        self._taken[batch.frames.shape] += 1
        return self.step(*batch.tensors)

    def _take_watched(self, batch: Batch) -> Tensor:
        with self._recorder.watch() as waits:
            loss = self._take(batch)
        if waits:
            self._give_up(f"the step waits for the GPU: {waits[0]}")
        return loss

    def _record(self, batch: Batch) -> _Graph | None:
        """Records the step for batches of this shape; returns None if that fails."""
        try:
            self._graphs[batch.frames.shape] = graph = _Graph(batch, self.step, self._recorder)
        except Exception as error:  # torch, or a model, raises anything
            cause: BaseException = error
            while cause.__context__ is not None:  # the end of the recording fails too
                cause = cause.__context__
            lines = str(cause).strip().splitlines() or [""]
            self._give_up(f"the step cannot be recorded: {type(cause).__name__}: {lines[0]}")
            return None
        return graph

    def _give_up(self, why: str) -> None:
        self._works = False
        self._graphs.clear()
        self._say(f"{why}; steps are ordinary ones")

    def _say(self, what: str) -> None:
        print(f"CUDA graphs: {what}")


class _Graph:
    """The recorded step for batches of one shape.

    Attributes:
        room: The most ratings of a batch.
    """

    def __init__(self, batch: Batch, step: StepFunction, recorder: Recorder) -> None:
        needed = max(_LEAST_RATINGS, len(batch.classes) * 5 // 4)
        self.room = 1 << (needed - 1).bit_length()
        frames, num_frames, offsets, classes, scores = batch.tensors
        self._inputs = (
            torch.zeros_like(frames),
            torch.ones_like(num_frames),
            torch.zeros_like(offsets),
            classes.new_zeros(self.room),
            scores.new_zeros(self.room),
        )
        self._loss, self._replay = recorder.record(functools.partial(step, *self._inputs))

    def __call__(self, batch: Batch) -> Tensor:
        """Takes the step on a batch; returns the loss."""
        for own, given in zip(self._inputs, batch.tensors, strict=True):
            own[: len(given)].copy_(given)
        self._replay()
        return self._loss.clone()  # the next step overwrites it


def make_recorder(device: torch.device) -> Recorder | None:
    """Returns what records the steps of a device, if there is anything."""
    return CudaRecorder(device) if device.type == "cuda" else None


def why_not(config: TrainConfig, model: nn.Module, loss: nn.Module) -> str | None:
    """Returns why steps cannot be recorded, from all that is known before the first one.

    Args:
        config: The options.
        model: The model.
        loss: The loss of the stage (`pyseg.training.register_loss`).

    Example:
        >>> from pyseg import models
        >>> from pyseg.training import Loss
        >>> model = models.create("mlp", num_classes=3)
        >>> why_not(TrainConfig(), model, Loss()), why_not(TrainConfig(compile=True), model, Loss())
        (None, 'with --compile')
    """
    if distributed.world_size() > 1:
        return "with several processes"
    for name, value in (("compile", True), ("precision", "fp16"), ("on_nan", "skip")):
        if getattr(config, name) == value:
            return f"with --{name}" if value is True else f"with --{name} {value}"
    if not getattr(loss, "takes_spare_ratings", False):
        return f"{type(loss).__name__} does not say that it takes spare ratings"
    for module in (*model.modules(), *loss.modules()):
        package = type(module).__module__.partition(".")[0]
        if package not in ("pyseg", "torch") and not config.cuda_graph:
            return f"{type(module).__name__} is not of pyseg, and may not fit: try --cuda_graph"
    return None
