"""BatchNorm: slim's constants and variance, masks, degenerate batches."""

from __future__ import annotations

import copy

import pytest
import torch
from torch import Tensor

from pyseg.nn import BatchNorm
from pyseg.ops import soft_assign
from pyseg.ops.assignment import normalize


def randomized(norm: BatchNorm) -> BatchNorm:
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return norm


def apply_deferred(norm: BatchNorm, x: Tensor, mask: Tensor | None = None) -> Tensor:
    """Applies `norm.deferred(x, mask)` by its definition, as an op does."""
    return normalize(x.unsqueeze(2), norm.deferred(x, mask)).squeeze(2)


def test_defaults_are_those_of_slim() -> None:
    norm = BatchNorm(3)
    assert (norm.eps, norm.momentum, norm.unbiased) == (1e-3, 0.001, False)
    assert norm.weight.tolist() == [1, 1, 1]
    assert norm.bias.tolist() == [0, 0, 0]


@pytest.mark.parametrize("shape", [(7, 5), (3, 4, 5), (2, 3, 2, 5)])
@pytest.mark.parametrize("unbiased", [False, True])
def test_training_equals_the_formula(shape: tuple[int, ...], unbiased: bool) -> None:
    torch.manual_seed(0)
    norm = randomized(BatchNorm(5, momentum=0.25, unbiased=unbiased)).double()
    mean_before, var_before = norm.running_mean.clone(), norm.running_var.clone()
    x = torch.randn(shape, dtype=torch.float64) * 3 + 1
    y = norm(x)
    rows = x.reshape(-1, 5)
    mean, biased = rows.mean(0), rows.var(0, correction=0)
    expected = (x - mean) / torch.sqrt(biased + 1e-3) * norm.weight + norm.bias
    torch.testing.assert_close(y, expected)
    running = rows.var(0, correction=1 if unbiased else 0)
    torch.testing.assert_close(norm.running_mean, 0.75 * mean_before + 0.25 * mean)
    torch.testing.assert_close(norm.running_var, 0.75 * var_before + 0.25 * running)


def test_eval_uses_the_running_statistics_and_leaves_them() -> None:
    torch.manual_seed(0)
    norm = randomized(BatchNorm(4)).eval()
    before = {key: value.clone() for key, value in norm.state_dict().items()}
    x = torch.randn(6, 4)
    expected = (x - norm.running_mean) / torch.sqrt(norm.running_var + 1e-3)
    torch.testing.assert_close(norm(x), expected * norm.weight + norm.bias)
    torch.testing.assert_close(norm(x[:1]), norm(x)[:1])
    for key, value in norm.state_dict().items():
        assert torch.equal(value, before[key])


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("training", [False, True])
def test_deferred_is_forward(training: bool, unbiased: bool) -> None:
    torch.manual_seed(0)
    x = torch.randn(2, 3, 4, dtype=torch.float64)
    results = []
    for function in (BatchNorm.forward, apply_deferred):
        norm = BatchNorm(4, momentum=0.5, unbiased=unbiased).double().train(training)
        with torch.no_grad():
            norm.weight.copy_(torch.linspace(1, 2, 4))
        leaf = x.clone().requires_grad_()
        y = function(norm, leaf)
        y.backward(torch.linspace(-1, 1, 24, dtype=x.dtype).reshape(2, 3, 4))
        results.append((y, leaf.grad, norm.weight.grad, norm.bias.grad, *norm.buffers()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("masked", [False, True])
def test_running_mean_includes_the_deferred_bias(masked: bool) -> None:
    """A deferred bias changes neither the result nor the statistics."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, False, False]]) if masked else None
    x, bias = torch.randn(2, 3, 4, dtype=torch.float64), torch.randn(4, dtype=torch.float64)
    results = []
    for given, deferred_bias in ((x + bias, None), (x, bias)):
        norm = BatchNorm(4, momentum=0.5).double()
        applied = norm.deferred(given, mask, deferred_bias=deferred_bias)
        results.append((normalize(given.unsqueeze(2), applied), *norm.buffers()))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("unbiased", [False, True])
def test_masked_rows_do_not_count(unbiased: bool) -> None:
    """Statistics and their gradient are of the valid rows only; all rows are normalised."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    norm = randomized(BatchNorm(4, momentum=0.5, unbiased=unbiased)).double()
    alone = BatchNorm(4, momentum=0.5, unbiased=unbiased).double()
    alone.load_state_dict(norm.state_dict())
    y = apply_deferred(norm, x, mask)
    valid = x.detach()[mask].requires_grad_()
    expected = alone(valid)
    torch.testing.assert_close(y[mask], expected)
    torch.testing.assert_close(norm.running_mean, alone.running_mean)
    torch.testing.assert_close(norm.running_var, alone.running_var)
    direction = torch.randn(3, 4, dtype=torch.float64)
    y[mask].backward(direction)
    expected.backward(direction)
    torch.testing.assert_close(x.grad[mask], valid.grad)
    assert x.grad[~mask].abs().max() == 0
    torch.testing.assert_close(norm.weight.grad, alone.weight.grad)


@pytest.mark.parametrize("unbiased", [False, True])
def test_a_row_may_count_several_times(unbiased: bool) -> None:
    """As if it were repeated."""
    torch.manual_seed(0)
    counts = torch.tensor([[2, 0, 1], [3, 1, 0]])
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    norms = [BatchNorm(4, momentum=0.5, unbiased=unbiased).double() for _ in range(2)]
    y = norms[0](x, counts)
    repeated = x.detach().flatten(0, 1).repeat_interleave(counts.flatten(), 0).requires_grad_()
    expected = norms[1](repeated)
    torch.testing.assert_close(y.flatten(0, 1).repeat_interleave(counts.flatten(), 0), expected)
    for a, b in zip(norms[0].buffers(), norms[1].buffers(), strict=True):
        torch.testing.assert_close(a, b)
    direction = torch.randn(2, 3, 4, dtype=torch.float64)
    (y * direction * counts.unsqueeze(-1)).sum().backward()
    (expected * direction.flatten(0, 1).repeat_interleave(counts.flatten(), 0)).sum().backward()
    places = torch.arange(6).repeat_interleave(counts.flatten())
    summed = torch.zeros(6, 4, dtype=torch.float64).index_add(0, places, repeated.grad)
    torch.testing.assert_close(x.grad.flatten(0, 1), summed)
    rows = copy.deepcopy(norms[0])(x.flatten(0, 1), counts.flatten())
    torch.testing.assert_close(rows, y.flatten(0, 1))
    for norm in norms:
        norm.eval()
    torch.testing.assert_close(norms[0](x, counts), norms[1](x))
    assert BatchNorm(4)(x.bfloat16(), counts).dtype == torch.bfloat16


@pytest.mark.parametrize("shape", [(0, 3, 2), (2, 0, 2), (2, 3, 2)])
def test_deferred_without_a_row_leaves_the_statistics_alone(shape: tuple[int, ...]) -> None:
    norm = BatchNorm(2)
    x = torch.randn(shape)
    assert apply_deferred(norm, x, torch.zeros(shape[:2], dtype=torch.bool)).isfinite().all()
    assert norm.running_mean.tolist() == [0, 0]
    assert norm.running_var.tolist() == [1, 1]


def test_deferred_statistics_of_bfloat16_are_float32() -> None:
    torch.manual_seed(0)
    x = (torch.randn(64, 64, 2) + 100).bfloat16()
    norm, exact = BatchNorm(2, momentum=1.0), BatchNorm(2, momentum=1.0).double()
    assert norm.deferred(x).mean.dtype == torch.float32
    exact.deferred(x.double())
    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("deferred", [False, True])
def test_one_row_is_no_error(unbiased: bool, deferred: bool) -> None:
    """The last batch of an epoch may hold one video; PyTorch's own layer refuses it."""
    norm = BatchNorm(3, momentum=0.5, unbiased=unbiased)
    x = torch.tensor([[4.0, -2.0, 0.0]], requires_grad=True)
    y = apply_deferred(norm, x[None])[0] if deferred else norm(x)
    torch.testing.assert_close(y, torch.zeros(1, 3), atol=1e-5, rtol=0)
    torch.testing.assert_close(norm.running_mean, torch.tensor([2.0, -1.0, 0.0]))
    torch.testing.assert_close(norm.running_var, torch.full((3,), 0.5))
    y.sum().backward()
    assert x.grad.isfinite().all()


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("x", [torch.zeros(0, 3), torch.zeros(2, 0, 3)])
def test_no_rows_leave_the_statistics_alone(training: bool, x: torch.Tensor) -> None:
    norm = BatchNorm(3).train(training)
    assert norm(x).shape == x.shape
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.running_var.tolist() == [1, 1, 1]


def test_bfloat16_rows_have_float32_statistics() -> None:
    torch.manual_seed(0)
    x = (torch.randn(4096, 2) + 100).bfloat16()
    norm, exact = BatchNorm(2, momentum=1.0), BatchNorm(2, momentum=1.0).double()
    y, expected = norm(x), exact(x.double())
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("deferred", [False, True])
def test_compiles_whole_with_any_number_of_rows(deferred: bool) -> None:
    def step(norm: BatchNorm, x: Tensor) -> Tensor:
        if not deferred:
            return norm(x)
        mask = torch.arange(x.shape[1]) < 3
        norms = norm.deferred(x, mask.expand(x.shape[:2]))
        return soft_assign(x.unsqueeze(2), torch.ones_like(x[..., :1]), norm=norms)

    torch._dynamo.reset()
    norm, plain = BatchNorm(3), BatchNorm(3)
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for rows in (4, 7, 5):
        x = torch.randn(rows + 1, rows, 3)
        torch.testing.assert_close(compiled(norm, x), step(plain, x))
        torch.testing.assert_close(norm.running_var, plain.running_var)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"num_features": 0}, "num_features: expected at least 1, found 0"),
        ({"num_features": 1, "eps": -1.0}, "eps: expected a number >= 0, found -1.0"),
        ({"num_features": 1, "momentum": 1.5}, "momentum: expected a number in 0..1, found 1.5"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        BatchNorm(**arguments)


def test_bad_input() -> None:
    with pytest.raises(ValueError, match=r"x: expected a last dimension of 3, found \(2, 4\)"):
        BatchNorm(3)(torch.zeros(2, 4))
    with pytest.raises(ValueError, match=r"x: expected a last dimension of 3, found \(2, 1, 4\)"):
        BatchNorm(3).deferred(torch.zeros(2, 1, 4))
    with pytest.raises(ValueError, match=r"counts: expected shape \(2, 1\) as x .*, found \(3,\)"):
        BatchNorm(3).deferred(torch.zeros(2, 1, 3), torch.ones(3, dtype=torch.bool))


def test_equal_weights_of_rows_are_made_once_for_a_number() -> None:
    norm = BatchNorm(3)
    with torch.inference_mode():
        norm.deferred(torch.randn(2, 7, 3))
    weights = [norm.deferred(torch.randn(2, 7, 3)).row_weights for _ in range(2)]
    assert weights[0] is weights[1]
    assert not weights[0].is_inference()
    torch.testing.assert_close(weights[0], torch.full((14,), 1 / 14))
    assert norm.deferred(torch.randn(7, 3)).row_weights.shape == (7,)
    assert (
        norm.deferred(torch.randn(2, 7, 3, dtype=torch.float64)).row_weights.dtype == torch.float64
    )
