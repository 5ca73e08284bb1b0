"""Runs of several processes: ``torchrun --nproc_per_node=N -m pyseg.train -- ...``.

torchrun starts the same command N times, each with its own GPU if there are any; this module
connects them to one run:

* `session` connects the processes. The first one, rank 0, writes and prints. If one fails, the
  first error is reported once, and all of them end.
* `DistributedDataParallel` averages gradients (`parallel`), data sets are sharded
  (`pyseg.data.RecordDataset`), and streaming metrics (`pyseg.metrics`) and the statistics of
  `pyseg.nn.BatchNorm` cover all processes.
* The processes take decisions together: `any_of`, `from_first`, `from_all`.

Without torchrun all of this works as in a run of one process. Small messages travel over gloo on
the CPU, even if gradients use nccl, so that they never wait for a GPU. All processes read the run's
files, so on several machines the run folder and the data must be at the same path on each.

Source: torch.distributed and torchrun, https://docs.pytorch.org/docs/stable/distributed.html.
"""

from __future__ import annotations

import contextlib
import functools
import importlib
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
from torch import Tensor, distributed, nn
from torch.nn.parallel import DistributedDataParallel

from pyseg._command import interrupted_status
from pyseg.errors import ArgumentError, UserError

Value = TypeVar("Value")

TIMEOUT_MINUTES = 1440.0
"""Default timeout for hanging processes: one may have hours more work than another.

A lost process is noticed at once.
"""

_FAILED = "pyseg/failed"  # key in torchrun's store: the number of processes that have failed
_LAUNCHER = ("RANK", "LOCAL_RANK", "WORLD_SIZE", "MASTER_ADDR", "MASTER_PORT")


def world_size() -> int:
    """Returns the number of processes of the run."""
    return distributed.get_world_size() if _connected() else 1


def rank() -> int:
    """Returns the rank of this process, from 0."""
    return distributed.get_rank() if _connected() else 0


def is_first() -> bool:
    """Whether this is the process that writes and prints."""
    return rank() == 0


def any_of(*flags: bool) -> tuple[bool, ...]:
    """Returns for each flag whether it is set in any process; every process must call it."""
    if world_size() == 1:
        return flags
    values = torch.tensor(flags, dtype=torch.uint8)
    distributed.all_reduce(values, distributed.ReduceOp.MAX)
    return tuple(values.bool().tolist())


def wait() -> None:
    """Waits until every process has called it: a barrier."""
    any_of(False)


def from_first(value: Value) -> Value:
    """Returns the value of the first process; every process must call it.

    Args:
        value: Anything that can be pickled; ignored in other processes.
    """
    values = [value]
    if world_size() > 1:
        distributed.broadcast_object_list(values, src=0)
    return values[0]


def from_all(value: Value) -> list[Value]:
    """Returns the values of all processes, in the order of ranks; every process must call it.

    Args:
        value: Anything that can be pickled.
    """
    values: list[Any] = [value] * world_size()
    if world_size() > 1:
        distributed.all_gather_object(values, value)
    return values


def total(value: Value) -> Value:
    """Returns the sum of the values of all processes; every process must call it.

    Args:
        value: Anything that can be pickled and has ``+=``.

    Example:
        >>> total(3)
        3
    """
    return functools.reduce(operator.iadd, from_all(value))


def add_up(*tensors: Tensor) -> None:
    """Replaces tensors by their sums over all processes; every process must call it."""
    if world_size() > 1:
        for tensor in tensors:
            distributed.all_reduce(tensor)


def share_of_batch(name: str, batch_size: int) -> int:
    """Returns the number of examples of a batch that each process takes.

    Raises:
        ValueError: The batch cannot be divided evenly; the message names the option.

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
    """Wraps a module so that its gradients are averaged over the processes.

    Args:
        step: Returns the mean loss of this process's examples. Every process has as many, so the
            average is the gradient of the mean over all.
    """
    if world_size() == 1 or not any(p.requires_grad for p in step.parameters()):
        return step
    wrapped = DistributedDataParallel(step, gradient_as_bucket_view=True)
    # Buffers are broadcast once, on construction: `BatchNorm` keeps running statistics equal. Not
    # by the constructor's argument, which was renamed in torch 2.13.
    wrapped.broadcast_buffers = False
    if all(parameter.device.type == "cpu" for parameter in step.parameters()):
        wrapped.register_comm_hook(None, _average_each)
    return wrapped


def _average_each(_, bucket):  # type: ignore[no-untyped-def]  # torch refuses string annotations
    """Averages each parameter's gradient separately, as a hook of DistributedDataParallel.

    With three processes or more, the position of an element in a message decides the order in which
    gloo sums it. DistributedDataParallel rebuilds its buckets after the first step, so reducing
    whole buckets would round differently in a resumed run.
    """
    buffer = bucket.buffer().div_(world_size())
    sums = [distributed.all_reduce(part, async_op=True) for part in bucket.gradients()]
    done = torch.futures.collect_all([part.get_future() for part in sums])
    return done.then(lambda all_of_them: (all_of_them.value(), buffer)[1])


def share_weights(module: nn.Module) -> None:
    """Copies parameters and buffers of the first process to all; every process must call it."""
    if world_size() > 1:
        for tensor in itertools.chain(module.parameters(), module.buffers()):
            distributed.broadcast(tensor.detach(), src=0)


def pick_device(name: str | None) -> torch.device:
    """Returns the named device, or by default a GPU where there is one, else the CPU.

    Raises:
        pyseg.errors.UserError: There is no such device here.
    """
    if name is not None and not (isinstance(name, str) and re.fullmatch(r"[a-z]+(:\d+)?", name)):
        raise UserError(f"--device {name}: expected a device, such as cpu, cuda or cuda:1")
    if name is not None and name.startswith("meta"):
        raise UserError(f"--device {name}: expected a device that computes, such as cpu")
    try:
        device = torch.device(name or ("cuda" if torch.cuda.is_available() else "cpu"))
        torch.empty(0, device=device)
    except (RuntimeError, AssertionError) as error:  # AssertionError: torch without CUDA
        reason = str(error).splitlines()[0]
        raise UserError(
            f"--device {name}: expected a device that torch has here, such as cpu; {reason}"
        ) from error
    return device


def local_device(device: torch.device) -> torch.device:
    """Returns this process's GPU if `device` is any GPU, else `device`.

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
    """Connects the processes that torchrun has started; does nothing without torchrun.

    Inside, only the first process prints to stdout and draws progress bars. If a process raises,
    the others end too: those waiting for it at once, the rest when torchrun signals them. The first
    exception propagates; later ones, which the loss of a process causes, become a silent exit.

    Args:
        device: The device of the gradients; see `local_device`.
        timeout_minutes: How long to wait for another process before giving up.

    Raises:
        pyseg.errors.UserError: A process was lost without an exception.
    """
    if _connected() or not _launched():
        yield
        return
    device = local_device(device)
    on_gpu = device.type == "cuda"
    if on_gpu:
        torch.cuda.set_device(device)
    # Its functions take the default group as default arguments. Imported later, as by
    # DistributedDataParallel and torch.compile, it would keep that group to the end of the process.
    # `destroy_process_group` would then not wait for gloo's threads, and one of them that releases
    # a Python object too late would abort the process.
    importlib.import_module("torch.distributed.nn")
    try:
        distributed.init_process_group(
            "cpu:gloo,cuda:nccl" if on_gpu else "gloo",
            timeout=timedelta(minutes=timeout_minutes),
        )
    except (RuntimeError, ValueError) as error:
        raise UserError(f"the processes cannot be connected: {_line(error)}") from error
    try:
        with contextlib.nullcontext() if is_first() else _silence(), _defer_sigterm():
            yield
        wait()  # no process leaves early: a failure of another one must still end it
    except BaseException as error:
        if not _is_first_failure():
            stopped = isinstance(error, KeyboardInterrupt)
            raise SystemExit(interrupted_status(error) if stopped else 1) from None
        if _is_loss_of_another(error):
            raise UserError(f"another process is lost: {_line(error)}") from error
        raise
    # Not after a failure: it would wait for lost processes.
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
    """Records that this process has failed; returns whether it is the first one."""
    try:
        return distributed.distributed_c10d._get_default_store().add(_FAILED, 1) == 1
    except (RuntimeError, ValueError):  # torchrun has ended, and with it the store or the group
        return is_first()


@contextlib.contextmanager
def _defer_sigterm() -> Iterator[None]:
    """Ignores torchrun's SIGTERM while a process that has lost another reports it and cleans up.

    torchrun sends it as soon as it notices the loss itself, and SIGKILL half a minute later.
    """
    if threading.current_thread() is not threading.main_thread():  # only that may set handlers
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
    return isinstance(error, RuntimeError) and "gloo" in str(error)  # gloo has no exception type


class _NoTerminal(io.TextIOWrapper):
    """A stream that is no terminal, so that no progress bars are drawn on it."""

    def isatty(self) -> bool:
        return False


@contextlib.contextmanager
def _silence() -> Iterator[None]:
    """Discards stdout, and progress bars on stderr."""
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
