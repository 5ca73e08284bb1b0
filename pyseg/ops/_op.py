"""Describes an operator's arguments once, and registers it with PyTorch.

The file of an operator reads as equation, reference and registration; gru.py is a short one. To add
one:

1. Describe it: ``_OP = Op(name, schema, argument=Argument("(B, T, N)"), ...)``. Kernels in C++ have
   their schema in csrc/library.cpp and none here; a kernel in Python is a function below
   ``@_OP.kernel``.
2. Write the public function, which checks its arguments by `Op.check` and calls ``_OP(...)`` with
   all arguments of the schema, or the reference where no kernel is loaded (`has_kernel`).
   ``@_OP.autocast()`` above it casts arguments in autocast.
3. Write the reference in plain PyTorch: it is what the tests compare with.
4. Below ``@_OP.fake`` return the shapes of the results, below ``@_OP.gradient(...)`` the gradients.
   An operator that computes gradients has its own description; if it cannot be differentiated,
   ``_BACKWARD.refuse_gradient()`` says so.

The functions of step 4 receive arguments by the names of the schema, take those that they need and
leave the others to ``**_``.
"""

from __future__ import annotations

import contextlib
import functools
import inspect
import math
import operator
import sys
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any, ParamSpec, TypeGuard, TypeVar

import torch
from torch import Tensor
from torch.autograd import forward_ad
from torch.autograd.function import _SingleLevelFunction

from pyseg import _ext
from pyseg.errors import ArgumentError
from pyseg.ops._dispatch import sum_dtype

P = ParamSpec("P")
R = TypeVar("R")
Function = TypeVar("Function", bound=Callable[..., Any])
Key = torch._C.DispatchKey

# The dtypes of arguments, as errors name them. An op's values all have one dtype, which autocast
# chooses; its sums have the dtype of `sum_dtype`.
VALUES = "float32, float64, float16 or bfloat16"
SUMS = "the dtype of sums"
_DTYPES: dict[str, Callable[[Tensor], bool]] = {
    VALUES: lambda t: t.dtype in (torch.float32, torch.float64, torch.float16, torch.bfloat16),
    SUMS: lambda t: t.dtype in (torch.float32, torch.float64),
    "floating": lambda t: t.is_floating_point(),
    "uint8 or floating": lambda t: t.dtype == torch.uint8 or t.is_floating_point(),
    "uint8": lambda t: t.dtype == torch.uint8,
    "bool": lambda t: t.dtype == torch.bool,
    "integers": lambda t: not (t.is_floating_point() or t.is_complex() or t.dtype == torch.bool),
}


class Argument:
    """A tensor that an operator takes.

    Args:
        layout: its dimensions, such as "(B, T, N)". The same name means the same size in all
            arguments of the operator; "3H" is a name too, not a product.
        dtype: one of the above.
        optional: whether it may be ``None``.
    """

    def __init__(self, layout: str, dtype: str = VALUES, *, optional: bool = False) -> None:
        self.layout = layout
        self.dtype = dtype
        self.optional = optional
        self.dimensions = [name.strip() for name in layout.strip("(,)").split(",") if name]


def check_arguments(arguments: Mapping[str, Argument], *tensors: Tensor | None) -> dict[str, int]:
    """Raises an error that names the first argument that does not fit; returns the sizes."""
    sizes: dict[str, int] = {}
    given: dict[str, Tensor] = {}
    first = values = ""  # names of the first argument, and of the first of the op's values
    for (name, argument), tensor in zip(arguments.items(), tensors, strict=True):
        if tensor is None and argument.optional:
            continue
        check_tensor(name, tensor, argument.dtype)
        assert tensor is not None
        if tensor.dim() != len(argument.dimensions) or any(
            dimension.isdigit() and size != int(dimension)
            for dimension, size in zip(argument.dimensions, tensor.shape, strict=True)
        ):
            raise ArgumentError(
                f"{name}: expected shape {argument.layout}, found {tuple(tensor.shape)}"
            )
        if argument.dtype in (VALUES, SUMS) and values:
            check_dtype(name, tensor, values, given[values], sums=argument.dtype == SUMS)
        if first:
            check_device(name, tensor, first, given[first])
        first = first or name
        values = values or (name if argument.dtype == VALUES else "")
        for dimension, size in zip(argument.dimensions, tensor.shape, strict=True):
            if sizes.get(dimension, size) != size:
                like = next(n for n in given if dimension in arguments[n].dimensions)
                expected = [sizes.get(d, d) for d in argument.dimensions]
                raise misfit(name, argument.layout, expected, tensor, like, given[like])
        sizes.update(zip(argument.dimensions, tensor.shape, strict=True))
        given[name] = tensor
    return sizes


class Passed:
    """The checks of tensors that have passed, by shapes, dtypes and devices.

    In a training step checks take as long as a small operator, and the answer is always the same.
    """

    _MOST = 256  # keys; only data of changing shapes has more

    def __init__(self) -> None:
        self._results: dict[tuple[Any, ...], Any] = {}

    def check(self, check: Callable[..., R], *tensors: Any) -> R:
        """Returns ``check(*tensors)``, without calling it if such tensors have passed before.

        Subclasses of tensors and symbolic sizes are always checked, as is what fails.
        """
        if torch.compiler.is_compiling():
            return check(*tensors)
        try:
            key = tuple([None if tensor is None else _form(tensor) for tensor in tensors])
            seen: R = self._results.get(key, _NEW)
        except (AttributeError, TypeError):  # no tensor, or symbolic sizes, which have no hash
            return check(*tensors)
        if seen is not _NEW:
            return seen
        found = check(*tensors)
        if _PLAIN_TYPES.issuperset(map(type, tensors)):
            if len(self._results) >= self._MOST:
                self._results.clear()
            self._results[key] = found
        return found


def check_tensor(name: str, value: Any, dtype: str) -> None:
    """Raises if `value` is not a tensor of `dtype`."""
    if not isinstance(value, Tensor):
        raise TypeError(f"{name}: expected a Tensor, found {type(value).__name__}")
    if not _DTYPES[dtype](value):
        raise TypeError(f"{name}: expected {dtype}, found {value.dtype}")
    if value.layout != torch.strided:
        raise TypeError(f"{name}: expected a dense Tensor, found one of {value.layout}")


def check_dtype(name: str, tensor: Tensor, like: str, other: Tensor, *, sums: bool = False) -> None:
    """Raises if `tensor` does not have the dtype of `other`, or of sums over it."""
    dtype = sum_dtype(other.dtype) if sums else other.dtype
    if tensor.dtype != dtype:
        raise TypeError(f"{name}: expected {dtype} to fit {like}, found {tensor.dtype}")


def check_device(name: str, tensor: Tensor, like: str, other: Tensor) -> None:
    """Raises if `tensor` is not on the device of `other`, named `like`."""
    if tensor.device != other.device:
        raise ArgumentError(
            f"{name}: expected the device of {like}, {other.device}, found {tensor.device}"
        )


def check_at_least(name: str, value: float, least: float) -> None:
    """Raises if a number is smaller, infinite or NaN."""
    try:
        inside = least <= value < math.inf
    except TypeError:
        raise TypeError(f"{name}: expected a number, found {type(value).__name__}") from None
    if not inside:
        raise ArgumentError(
            f"{name}: expected a finite number of at least {least:.3g}, found {value}"
        )


def misfit(
    name: str, layout: str, expected: Sequence[Any], tensor: Tensor, like: str, other: Tensor
) -> ArgumentError:
    """Returns the error of a tensor whose shape does not fit that of `other`, named `like`."""
    sizes = ", ".join(map(str, expected)) + ("," if len(expected) == 1 else "")
    return ArgumentError(
        f"{name}: expected shape {layout} = ({sizes}) to fit {like} {tuple(other.shape)}, "
        f"found {tuple(tensor.shape)}"
    )


def wants_gradient(*tensors: Tensor | None) -> bool:
    """Returns whether autograd requires a gradient of one of the tensors."""
    if torch.is_grad_enabled():
        for tensor in tensors:
            if tensor is not None and tensor.requires_grad:
                return True
    return False


# Tensors for which no Python code stands in, and the type of those that are left out.
_PLAIN_TYPES = frozenset((Tensor, torch.nn.Parameter, type(None)))

_NEW: Any = object()  # no result yet
_form = operator.attrgetter("__class__", "shape", "dtype", "device", "layout")

# The keys that are active where nothing intervenes: no mode, no transform, no tracer.
_PLAIN_KEYS = torch._C.DispatchKeySet(Key.BackendSelect).add(Key.ADInplaceOrView).raw_repr()

# Looked up once: this file runs several times in every step.
_AUTOGRAD = Key.AutogradCPU
_included_keys = torch._C._dispatch_tls_local_include_set
_is_excluded = torch._C._dispatch_tls_is_dispatch_key_excluded
_keys_of = torch._C._dispatch_keys
_num_function_modes = torch._C._len_torch_function_stack
_is_profiling = torch._C._autograd._profiler_enabled
is_any_autocast_enabled = torch._C._is_any_autocast_enabled

# The keys of ordinary tensors, and the key of the kernels that take them.
_KERNEL_KEYS = {
    torch._C.DispatchKeySet(device)
    .add(Key.ADInplaceOrView)
    .add(autograd)
    .add(autocast)
    .raw_repr(): torch._C.DispatchKeySet(device)
    for device, autograd, autocast in (
        (Key.CPU, Key.AutogradCPU, Key.AutocastCPU),
        (Key.CUDA, Key.AutogradCUDA, Key.AutocastCUDA),
    )
}


def is_plain(tensors: Collection[Any]) -> bool:
    """Returns whether an operator on `tensors` does what its kernel and its gradient do, no more.

    That is eager mode: nothing but autograd intercepts operators, and all tensors have values.
    Autocast does not count: it casts in public functions, see `Op.autocast`.
    """
    if torch.compiler.is_compiling() or not _PLAIN_TYPES.issuperset(map(type, tensors)):
        return False
    for tensor in tensors:
        if tensor is not None and tensor.is_meta:
            return False
    return (
        _included_keys().raw_repr() == _PLAIN_KEYS
        and not _is_excluded(_AUTOGRAD)
        and not _num_function_modes()
        and forward_ad._current_level < 0
    )


# Defines operators with kernels in Python, and registers fakes, autocast and gradients of all.
_LIBRARY = torch.library.Library("pyseg", "FRAGMENT")


class Op:
    """The operator ``torch.ops.pyseg.<name>``.

    Args:
        name: its name.
        schema: arguments and results, all with names, in PyTorch's notation. ``None``: those of the
            compiled library; without that the operator does not exist, and decorators register
            nothing.
        arguments: the tensors that `check` checks.

    Attributes:
        check: as `check_arguments`, raises an error that names the first of the tensors that does
            not fit, and returns the sizes; see `Passed`.
    """

    check: Callable[..., dict[str, int]]

    def __init__(self, name: str, schema: str | None = None, /, **arguments: Argument) -> None:
        self.name = name
        self.arguments = arguments
        self.places = {name: place for place, name in enumerate(arguments)}
        self.defined = schema is not None or _ext.HAS_CPU_OPS
        check = functools.partial(check_arguments, arguments)
        self.check = functools.partial(Passed().check, check)
        self._python: Callable[..., Any] | None = None  # the kernel, if it is written in Python
        self._differentiable: Any = None  # the Function of the gradient
        if schema is not None:
            _LIBRARY.define(name + schema, tags=(torch.Tag.pt2_compliant_tag,))

    def __call__(self, *args: Any, **named: Any) -> Any:
        """Calls the operator with all arguments of its schema.

        In eager mode it calls kernel and gradient itself: on its way to them the dispatcher would
        pass through Python twice, which takes longer than a small kernel.
        """
        if torch.compiler.is_compiling():
            return self.overload(*args, **named)
        if named:
            args = (*args, *[named[name] for name in self._names[len(args) :]])
        tensors = [args[place] for place in self._tensors]
        if not is_plain(tensors):
            return self.overload(*args)
        if self._differentiable is not None and wants_gradient(*tensors):
            return self._differentiable.apply(*args, None)
        return self.call_kernel(*args)

    def with_parts(self, *args: Any, parts: Sequence[Tensor]) -> Any:
        """Calls the operator, where `is_plain`, with gradients of `parts` of an argument.

        The argument itself was made from them without autograd, which would need a node for each of
        the operators that make it.
        """
        if wants_gradient(*[args[place] for place in self._tensors], *parts):
            return self._differentiable.apply(*args, *parts, None)
        return self.call_kernel(*args)

    def call_kernel(self, *args: Any) -> Any:
        """Calls the kernel for plain tensors, below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            return (self._python or self._packet)(*args)

    def call_directly(self, *args: Any) -> Any:
        """Calls the kernel in C++ as `call_kernel` does, without the dispatcher where possible.

        It is possible unless a profiler is to see the call or a tensor has memory of a kind that
        the dispatcher handles: what a transform of `torch.func` has wrapped, or a negated view. The
        dispatcher takes as long as a small kernel, but so does looking at more than a few tensors.
        """
        found = None
        for place in self._tensors:
            if (tensor := args[place]) is not None:
                keys = _keys_of(tensor).raw_repr()
                if keys != found and (found is not None or keys not in _KERNEL_KEYS):
                    return self.call_kernel(*args)
                found = keys
        if found is None or _is_profiling():
            return self.call_kernel(*args)
        return self._boxed(_KERNEL_KEYS[found], *args)

    def kernel(self, function: Function) -> Function:
        """Makes `function` the kernel on every device."""
        self._python = function
        _LIBRARY.impl(self.name, _untraced(function), "CompositeExplicitAutograd")
        return function

    def autocast(self, *, to_float32: bool = False) -> Callable[[Callable[P, R]], Callable[P, R]]:
        """Returns a decorator that makes autocast cast the values of a function and the operator.

        As for PyTorch's own operators, the target is autocast's dtype, for matrix products, or
        float32, and float64 is not cast.
        """
        values = [n for n, argument in self.arguments.items() if argument.dtype == VALUES]

        def register(function: Callable[P, R]) -> Callable[P, R]:
            # torch.library.register_autocast casts to one fixed dtype, but users choose it.
            if self.defined:
                raw = _casting(self.overload, list(self.defaults), values, to_float32)
                for key in ("AutocastCPU", "AutocastCUDA"):
                    _LIBRARY.impl(self.name, raw, key)
            kinds = inspect.signature(function).parameters.values()
            names = [p.name for p in kinds if p.kind is p.POSITIONAL_OR_KEYWORD]
            return functools.wraps(function)(_casting(function, names, values, to_float32))

        return register

    def fake(self, function: Function) -> Function:
        """Makes `function` the fake, which returns the shapes of results; it may check arguments.

        PyTorch also calls it if only some tensors are meta tensors, and would leave the results
        uninitialized: tensors on several devices are refused.
        """

        def fake(*args: Any, **kwargs: Any) -> Any:
            named = self._named(args) | kwargs
            tensors = [pair for pair in named.items() if isinstance(pair[1], Tensor)]
            for name, tensor in tensors[1:]:
                check_device(name, tensor, *tensors[0])
            return function(**named)

        if self.defined:
            torch.library.register_fake(f"pyseg::{self.name}", fake, lib=_LIBRARY)
        return function

    def gradient(
        self,
        saved: str,
        *,
        constant: str = "",
        refused: Mapping[str, str] | None = None,
        parts: Sequence[str] = (),
    ) -> Callable[[Function], Function]:
        """Returns a decorator that makes a function the gradient of the operator.

        It takes the gradients of the results, each possibly ``None``, then by name the saved
        tensors, and `needed`, which says for each argument whether its gradient is required. It
        returns gradients by the names of arguments; those that it leaves out have none.

        :func:`torch.library.register_autograd` silently makes forward-mode derivatives zero and
        does not support `torch.func.grad`. Here the former raise an error, and the latter works.

        Args:
            saved: the arguments and results to save for the gradient.
            constant: the results without a gradient.
            refused: differentiable arguments whose gradient is not implemented, and their names
                for users.
            parts: the names of gradients that `with_parts` asks for. Where a second derivative may
                be asked for, the function also gets the tensors themselves, as ``parts``.
        """
        reference = self.public_name

        def register(function: Function) -> Function:
            if not self.defined:
                return function
            self._differentiable = _autograd_function(
                self, function, saved, constant, refused or {}, list(parts)
            )

            def kernel(keyset: Any, *args: Any) -> Any:
                if forward_ad._current_level >= 0 and any(map(_has_tangent, args)):
                    raise RuntimeError(
                        f"{reference} has no forward-mode derivative: "
                        f"use pyseg.ops.{reference}_reference for that"
                    )
                if wants_gradient(*(value for value in args if isinstance(value, Tensor))):
                    if len(args) < len(self.defaults):
                        args = tuple(self._named(args).values())
                    return _apply(self._differentiable, *args, keyset)
                return self.below_autograd(keyset, *args)

            _LIBRARY.impl(self.name, kernel, "Autograd", with_keyset=True)
            return function

        return register

    def refuse_gradient(self) -> None:
        """Makes the gradient of a backward operator an error that names the alternative."""
        op = self.public_name

        @self.gradient("")
        def refuse(*_: Any, **__: Any) -> None:
            raise RuntimeError(
                f"{op} cannot be differentiated twice: "
                f"use pyseg.ops.{op}_reference for second derivatives"
            )

    @functools.cached_property
    def overload(self) -> Any:
        """The overload that the dispatcher calls: ``torch.ops.pyseg.<name>.default``."""
        return getattr(torch.ops.pyseg, self.name).default

    @functools.cached_property
    def _packet(self) -> Callable[..., Any]:
        """What the overload calls, without the call between."""
        packet: Callable[..., Any] = self.overload._op
        return packet

    @functools.cached_property
    def _boxed(self) -> Callable[..., Any]:
        """Calls the kernel of some dispatch keys."""
        boxed: Callable[..., Any] = self.overload._handle.redispatch_boxed
        return boxed

    @property
    def public_name(self) -> str:
        """The public function that this operator is a part of; one ending in _ works in place."""
        return self.name.removesuffix("_").removesuffix("_backward")

    @functools.cached_property
    def defaults(self) -> dict[str, Any]:
        """The defaults of all arguments of the schema, by name."""
        return {a.name: a.default_value for a in self.overload._schema.arguments}

    @functools.cached_property
    def _names(self) -> list[str]:
        """The names of all arguments of the schema."""
        return list(self.defaults)

    @functools.cached_property
    def _tensors(self) -> list[int]:
        """The positions of the tensors among the arguments of the schema."""
        arguments = enumerate(self.overload._schema.arguments)
        return [place for place, argument in arguments if "Tensor" in str(argument.type)]

    def _named(self, args: tuple[Any, ...]) -> dict[str, Any]:
        """Returns arguments by name; the dispatcher omits trailing ones with default values."""
        return self.defaults | dict(zip(self.defaults, args, strict=False))

    def below_autograd(self, keyset: Any, *args: Any) -> Any:
        """Calls the kernel for the keys of `keyset` below autograd."""
        with torch._C._AutoDispatchBelowAutograd():
            return self.overload.redispatch(keyset & torch._C._after_autograd_keyset, *args)


def _casting(
    function: Callable[..., R], names: list[str], values: list[str], to_float32: bool
) -> Callable[..., R]:
    """Returns `function`, with arguments `names`, wrapped so that autocast casts `values`."""
    place = names.index(values[0])

    def call(*args: Any, **kwargs: Any) -> R:
        if not (torch.compiler.is_compiling() or is_any_autocast_enabled()):
            return function(*args, **kwargs)
        first = args[place] if place < len(args) else kwargs.get(values[0])
        if not _in_autocast(first):
            return function(*args, **kwargs)
        device = first.device.type
        dtype = torch.float32 if to_float32 else torch.get_autocast_dtype(device)

        def cast(name: str, value: Any) -> Any:
            is_cast = name in values and _is_cast(value, device)
            return value.to(dtype) if is_cast else value

        args = (*map(cast, names, args), *args[len(names) :])
        kwargs = {name: cast(name, value) for name, value in kwargs.items()}
        with torch.autocast(device, enabled=False):
            return function(*args, **kwargs)

    return call


def _autograd_function(
    op: Op,
    function: Callable[..., dict[str, Tensor | None]],
    saved: str,
    constant: str,
    refused: Mapping[str, str],
    parts: list[str],
) -> type[_SingleLevelFunction]:
    """Returns a Function that calls `op`, with `function` as its gradient, see `Op.gradient`."""
    schema = op.overload._schema
    inputs, results = list(op.defaults), [result.name for result in schema.returns]
    num_inputs = len(inputs)
    # By position, as this runs in every step: results first, then arguments.
    place = {name: number for number, name in enumerate(results)}
    place |= {name: len(results) + number for number, name in enumerate(inputs)}
    kinds = {argument.name: str(argument.type) for argument in schema.arguments}
    names = sorted(saved.split(), key=lambda name: "Tensor" not in kinds.get(name, "Tensor"))
    num_tensors = sum("Tensor" in kinds.get(name, "Tensor") for name in names)
    places = [place[name] for name in names]
    saved_tensors, saved_others = _getter(places[:num_tensors]), _getter(places[num_tensors:])
    constants = [results.index(name) for name in constant.split()]
    get_constants = _getter(constants)
    get_varying = _getter([number for number in range(len(results)) if number not in constants])
    refusals = [(inputs.index(name), text) for name, text in refused.items()]
    inputs_and_parts = inputs + parts

    # A Function with one level of derivatives, as the dispatcher calls it for each level.
    class Gradient(_SingleLevelFunction):
        apply: Callable[..., Any]  # its base is in C++

        @staticmethod
        def forward(ctx: Any, *args: Any) -> Any:
            values, of_parts, keyset = args[:num_inputs], args[num_inputs:-1], args[-1]
            if keyset is None:
                output = op.call_kernel(*values)
            else:
                with _outer_derivatives():
                    output = op.below_autograd(keyset, *values)
            outputs = output if isinstance(output, tuple) else (output,)
            everything = outputs + values
            if constants:
                ctx.mark_non_differentiable(*get_constants(outputs))
            ctx.set_materialize_grads(False)  # they would be as large as the saved tensors
            ctx.save_for_backward(*saved_tensors(everything), *of_parts)
            ctx.others = saved_others(everything)
            ctx.num_parts = len(of_parts)
            return output

        @staticmethod
        def backward(ctx: Any, *grads: Tensor | None) -> Any:
            needs = ctx.needs_input_grad
            for number, text in refusals:
                if needs[number]:
                    raise RuntimeError(
                        f"{op.name} has no gradient of {text}: "
                        f"use pyseg.ops.{op.name}_reference for that"
                    )
            wanted = get_varying(grads)
            found: dict[str, Tensor | None] = {}
            if any(grad is not None for grad in wanted):
                tensors = ctx.saved_tensors
                named = dict(zip(names, (*tensors[:num_tensors], *ctx.others), strict=True))
                if ctx.num_parts and torch.is_grad_enabled():
                    named["parts"] = tensors[num_tensors:]
                needed = dict(zip(inputs_and_parts, needs[:-1], strict=False))
                found = function(*wanted, needed=needed, **named)
            taken = zip(inputs_and_parts, needs[:-1], strict=False)
            return *[found.get(name) if need else None for name, need in taken], None

    Gradient.__name__ = f"{op.name}_gradient"
    return Gradient


def _getter(places: list[int]) -> Callable[[tuple[Any, ...]], tuple[Any, ...]]:
    """Returns what takes the values at some places, in every step: faster than a loop."""
    if len(places) > 1:
        return operator.itemgetter(*places)
    return lambda values: tuple([values[place] for place in places])


def _apply(function: Any, *args: Any) -> Any:
    """Applies a Function with one level of derivatives, also inside transforms of `torch.func`."""
    if not torch._C._are_functorch_transforms_active():
        return function.apply(*args)
    with torch._functorch.utils.enable_single_level_autograd_function():
        return function.apply(*args)


@contextlib.contextmanager
def _outer_derivatives() -> Iterator[None]:
    """Lets the transforms of `torch.func` around a Function differentiate its forward."""
    if torch._C._are_functorch_transforms_active():
        with torch.enable_grad(), forward_ad._set_fwd_grad_enabled(True):
            yield
    else:
        yield


def _has_tangent(value: Any) -> bool:
    return isinstance(value, Tensor) and forward_ad.unpack_dual(value).tangent is not None


def _in_autocast(tensor: Any) -> TypeGuard[Tensor]:
    """Returns whether autocast is on for the device of `tensor`; False for other objects."""
    if not isinstance(tensor, Tensor):
        return False
    device = tensor.device.type
    # Not torch.amp.is_autocast_available(device), which torch.compile of 2.11 cannot trace.
    return device in ("cpu", "cuda") and torch.is_autocast_enabled(device)


def _is_cast(value: Any, device: str) -> bool:
    """Returns whether autocast casts `value`: a float tensor of its device, not float64."""
    return (
        isinstance(value, Tensor)
        and value.is_floating_point()
        and value.dtype != torch.float64
        and value.device.type == device
    )


_disabled = functools.cache(torch.compiler.disable)


def _untraced(kernel: Callable[..., Any]) -> Callable[..., Any]:
    """Returns a kernel that torch.compile does not trace."""

    @functools.wraps(kernel)
    def call(*args: Any) -> Any:
        # torch.compiler.disable imports torch._dynamo, which takes as long as importing torch.
        # Until something else imports it, nothing is compiled in this process.
        if "torch._dynamo" in sys.modules:
            return _disabled(kernel)(*args)
        return kernel(*args)

    return call
