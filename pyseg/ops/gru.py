"""The recurrence of a GRU layer as one op, see :func:`gru_recurrence`."""

from __future__ import annotations

import torch
from torch import Tensor

from pyseg.ops._dispatch import is_reference
from pyseg.ops._op import Argument, Op, misfit, wants_gradient

_OP = Op(
    "gru_recurrence",
    "(Tensor gates, Tensor weight, Tensor bias, bool keep) -> (Tensor states, Tensor kept)",
    gates=Argument("(B, T, 3H)"),
    weight=Argument("(3H, H)"),
    bias=Argument("(3H,)"),
)
_BACKWARD = Op(
    "gru_recurrence_backward",
    "(Tensor grad, Tensor states, Tensor kept, Tensor weight) -> "
    "(Tensor gates, Tensor weight, Tensor bias)",
    grad=Argument("(B, T, H)"),
    states=Argument("(B, T, H)"),
    kept=Argument("(B, T, 4H)"),
    weight=Argument("(3H, H)"),
)


@_OP.autocast(to_float32=True)
def gru_recurrence(gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    r"""Returns the states of a GRU layer at every frame.

    .. math::
        r_t &= \sigma(g^r_t + W_r h_{t-1} + b_r), \qquad z_t = \sigma(g^z_t + W_z h_{t-1} + b_z) \\
        n_t &= \tanh(g^n_t + r_t (W_n h_{t-1} + b_n)), \qquad h_t = (1 - z_t) n_t + z_t h_{t-1}

    with h = 0 before the first frame: PyTorch's and cuDNN's cell, in the order (r, z, n) of
    :class:`torch.nn.GRU`. TensorFlow 1's multiplies the state by r before the product, so that
    weights cannot be exchanged with it.

    It is one node for :func:`torch.compile` and :func:`torch.export`, which would unroll
    :class:`torch.nn.GRU` and fix the number of frames; :class:`pyseg.nn.GRU` takes cuDNN's instead
    where nothing is traced. The gradient of the weight is one product
    over all frames instead of one per frame. Under autocast it runs in float32, since errors of
    states propagate from frame to frame. For second and forward-mode derivatives, which raise an
    error, use :func:`gru_recurrence_reference`.

    Args:
        gates: (B, T, 3H) the input's linear map: product with its weights, plus bias.
        weight: (3H, H) ``weight_hh`` of :class:`torch.nn.GRU`.
        bias: (3H,) ``bias_hh``.

    Returns:
        (B, T, H).

    Raises:
        TypeError: an argument is not a tensor, or the dtypes differ or are not floating.
        ValueError: shapes or devices do not fit together.

    References:
        Cho et al., Learning Phrase Representations using RNN Encoder-Decoder, EMNLP 2014.

    Example:
        >>> import torch, pyseg
        >>> gru = torch.nn.GRU(6, 4, batch_first=True)
        >>> x = torch.randn(2, 5, 6)
        >>> gates = torch.nn.functional.linear(x, gru.weight_ih_l0, gru.bias_ih_l0)
        >>> states = pyseg.ops.gru_recurrence(gates, gru.weight_hh_l0, gru.bias_hh_l0)
        >>> torch.allclose(states, gru(x)[0], atol=1e-6)
        True
    """
    if is_reference():
        return gru_recurrence_reference(gates, weight, bias)
    _check(gates, weight, bias)
    keep = wants_gradient(gates, weight, bias)
    return _OP(gates, weight, bias, keep)[0]


def has_fused_gru(weight: Tensor) -> bool:
    """Returns whether :func:`fused_gru` is the faster way for weights like this one.

    While tracing it is not: it would not be one node.
    """
    return not torch.compiler.is_compiling() and torch.backends.cudnn.is_acceptable(weight)


def fused_gru(
    x: Tensor, weight_ih: Tensor, weight_hh: Tensor, bias_ih: Tensor, bias_hh: Tensor
) -> Tensor:
    """Returns :func:`gru_recurrence` of the linear map of `x`, from PyTorch's GRU: on CUDA cuDNN's.

    That is a few launches in place of a dozen a frame, and none waits for the device. As for
    `torch.nn.GRU`, products may round to TF32 where ``torch.backends.cudnn`` allows it.

    Args:
        x: (B, T, N), with at least one frame.
        weight_ih: (3H, N), as the other parameters that of `torch.nn.GRU`.
        weight_hh: (3H, H).
        bias_ih: (3H,).
        bias_hh: (3H,).

    Returns:
        (B, T, H), in autocast float32 as from :func:`gru_recurrence`.
    """
    device, size = x.device.type, weight_hh.shape[1]
    tensors: tuple[Tensor, ...] = x, weight_ih, weight_hh, bias_ih, bias_hh
    if torch.is_autocast_enabled(device):
        tensors = tuple(t if t.dtype == torch.float64 else t.float() for t in tensors)
    keep = wants_gradient(*tensors)
    x, *weights = tensors
    state = x.new_zeros(1, x.shape[0], size)
    with torch.autocast(device, enabled=False):
        if device != "cuda":
            return torch.gru(x, state, weights, True, 1, 0.0, keep, False, True)[0]
        # What torch.gru calls, but that warns of weights that do not lie side by side in memory.
        mode, layers, batch_first = 3, 1, True
        return torch._cudnn_rnn(
            *(x, weights, len(weights), None, state, None, mode, size, 0, layers, batch_first),
            *(0.0, keep, False, [], None),
        )[0]


def gru_recurrence_reference(gates: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
    """Returns what :func:`gru_recurrence` returns, frame by frame: its definition.

    Arguments, result and errors are those of :func:`gru_recurrence`. It can be differentiated any
    number of times. :func:`torch.export` gets a loop over any number of frames.
    """
    _check(gates, weight, bias)
    batch, size = gates.shape[0], weight.shape[1]
    state = gates.new_zeros(batch, size)
    if torch.compiler.is_exporting():
        frames = gates.movedim(1, 0)
        scanned = torch.ops.higher_order.scan(_step, [state], [frames], (weight, bias, batch))
        return scanned[1].movedim(0, 1)
    states = [state]
    for gate in gates.unbind(1):
        states += _step(states[-1], gate, weight, bias, batch)[:1]
    return torch.stack(states, 1)[:, 1:]


def _step(
    state: Tensor, gate: Tensor, weight: Tensor, bias: Tensor, batch: int
) -> tuple[Tensor, Tensor]:
    """Returns the next state twice: the operator for loops wants it to go on, and as a result."""
    inputs = gate.view(batch, 3, weight.shape[1]).unbind(1)
    hidden = (state @ weight.t() + bias).view(batch, 3, weight.shape[1]).unbind(1)
    reset, update = (torch.sigmoid(inputs[i] + hidden[i]) for i in range(2))
    candidate = torch.tanh(inputs[2] + reset * hidden[2])
    state = (1 - update) * candidate + update * state
    return state, state.clone()


def _check(gates: Tensor, weight: Tensor, bias: Tensor) -> None:
    sizes = _OP.check(gates, weight, bias)
    size = sizes["H"]
    if sizes["3H"] != 3 * size:
        raise misfit("weight", "(3H, H)", (3 * size, size), weight, "gates", gates)


@_OP.kernel
def _recurrence(gates: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    states, kept = _results(gates, weight, bias, keep)
    if not states.numel():  # empty, even with frames
        return states, kept
    batch, length, size = states.shape
    width = 3 * size
    scratch = gates.new_empty(batch, 4 * size)
    hidden = gates.new_empty(batch, width)
    state = gates.new_zeros(batch, size)
    for t in range(length):
        inside = kept[:, t] if keep else scratch
        both, candidate, product = inside.split((2 * size, size, size), 1)
        torch.addmm(bias, state, weight.t(), out=hidden)
        product.copy_(hidden[:, 2 * size :])
        torch.add(gates[:, t, : 2 * size], hidden[:, : 2 * size], out=both).sigmoid_()
        reset, update = both.chunk(2, 1)
        torch.addcmul(gates[:, t, 2 * size :], reset, product, out=candidate).tanh_()
        state = torch.lerp(candidate, state, update, out=states[:, t])
    return states, kept


@_BACKWARD.kernel
def _recurrence_backward(
    grad: Tensor, states: Tensor, kept: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad, states, kept, weight)
    batch, length, size = states.shape
    before = torch.cat((states.new_zeros(batch, min(1, length), size), states[:, :-1]), 1)
    reset, update, candidate, product = kept.split(size, -1)
    # All that does not depend on the state's gradient: d(gates before activation)/dh.
    by_candidate = (1 - candidate * candidate).mul_(1 - update)
    by_reset = (product * reset).mul_(1 - reset).mul_(by_candidate)
    by_update = (before - candidate).mul_(update).mul_(1 - update)
    hidden_grad = torch.cat((by_reset, by_update, by_candidate * reset), -1)
    state_grad = states.new_zeros(batch, size)
    for t in reversed(range(length if states.numel() else 0)):
        state_grad = state_grad + grad[:, t]
        hidden_grad[:, t].unflatten(-1, (3, size)).mul_(state_grad.unsqueeze(1))
        by_candidate[:, t].mul_(state_grad)
        state_grad = torch.addmm(state_grad * update[:, t], hidden_grad[:, t], weight)
    gates_grad = torch.cat((hidden_grad[..., : 2 * size], by_candidate), -1)
    rows = hidden_grad.flatten(0, 1)
    return gates_grad, rows.t() @ before.flatten(0, 1), rows.sum(0)


@_OP.fake
def _results(gates: Tensor, weight: Tensor, bias: Tensor, keep: bool) -> tuple[Tensor, Tensor]:
    """Returns memory for the states and for what the backward pass reads: r, z, n, W_n h + b_n."""
    _check(gates, weight, bias)
    batch, length, size = *gates.shape[:2], weight.shape[1]
    return (
        gates.new_empty(batch, length, size),
        gates.new_empty(batch, length if keep else 0, 4 * size),
    )


@_BACKWARD.fake
def _backward_fake(
    grad: Tensor, states: Tensor, kept: Tensor, weight: Tensor
) -> tuple[Tensor, Tensor, Tensor]:
    _check_backward(grad, states, kept, weight)
    batch, length, _ = states.shape
    return (
        grad.new_empty(batch, length, weight.shape[0]),
        torch.empty_like(weight),
        weight.new_empty(weight.shape[0]),
    )


def _check_backward(grad: Tensor, states: Tensor, kept: Tensor, weight: Tensor) -> None:
    sizes = _BACKWARD.check(grad, states, kept, weight)
    size = sizes["H"]
    if sizes["3H"] != 3 * size:
        raise misfit("weight", "(3H, H)", (3 * size, size), weight, "states", states)
    if sizes["4H"] != 4 * size:
        expected = sizes["B"], sizes["T"], 4 * size
        raise misfit("kept", "(B, T, 4H)", expected, kept, "states", states)


@_OP.gradient("states kept weight", constant="kept")
def _gradient(grad: Tensor, *, needed: dict[str, bool], **saved: Tensor) -> dict[str, Tensor]:
    return dict(zip(_OP.arguments, _BACKWARD(grad=grad, **saved), strict=True))


_BACKWARD.refuse_gradient()
