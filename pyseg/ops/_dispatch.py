"""What every operator's Python side shares: which kernels there are, dtypes, and autocast."""

from __future__ import annotations

import contextlib
import functools
import platform
from collections.abc import Callable, Iterator
from typing import Any, ParamSpec, TypeVar

import torch
from torch import Tensor
from torch._compile import _disable_dynamo
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from pyseg import _ext

P = ParamSpec("P")
R = TypeVar("R")

DTYPES = (torch.float32, torch.float64, torch.float16, torch.bfloat16)


def has_kernel(tensor: Tensor) -> bool:
    """Returns whether compiled kernels serve the device of `tensor`."""
    device = tensor.device.type
    return (device == "cpu" and _ext.HAS_CPU_OPS) or (device == "cuda" and _ext.HAS_CUDA_OPS)


def allow_tf32(tensor: Tensor) -> bool:
    """Returns whether an op's products of `tensor` may be in TF32, as PyTorch's own may."""
    return tensor.device.type == "cuda" and tensor.dtype == torch.float32 and _tf32_allowed()


def _tf32_allowed() -> bool:
    return torch.backends.cuda.matmul.fp32_precision == "tf32"


# A constant of a compiled graph: torch.compile cannot trace the setting (nor can it be read by its
# old name once it has been set by the new one), but compiles anew where it changes. This is all
# that torch.compiler.assume_constant_result does after importing torch._dynamo, which takes as long
# as importing torch.
_tf32_allowed._dynamo_marked_constant = True  # type: ignore[attr-defined]


def sum_dtype(dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which sums over values of `dtype` are kept."""
    return torch.promote_types(dtype, torch.float32)


# Without a unit for matrices an x86 processor is no quicker in bfloat16, whatever instructions it
# has for it: its products reach half the rate of those of float32 (oneDNN, AVX512-BF16).
_SLOW_BFLOAT16 = platform.machine() in ("x86_64", "AMD64") and not (
    torch.cpu._is_amx_tile_supported()
)


def product_dtype(device: str, dtype: torch.dtype) -> torch.dtype:
    """Returns the dtype in which matrix products of values of `dtype` are best computed.

    That is `dtype`, but float32 for bfloat16 on a CPU that is quicker with it.
    """
    slow = device == "cpu" and dtype == torch.bfloat16 and _SLOW_BFLOAT16
    return torch.float32 if slow else dtype


def in_autocast(tensor: Tensor) -> bool:
    """Returns whether autocast is on for the device of `tensor` (False for anything else)."""
    if not isinstance(tensor, Tensor):
        return False
    device = tensor.device.type
    # Not torch.amp.is_autocast_available(device): torch.compile of torch 2.11 cannot trace it.
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def to_autocast_dtype(first: Tensor, *others: Tensor) -> tuple[Tensor, ...]:
    """Casts what autocast casts for a matrix product: float tensors of its device, not float64."""
    device = first.device.type
    dtype = torch.get_autocast_dtype(device)
    return tuple(
        tensor.to(dtype)
        if isinstance(tensor, Tensor)
        and tensor.is_floating_point()
        and tensor.dtype != torch.float64
        and tensor.device.type == device
        else tensor
        for tensor in (first, *others)
    )


def check_layout(arguments: dict[str, tuple[Any, str]]) -> None:
    """Raises where an argument is no tensor or has not as many dimensions as its layout names."""
    for name, (tensor, layout) in arguments.items():
        if not isinstance(tensor, Tensor):
            raise TypeError(f"{name} must be a Tensor, got {type(tensor).__name__}")
        if tensor.dim() != layout.strip("(,)").count(",") + 1:
            raise ValueError(f"{name} must be {layout}, got shape {tuple(tensor.shape)}")


def check_alike(first: tuple[str, Tensor], others: dict[str, Tensor]) -> None:
    """Raises where `first` is not floating, or another dtype or device is not that of `first`."""
    like, base = first
    if base.dtype not in DTYPES:
        raise TypeError(f"{like} must be float32, float64, float16 or bfloat16, got {base.dtype}")
    for name, tensor in others.items():
        if tensor.dtype != base.dtype:
            raise TypeError(
                f"{name} must have the dtype of {like}, {base.dtype}, got {tensor.dtype}"
            )
        check_device(first, name, tensor)


def check_device(first: tuple[str, Tensor], name: str, tensor: Tensor) -> None:
    """Raises where `tensor` is not on the device of `first`."""
    like, base = first
    if tensor.device != base.device:
        raise ValueError(
            f"{name} must be on the device of {like}, {base.device}, got {tensor.device}"
        )


def check_tensors(like: Tensor, tensors: dict[str, tuple[Tensor, tuple[int, ...]]]) -> None:
    """Raises where what is given to a backward op has not its shape and the dtype of `like`."""
    for name, (tensor, shape) in tensors.items():
        if tuple(tensor.shape) != shape or tensor.dtype != like.dtype:
            raise ValueError(
                f"{name} must be {shape} of {like.dtype}, "
                f"got {tuple(tensor.shape)} of {tensor.dtype}"
            )


# The operators whose kernels are Python, and all that PyTorch is told of any of them in Python.
_LIBRARY = torch.library.Library("pyseg", "FRAGMENT")


def define(op: str, schema: str) -> Callable[[Callable[P, R]], Callable[P, R]]:
    """Returns a decorator that makes a function the operator `op`, on every device."""

    def register(kernel: Callable[P, R]) -> Callable[P, R]:
        _LIBRARY.define(op + schema, tags=(torch.Tag.pt2_compliant_tag,))
        _LIBRARY.impl(op, _disable_dynamo(kernel), "CompositeExplicitAutograd")
        return kernel

    return register


def register_fake(op: str, fake: Callable[..., Any]) -> None:
    """Makes `fake` what says how large the results of `op` are; it may check arguments too.

    It is also what PyTorch calls where a meta tensor is among others, whose results it would leave
    uninitialized: tensors of several devices are refused.
    """
    names = [argument.name for argument in _overload(op)._schema.arguments]

    @functools.wraps(fake)
    def checked(*args: Any, **kwargs: Any) -> Any:
        tensors = [pair for pair in zip(names, args, strict=False) if isinstance(pair[1], Tensor)]
        for name, tensor in tensors[1:]:
            check_device(tensors[0], name, tensor)
        return fake(*args, **kwargs)

    torch.library.register_fake(f"pyseg::{op}", checked, lib=_LIBRARY)


def register_autograd(
    op: str,
    backward: Callable[..., Any],
    setup_context: Callable[..., None] | None = None,
) -> None:
    """Makes `backward` the gradient of `op`, from what `setup_context` has saved.

    Their arguments and results are those that :func:`torch.library.register_autograd` asks for,
    which leaves forward-mode derivatives zero without a word and knows no `torch.func.grad`. Here
    the former are refused, and the latter has the gradient like any other.
    """
    overload = _overload(op)
    defaults = tuple(argument.default_value for argument in overload._schema.arguments)
    reference = op.removesuffix("_backward")

    def below(keyset: Any, *args: Any) -> Any:
        with torch._C._AutoDispatchBelowAutograd():
            return overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)

    # A Function with one level of derivatives: the dispatcher calls it at each level by itself.
    class Gradient(_SingleLevelFunction):
        apply: Callable[..., Any]  # of its base, which is in C++

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            *inputs, keyset = args
            with _outer_derivatives():
                output = below(keyset, *inputs)
            if setup_context is not None:
                setup_context(ctx, tuple(inputs), output)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Any) -> Any:
            found = backward(ctx, *grads)
            return *(found if isinstance(found, tuple) else (found,)), None

    def kernel(keyset: Any, *args: Any) -> Any:
        if forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
            raise RuntimeError(
                f"{reference} has no forward-mode derivative: "
                f"use pyseg.ops.{reference}_reference for that"
            )
        if torch.is_grad_enabled() and any(map(_requires_grad, args)):
            args = *args, *defaults[len(args) :], keyset
            if not torch._C._are_functorch_transforms_active():
                return Gradient.apply(*args)
            with torch._functorch.utils.enable_single_level_autograd_function():
                return Gradient.apply(*args)
        return below(keyset, *args)

    Gradient.__name__ = f"{op}_gradient"
    _LIBRARY.impl(op, kernel, "Autograd", with_keyset=True)


def _overload(op: str) -> Any:
    return getattr(torch.ops.pyseg, op).default


@contextlib.contextmanager
def _outer_derivatives() -> Iterator[None]:
    """Lets a Function's forward be differentiated by the transforms of `torch.func` around it."""
    if torch._C._are_functorch_transforms_active():
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            yield
    else:
        yield


def _requires_grad(value: Any) -> bool:
    return isinstance(value, Tensor) and value.requires_grad


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def refuse_double_backward(op: str) -> Callable[..., None]:
    """Returns the gradient formula of a backward op: an error that names the way out."""

    def refuse(ctx: Any, *_: Any) -> None:
        raise RuntimeError(
            f"{op} cannot be differentiated twice: "
            f"use pyseg.ops.{op}_reference for second derivatives"
        )

    return refuse


def refuse_gradient(ctx: Any, op: str, arguments: dict[int, str]) -> None:
    """Raises where one of the arguments, named by their places, is asked for its gradient."""
    for place, name in arguments.items():
        if ctx.needs_input_grad[place]:
            raise RuntimeError(
                f"{op} has no gradient of {name}: use pyseg.ops.{op}_reference for that"
            )


def register_autocast(op: str, function: Callable[..., Any]) -> None:
    """Makes `function` what `op` does under autocast, on every device that has kernels."""
    # torch.library.register_autocast casts to one fixed dtype; users choose theirs.
    for key in ("AutocastCPU", "AutocastCUDA"):
        _LIBRARY.impl(op, function, key)
