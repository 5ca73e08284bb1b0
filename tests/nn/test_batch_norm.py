"""BatchNorm: slim's constants and variance, masks, degenerate batches (pitfall 6)."""

from __future__ import annotations

import pytest
import torch

from pyseg.nn import BatchNorm


def randomized(norm: BatchNorm) -> BatchNorm:
    with torch.no_grad():
        for tensor in (norm.weight, norm.bias, norm.running_mean):
            tensor.normal_()
        norm.running_var.uniform_(0.5, 1.5)
    return norm


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
def test_masked_rows_do_not_count(unbiased: bool) -> None:
    """Statistics of the valid rows alone, and their gradient; all rows are normalised."""
    torch.manual_seed(0)
    mask = torch.tensor([[True, True, False], [True, False, False]])
    x = torch.randn(2, 3, 4, dtype=torch.float64, requires_grad=True)
    norm = randomized(BatchNorm(4, momentum=0.5, unbiased=unbiased)).double()
    alone = BatchNorm(4, momentum=0.5, unbiased=unbiased).double()
    alone.load_state_dict(norm.state_dict())
    y = norm(x, mask)
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


def test_mask_of_ones_changes_nothing() -> None:
    torch.manual_seed(0)
    x = torch.randn(5, 3)
    masked, plain = BatchNorm(3), BatchNorm(3)
    torch.testing.assert_close(masked(x, torch.ones(5, dtype=torch.bool)), plain(x))
    torch.testing.assert_close(masked.running_var, plain.running_var)


@pytest.mark.parametrize("unbiased", [False, True])
@pytest.mark.parametrize("masked", [False, True])
def test_one_row_is_no_error(unbiased: bool, masked: bool) -> None:
    """A partial final batch may hold one video; PyTorch's own layer refuses it."""
    norm = BatchNorm(3, momentum=0.5, unbiased=unbiased)
    x = torch.tensor([[4.0, -2.0, 0.0]], requires_grad=True)
    y = norm(x, torch.tensor([True]) if masked else None)
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


def test_mask_without_a_row_leaves_the_statistics_alone() -> None:
    norm = BatchNorm(3)
    assert norm(torch.randn(2, 3), torch.zeros(2, dtype=torch.bool)).isfinite().all()
    assert norm.running_mean.tolist() == [0, 0, 0]
    assert norm.running_var.tolist() == [1, 1, 1]


@pytest.mark.parametrize("masked", [False, True])
def test_bfloat16_rows_have_float32_statistics(masked: bool) -> None:
    torch.manual_seed(0)
    x = (torch.randn(4096, 2) + 100).bfloat16()
    mask = torch.ones(4096, dtype=torch.bool) if masked else None
    norm, exact = BatchNorm(2, momentum=1.0), BatchNorm(2, momentum=1.0).double()
    y, expected = norm(x, mask), exact(x.double(), mask)
    assert y.dtype == torch.bfloat16
    torch.testing.assert_close(y.double(), expected, atol=2e-2, rtol=1e-2)
    torch.testing.assert_close(norm.running_mean.double(), exact.running_mean, rtol=1e-5, atol=0)
    torch.testing.assert_close(norm.running_var.double(), exact.running_var, rtol=1e-4, atol=0)


@pytest.mark.parametrize("masked", [False, True])
def test_compiles_whole_with_any_number_of_rows(masked: bool) -> None:
    torch._dynamo.reset()
    norm = BatchNorm(3)
    compiled = torch.compile(norm, fullgraph=True, dynamic=True, backend="aot_eager")
    plain = BatchNorm(3)
    for rows in (4, 7, 5):
        x = torch.randn(rows, 3)
        mask = torch.arange(rows) < 3 if masked else None
        torch.testing.assert_close(compiled(x, mask), plain(x, mask))
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
    with pytest.raises(ValueError, match=r"mask: expected shape \(2,\) as x has, found \(3,\)"):
        BatchNorm(3)(torch.zeros(2, 3), torch.ones(3, dtype=torch.bool))
