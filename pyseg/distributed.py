"""Runs of several processes: ``torchrun --nproc_per_node=N -m pyseg.train -- ...``.

torchrun starts N times the same command, each with a GPU of its own where there are any; this
module makes one run of them:

* `session` connects them. The first process, rank 0, is the one that writes and prints. Where one
  of them fails, the first reason is told once, and all of them end.
* `DistributedDataParallel` averages gradients (`parallel`), data sets divide themselves
  (`pyseg.data.RecordDataset`), streaming metrics are of all processes (`pyseg.metrics`), and so are
  the statistics of `pyseg.nn.BatchNorm`.
* What the processes decide, they decide together: `any_of`, `from_first`, `from_all`.

Outside of a distributed run all of this is that of a run of one process. What the processes tell
each other about themselves travels over gloo on the CPU, also where gradients take nccl: nobody has
to wait for a GPU. Files of a run are read by all processes, so where these are on several machines
the run folder and the data have to be on all of them, at the same place.

Source: torch.distributed and torchrun, https://docs.pytorch.org/docs/stable/distributed.html.
"""

from __future__ import annotations

import contextlib
import functools
import io
import itertools
import operator
import os
import re
import signal
import sys
import threading
from collections.abc import Iterator, Sequence
from datetime import timedelta
from typing import Any, TypeVar

import torch
from torch import distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pyseg.errors import ArgumentError, UserError

Value = TypeVar("Value")

TIMEOUT_MINUTES = 1440.0
"""How long processes wait for each other unless told otherwise: one may have hours more to do.

One that is gone is noticed at once; this is for one that hangs.
"""

_FAILED = "pyseg/failed"  # in the store that torchrun keeps: how many processes have failed
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Returns the number of processes of the run."""
    return distributed.get_world_size() if _connected() else 1


def rank() -> int:
    """Returns the number of this process, from 0."""
    return distributed.get_rank() if _connected() else 0


def is_first() -> bool:
    """Returns whether this process is the one that writes and prints."""
    return rank() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Returns for each flag whether it is set in any process; every process calls it."""
    if world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return tuple(values.bool().tolist())


def wait() -> None:
    """Waits until every process has come as far as this."""
    any_of(False)


def from_first(value: Value) -> Value:
    """Returns the value of the first process; every process calls it.

    Args:
        value: Anything that can be pickled; that of others is not looked at.
    """
    values = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def from_all(value: Value) -> list[Value]:
    """Returns the values of all processes, in the order of ranks; every process calls it.

    Args:
        value: Anything that can be pickled.
    """
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def total(value: Value) -> Value:
    """Returns what the values of all processes add up to; every process calls it.

    Args:
        value: Anything that can be pickled and has ``+=``.

    Example:
        >>> total(3)
        3
    """
    return functools.reduce(operator.iadd, from_all(value))


def share_of_batch(name: str, batch_size: int) -> int:
    """Returns how many of the examples of a batch this process takes: as many as any other.

    Raises:
        ValueError: The batch cannot be divided; the message names the option.

    Example:
        >>> share_of_batch("pretrain.batch_size", 80)
        80
    """
    processes = world_size()
    if batch_size % processes:
        raise ArgumentError(
            f"{name}: expected a multiple of the number of processes, {processes}, found "
            f"{batch_size}"
        )
    return batch_size // processes


def parallel(step: nn.Module) -> nn.Module:
    """Returns a module whose gradients are averaged over the processes, with one set of weights.

    Args:
        step: Gives a loss that is a mean over the examples of this process: as many as any other
            has, so that the average is the gradient of the mean over all.
    """
    if world_size() == 1 or not any(p.requires_grad for p in step.parameters()):
        return step
    wrapped = DistributedDataParallel(step, gradient_as_bucket_view=True)
    # Buffers are exchanged here, once: running statistics are those of all processes (`BatchNorm`).
    # Not by the constructor's argument, which has had another name since torch 2.13.
    wrapped.broadcast_buffers = False
    if all(parameter.device.type == "cpu" for parameter in step.parameters()):
        wrapped.register_comm_hook(None, _average_each)
    return wrapped


def _average_each(_, bucket):  # type: ignore[no-untyped-def]  # annotations that are text are refused
    """Averages the gradient of each parameter by itself, a hook of DistributedDataParallel.

    Where an element stands in a message decides in which order gloo sums it over three processes
    or more. DistributedDataParallel packs its messages anew after the first step: in whole buckets,
    a run that goes on would not round as one that was never stopped.
    """
    buffer = bucket.buffer().div_(world_size())
    sums = [distributed.all_reduce(part, async_op=True) for part in bucket.gradients()]
    done = torch.futures.collect_all([part.get_future() for part in sums])
    return done.then(lambda all_of_them: (all_of_them.value(), buffer)[1])


def share_weights(module: nn.Module) -> None:
    """Gives all processes the parameters and buffers of the first one; every process calls it."""
    if world_size() > 1:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            distributed.broadcast(tensor.detach(), src=0)


def pick_device(name: str | None) -> torch.device:
    """Returns the named device, or by default a GPU where there is one, else the CPU.

    Raises:
        pyseg.errors.UserError: There is no such device here.
    """
    if name is not None and not re.fullmatch(r"[a-z]+(:\d+)?", name):
        raise UserError(f"--device {name}: expected a device, such as cpu, cuda or cuda:1")
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        told = str(error).splitlines()[0]
        raise UserError(
            f"--device {name}: expected a device that torch has here, such as cpu or cuda; {told}"
        ) from error
    return device


def local_device(device: torch.device) -> torch.device:
    """Returns the GPU of this process where any GPU is asked for; otherwise the device.

    Raises:
        pyseg.errors.UserError: This machine has more processes than GPUs.
    """
    number = int(os.environ.get("LOCAL_RANK", 0)) if _launched() else 0
    if device.type != "cuda" or device.index is not None or not number:
        return device
    if number >= torch.cuda.device_count():
        raise UserError(
            f"--nproc_per_node: expected at most {torch.cuda.device_count()}, one process for "
            f"every GPU, found {os.environ.get('LOCAL_WORLD_SIZE', 'more')}"
        )
    return torch.device("cuda", number)


@contextlib.contextmanager
def session(device: torch.device, timeout_minutes: float = TIMEOUT_MINUTES) -> Iterator[None]:
    """Connects the processes that torchrun has started; nothing happens without torchrun.

    Inside, only the first process prints to stdout and draws progress bars. Where a process
    leaves with an exception, the others end as well: those that are waiting for it at once, the
    others as soon as torchrun asks them to. The first exception is the run's reason and goes on its
    way; what others run into after it, having lost a process, becomes an exit without a word.

    Args:
        device: Where the gradients are; see `local_device`.
        timeout_minutes: How long to wait for another process before giving up.

    Raises:
        pyseg.errors.UserError: A process is lost and has left no reason.
    """
    if _connected() or not _launched():
        yield
        return
    device = local_device(device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(minutes=timeout_minutes),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be connected: {_line(error)}") from error
    try:
        with contextlib.nullcontext() if is_first() else _silence(), _time_to_tell():
            yield
        # Nobody leaves before all have come so far: a failure of others is still this run's.
        wait()
    except BaseException as error:
        if not _is_first_failure():
            raise SystemExit(130 if isinstance(error, KeyboardInterrupt) else 1) from None
        if _is_loss_of_another(error):
            raise UserError(f"another process is lost: {_line(error)}") from error
        raise
    # Not after a failure: it would wait for those that are gone.
    distributed.destroy_process_group()


def _connected() -> bool:
    return distributed.is_available() and distributed.is_initialized()


def _launched() -> bool:
    """Whether torchrun has started this process, and others with it."""
    return (
        distributed.is_available()
        and all(name in os.environ for name in _LAUNCHER)
        and int(os.environ["WORLD_SIZE"]) > 1
    )


def _is_first_failure() -> bool:
    """Notes that this process has failed; returns whether no other has before."""
    try:
        return distributed.distributed_c10d._get_default_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):  # the store is gone, or the group: it went with torchrun
        return is_first()


@contextlib.contextmanager
def _time_to_tell() -> Iterator[None]:
    """Lets a process that has lost another say so, and clean up, before torchrun's SIGTERM ends it.

    torchrun sends that as soon as it has noticed the loss too, and SIGKILL half a minute later.
    """
    if threading.current_thread() is not threading.main_thread():  # which alone may set handlers
        yield
        return

    def end(number: int, _: object) -> None:
        if not _is_loss_of_another(sys.exc_info()[1]):
            signal.signal(number, before)
            os.kill(os.getpid(), number)

    before = signal.signal(signal.SIGTERM, end)
    try:
        yield
    except BaseException as error:
        signal.signal(signal.SIGTERM, signal.SIG_IGN if _is_loss_of_another(error) else before)
        raise
    signal.signal(signal.SIGTERM, before)


def _is_loss_of_another(error: BaseException | None) -> bool:
    if isinstance(error, distributed.DistError):
        return True
    return isinstance(error, RuntimeError) and "gloo" in str(error)  # which has no type of its own


class _NoTerminal(io.TextIOWrapper):
    """A stream on which nobody draws progress bars."""

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Lets through what goes to stderr, but for progress bars."""
    with (
        open(os.devnull, "w") as nowhere,
        _NoTerminal(os.fdopen(os.dup(sys.stderr.fileno()), "wb"), write_through=True) as errors,
        contextlib.redirect_stdout(nowhere),
        contextlib.redirect_stderr(errors),
    ):
        yield


def _line(error: BaseException) -> str:
    lines: Sequence[str] = str(error).strip().splitlines()
    return lines[0] if lines else type(error).__name__
