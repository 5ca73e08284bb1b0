"""pyseg.ops.soft_assign, moments and AssignmentNorm against their definitions."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from pyseg import _ext
from pyseg.ops import (
    AssignmentNorm,
    moments,
    moments_reference,
    soft_assign,
    soft_assign_reference,
    vlad_aggregate,
    vlad_aggregate_reference,
)
from tests.ops.conftest import (
    DEVICES,
    DTYPES,
    NORMS,
    assert_error_is_at_most_twice,
    half,
    ignore_deprecations_of_torch,
    in_float64,
    make,
    make_norm,
    needs_cpu_ops,
    normalize_plainly,
    normalizing,
    values_and_gradients,
    with_layout,
)

# B, T, G, K
SHAPES = {
    "one": (1, 1, 1, 1),
    "segment": (8, 5, 8, 112),
    "odd": (3, 7, 3, 13),
    "many rows": (5, 230, 2, 40),
    "K=136": (1, 20, 8, 136),
    "no video": (0, 5, 2, 3),
    "no frame": (2, 0, 2, 3),
}


def make_inputs(
    shape: tuple[int, ...], dtype: torch.dtype = torch.float32, device: str = "cpu", **options
) -> list[Tensor]:
    """Returns assignment and attention."""
    return make((*shape[:3], 1, shape[3]), dtype, device, **options)[1:3]


def make_grad(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    random = torch.Generator().manual_seed(1)
    return torch.randn(shape, generator=random, dtype=torch.float64).to(device, dtype)


def make_norm_or_none(assignment: Tensor, norm: str | None) -> tuple[list[Tensor], Tensor | None]:
    return make_norm(assignment, norm) if norm else ([], None)


def maybe_normalizing(function, norm: str | None, row_weights: Tensor | None):
    return normalizing(function, 2, row_weights) if norm else function


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("layout", ["contiguous", "sliced"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_error_is_at_most_twice_that_of_plain_pytorch(device, dtype, shape, layout, norm):
    inputs = make_inputs(shape, dtype, device, layout=layout)
    tensors, row_weights = make_norm_or_none(inputs[0], norm)
    inputs += tensors
    grad = make_grad(shape, dtype, device)

    def plain(assignment: Tensor, attention: Tensor, *others: Tensor) -> Tensor:
        scores = normalize_plainly(assignment, others, row_weights) if norm else assignment
        return scores.softmax(-1) * attention.unsqueeze(-1)

    exact_weights = None if row_weights is None else row_weights.double()
    definition = maybe_normalizing(soft_assign_reference, norm, exact_weights)
    exact = values_and_gradients(definition, in_float64(inputs), grad)
    baseline = values_and_gradients(plain, inputs, grad)
    actual = values_and_gradients(maybe_normalizing(soft_assign, norm, row_weights), inputs, grad)
    names = ["output", "assignment", "attention", "mean", "variance", "weight", "bias"]
    if norm == "statistics":
        del names[3:5]
    assert_error_is_at_most_twice(names[: len(actual)], actual, baseline, exact)


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "expanded"])
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_float64_agrees_with_the_reference(device, shape, layout, norm):
    inputs = make_inputs(shape, torch.float64, device, layout=layout)
    tensors, row_weights = make_norm_or_none(inputs[0], norm)
    inputs += tensors
    grad = make_grad(shape, torch.float64, device)
    actual, expected = (
        values_and_gradients(maybe_normalizing(function, norm, row_weights), inputs, grad)
        for function in (soft_assign, soft_assign_reference)
    )
    for value, true in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-12)


soft_assign_by_cluster = functools.partial(soft_assign, by_cluster=True)


def is_by_cluster(weights: Tensor) -> bool:
    return weights.mT.is_contiguous() and not weights.is_contiguous()


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_by_cluster_changes_the_order_in_memory_only(device, dtype, norm):
    for shape in [(3, 7, 8, 16), (3, 7, 3, 13), (1, 20, 8, 136)]:
        inputs = make_inputs(shape, dtype, device)
        tensors, row_weights = make_norm_or_none(inputs[0], norm)
        inputs += tensors
        results = []
        for function in (soft_assign, soft_assign_by_cluster):
            weights = maybe_normalizing(function, norm, row_weights)(*inputs)
            grad = make_grad(shape, dtype, device)
            results += [
                [weights, *torch.autograd.grad(weights, inputs, order, retain_graph=True)]
                for order in (grad, grad.mT.contiguous().mT, with_layout(grad, "sliced"))
            ]
            assert is_by_cluster(weights) == (function is not soft_assign)
        for result in results[1:]:
            assert all(torch.equal(a, b) for a, b in zip(results[0], result, strict=True))


@pytest.mark.parametrize("norm", [None, *NORMS])
def test_the_reference_by_cluster(norm, monkeypatch):
    inputs = make_inputs((2, 3, 4, 5), grad=False)
    tensors, row_weights = make_norm_or_none(inputs[0], norm)
    call = functools.partial(maybe_normalizing, norm=norm, row_weights=row_weights)
    expected = call(soft_assign_reference)(*inputs, *tensors)
    by_cluster = functools.partial(soft_assign_reference, by_cluster=True)
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    for function in (by_cluster, soft_assign_by_cluster):
        weights = call(function)(*inputs, *tensors)
        assert is_by_cluster(weights)
        assert torch.equal(weights, expected)


def test_a_gradient_by_cluster_is_not_copied():
    inputs = make_inputs((8, 50, 8, 32), grad=False)
    grad = make_grad((8, 50, 8, 32), torch.float32, "cpu").mT.contiguous().mT
    with torch.profiler.profile() as profile:
        torch.ops.pyseg.soft_assign_backward(grad, *inputs, None, None)
    names = [event.name for event in profile.events()]
    assert "pyseg::soft_assign_backward" in names
    assert not {"aten::clone", "aten::copy_"}.intersection(names)


@pytest.mark.parametrize("device", DEVICES)
def test_is_the_first_half_of_vlad_aggregate(device):
    features, assignment, attention, _ = make(device=device, grad=False)
    weights = soft_assign(assignment, attention).flatten(1, 2)
    sums = features.flatten(1, 2).mT @ weights
    expected = torch.nn.functional.normalize(sums, dim=1)
    zero = torch.zeros(5, 4, device=device)
    torch.testing.assert_close(vlad_aggregate(features, assignment, attention, zero), expected)


@pytest.mark.parametrize("device", DEVICES)
def test_norm_is_batch_normalization(device):
    # With equal weights it is torch's own batch normalisation in training.
    assignment, attention = make_inputs((3, 7, 2, 5), torch.float64, device)
    (weight, bias), _ = make_norm(assignment, "statistics")
    row_weights = torch.full((3, 7), 1 / 21, dtype=torch.float64, device=device)
    inputs = [assignment, attention, weight, bias]

    def with_torch(assignment: Tensor, attention: Tensor, weight: Tensor, bias: Tensor) -> Tensor:
        columns = assignment.flatten(0, 1).flatten(1)
        scores = torch.nn.functional.batch_norm(
            columns, None, None, weight, bias, training=True, eps=1e-3
        )
        return scores.view_as(assignment).softmax(-1) * attention.unsqueeze(-1)

    grad = make_grad((3, 7, 2, 5), torch.float64, device)
    actual = values_and_gradients(normalizing(soft_assign, 2, row_weights), inputs, grad)
    for value, true in zip(actual, values_and_gradients(with_torch, inputs, grad), strict=True):
        torch.testing.assert_close(value, true)


@pytest.mark.parametrize("function", ["soft_assign", "vlad_aggregate"])
@pytest.mark.parametrize("device", DEVICES)
def test_a_mean_far_from_zero_does_not_cancel(device, function):
    inputs = make((4, 6, 2, 8, 5), device=device)
    with torch.no_grad():
        inputs[1] += 3000
    op, reference = {
        "soft_assign": (soft_assign, soft_assign_reference),
        "vlad_aggregate": (vlad_aggregate, vlad_aggregate_reference),
    }[function]
    inputs = inputs[1:3] if function == "soft_assign" else inputs
    number = len(inputs)
    (weight, bias), row_weights = make_norm(inputs[number // 4], "statistics")
    inputs += [weight, bias]
    exact = normalizing(reference, number, row_weights.double())(*in_float64(inputs))
    actual = normalizing(op, number, row_weights)(*inputs)
    torch.testing.assert_close(actual.double(), exact, rtol=1e-3, atol=1e-3)
    grad = torch.rand_like(actual)
    values = values_and_gradients(normalizing(op, number, row_weights), inputs, grad)
    definition = normalizing(reference, number, row_weights.double())
    expected = values_and_gradients(definition, in_float64(inputs), grad)
    for value, true in zip(values, expected, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-2, atol=2e-3)


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("shape", [(2, 4, 2, 4), (1, 1, 1, 1)])
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device, shape, norm):
    inputs = make_inputs(shape, torch.float64, device)
    tensors, row_weights = make_norm_or_none(inputs[0], norm)
    for function in (soft_assign, soft_assign_by_cluster):
        function = maybe_normalizing(function, norm, row_weights)
        assert torch.autograd.gradcheck(function, [*inputs, *tensors])


def packed(assignment: Tensor, norm: str | None, grad: bool, layout: str) -> list[Tensor | None]:
    """Returns norm (4, G*K) and row weights (B*T,) as the raw ops take them."""
    if norm is None:
        return [None, None]
    dtype = torch.promote_types(assignment.dtype, torch.float32)
    values = torch.rand(4, assignment[0, 0].numel(), dtype=dtype, device=assignment.device) + 0.5
    weights = torch.full((6, 2), 1 / 6, dtype=dtype, device=assignment.device)[:, 0]
    values = with_layout(values, layout).requires_grad_(grad)
    weights = weights.contiguous() if layout == "contiguous" else weights
    return [values, weights if norm == "statistics" else None]


@pytest.mark.parametrize(
    ("grad", "norm", "layout"),
    half([False, True], [None, *NORMS], ["contiguous", "permuted"]),
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device, grad, norm, layout):
    inputs = make_inputs((2, 3, 2, 4), device=device, grad=grad, layout=layout)
    arguments = (*inputs, *packed(inputs[0], norm, grad, layout))
    for by_cluster in (False, True):
        torch.library.opcheck(torch.ops.pyseg.soft_assign.default, (*arguments, by_cluster))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_of_the_backward(device, norm, dtype):
    inputs = make_inputs((2, 3, 2, 4), dtype, device, grad=False, layout="permuted")
    grad = with_layout(torch.rand(2, 3, 2, 4, device=device).to(dtype), "permuted")
    arguments = (grad, *inputs, *packed(inputs[0], norm, False, "contiguous"))
    torch.library.opcheck(torch.ops.pyseg.soft_assign_backward.default, arguments)


@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_of_moments(device, dtype, weighted, layout):
    x = with_layout(torch.rand(6, 5, device=device).to(dtype), layout)
    weights = torch.full((6,), 1 / 6, device=device)
    weights = weights.to(torch.promote_types(dtype, torch.float32))
    torch.library.opcheck(torch.ops.pyseg.moments.default, (x, weights if weighted else None))


@ignore_deprecations_of_torch
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_breaks_for_changing_sizes(device):
    torch._dynamo.reset()

    def step(row_weights: Tensor, *inputs: Tensor) -> Tensor:
        weights = normalizing(soft_assign_by_cluster, 2, row_weights)(*inputs)
        assert weights.stride(2) == 1  # while it is traced
        return weights

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in [(2, 5, 3, 6), (3, 9, 4, 7)]:
            inputs = make_inputs(shape, device=device)
            tensors, row_weights = make_norm(inputs[0], "statistics")
            inputs += tensors
            grad = torch.rand(shape, device=device)
            actual, expected = (
                values_and_gradients(functools.partial(function, row_weights), inputs, grad)
                for function in (compiled, step)
            )
            for value, true in zip(actual, expected, strict=True):
                torch.testing.assert_close(value, true, rtol=1e-6, atol=1e-6)


class Layer(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return normalizing(soft_assign, 2, None)(*inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_export_keeps_the_op(device):
    inputs = make_inputs((2, 3, 2, 4), device=device, grad=False)
    inputs += make_norm(inputs[0], grad=False)[0]
    program = torch.export.export(Layer(), tuple(inputs))
    assert "pyseg.soft_assign.default" in [str(node.target) for node in program.graph.nodes]
    assert torch.equal(program.module()(*inputs), Layer()(*inputs))


@pytest.mark.parametrize("kernels", [True, False], ids=["op", "reference"])
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_norm_in_float32(device, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
        monkeypatch.setattr(_ext, "HAS_CUDA_OPS", False)
    inputs = make_inputs((2, 5, 2, 6), device=device)
    tensors, _ = make_norm(inputs[0])
    function = normalizing(soft_assign, 2, None)
    with torch.autocast(device, torch.bfloat16):
        output = function(*inputs, *tensors)
    gradients = torch.autograd.grad(output.sum(), [*inputs, *tensors])
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, function(*(t.bfloat16() for t in inputs), *tensors))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_of_the_raw_op(device):
    inputs = make_inputs((2, 3, 2, 4), device=device, grad=False)
    norm = packed(inputs[0], "statistics", False, "contiguous")
    with torch.autocast(device, torch.bfloat16):
        assert torch.ops.pyseg.soft_assign(*inputs, *norm).dtype == torch.bfloat16


@pytest.mark.parametrize("norm", [None, "statistics"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_same_input_same_bits(device, dtype, norm, restore_threads):
    inputs = make_inputs((3, 230, 2, 20), dtype, device)
    tensors, row_weights = make_norm_or_none(inputs[0], norm)
    inputs += tensors
    function = maybe_normalizing(soft_assign, norm, row_weights)
    grad = make_grad((3, 230, 2, 20), dtype, device)
    first = values_and_gradients(function, inputs, grad)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        again = values_and_gradients(function, inputs, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@needs_cpu_ops
def test_double_backward_is_refused():
    inputs = make_inputs((2, 3, 2, 4))
    output = soft_assign(*inputs)
    (gradient,) = torch.autograd.grad(output.square().sum(), inputs[0], create_graph=True)
    with pytest.raises(RuntimeError, match="soft_assign cannot be differentiated twice: use pyse"):
        gradient.sum().backward()


@pytest.mark.parametrize("norm", [None, *NORMS])
def test_falls_back_to_the_reference(norm, monkeypatch):
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    inputs = make_inputs((2, 3, 2, 4))
    tensors, row_weights = make_norm_or_none(inputs[0], norm)
    inputs += tensors
    actual, expected = (
        values_and_gradients(
            maybe_normalizing(function, norm, row_weights), inputs, torch.ones(2, 3, 2, 4)
        )
        for function in (soft_assign, soft_assign_reference)
    )
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


MATRICES = {
    "one": (1, 1),
    "odd": (7, 19),
    "wide": (40, 900),
    "tall": (3000, 5),
    "no row": (0, 3),
    "no column": (4, 0),
}


def make_matrix(shape: tuple[int, int], offset: float = 0.0) -> tuple[Tensor, Tensor]:
    """Returns x and row weights, every third 0, in float64."""
    random = torch.Generator().manual_seed(0)
    x = torch.randn(shape, generator=random, dtype=torch.float64) + offset
    weights = torch.rand(shape[0], generator=random, dtype=torch.float64) + 0.5
    weights[1::3] = 0
    return x, weights / weights.sum().clamp_min(1e-12)


@pytest.mark.parametrize("offset", [0.0, 100.0])
@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("layout", ["contiguous", "permuted", "sliced"])
@pytest.mark.parametrize("shape", MATRICES.values(), ids=MATRICES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_moments_are_those_of_the_reference(device, dtype, shape, layout, weighted, offset):
    x, weights = make_matrix(shape, offset)
    x = with_layout(x.to(device, dtype), layout)
    sums = torch.promote_types(dtype, torch.float32)
    weights = weights.to(device, sums) if weighted else None
    exact = moments_reference(x.double(), None if weights is None else weights.double())
    actual = moments(x, weights)
    digit = torch.finfo(sums).eps
    for value, true, scale in zip(actual, exact, (1 + abs(offset), 1.0), strict=True):
        assert value.dtype == sums
        assert value.shape == shape[1:]
        # The weights sum to 1 only up to rounding.
        torch.testing.assert_close(value.double(), true, rtol=8 * digit, atol=16 * scale * digit)


@pytest.mark.parametrize("device", DEVICES)
def test_moments_do_not_read_rows_of_weight_0(device):
    x, weights = make_matrix((50, 7))
    x, weights = x.float().to(device), weights.float().to(device)
    expected = moments(x, weights)
    x[weights == 0] = torch.nan
    x[1] = torch.inf
    for function in (moments, moments_reference):
        for value, true in zip(function(x, weights), expected, strict=True):
            torch.testing.assert_close(value, true)


@pytest.mark.parametrize("device", DEVICES)
def test_moments_without_any_weight_are_zero(device):
    x = torch.full((5, 3), torch.nan, device=device)
    for function in (moments, moments_reference):
        for value in function(x, torch.zeros(5, device=device)):
            assert torch.equal(value, torch.zeros(3, device=device))


@pytest.mark.parametrize("device", DEVICES)
def test_moments_have_gradients(device):
    """Also for weights whose sum is not 1, and for rows of weight 0."""
    x, weights = (torch.rand(*shape, dtype=torch.float64) for shape in ((4, 3), (4,)))
    weights[1] = 0
    inputs = [tensor.to(device).requires_grad_() for tensor in (x, weights)]
    assert torch.autograd.gradcheck(moments, inputs[:1])
    results = []
    for function in (moments, moments_reference):
        total = torch.stack(function(*inputs)).square().sum()
        first = torch.autograd.grad(total, inputs, create_graph=True)
        second = torch.autograd.grad(first[0].square().sum(), inputs)
        results.append((*first, *second))
    torch.testing.assert_close(*results)


@pytest.mark.parametrize("weighted", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_moments_same_input_same_bits(device, weighted, restore_threads):
    x, weights = make_matrix((700, 33))
    x, weights = x.float().to(device), weights.float().to(device) if weighted else None
    first = moments(x, weights)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        again = moments(x, weights)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


NORM = AssignmentNorm(*(torch.ones(8) for _ in range(4)))
BAD_NORMS = {
    "tuple": (tuple(NORM), TypeError, r"norm: expected an AssignmentNorm, found tuple"),
    "mean: list": (
        NORM._replace(mean=[0.0]),
        TypeError,
        r"norm.mean: expected a Tensor, found list",
    ),
    "variance: int": (
        NORM._replace(variance=torch.ones(8, dtype=torch.int64)),
        TypeError,
        r"norm.variance: expected floating, found torch.int64",
    ),
    "weight: device": (
        NORM._replace(weight=torch.ones(8, device="meta")),
        ValueError,
        r"norm.weight: expected the device of assignment, cpu, found meta",
    ),
    "bias: shape": (
        NORM._replace(bias=torch.ones(4)),
        ValueError,
        r"norm.bias: expected shape \(G\*K,\) or \(G, K\) = \(2, 4\) to fit assignment "
        r"\(2, 3, 2, 4\), found \(4,\)",
    ),
    "eps": (
        NORM._replace(eps=-1.0),
        ValueError,
        r"norm.eps: expected a finite number of .* 0, found -1.0",
    ),
    "row_weights: shape": (
        NORM._replace(row_weights=torch.ones(5)),
        ValueError,
        r"norm.row_weights: expected shape \(B, T\) or \(B\*T,\) = \(2, 3\) to fit assignment "
        r"\(2, 3, 2, 4\), found \(5,\)",
    ),
    "row_weights: bool": (
        NORM._replace(row_weights=torch.ones(2, 3, dtype=torch.bool)),
        TypeError,
        r"norm.row_weights: expected floating, found torch.bool",
    ),
}


@pytest.mark.parametrize("kernels", [True, False], ids=["op", "without kernels"])
@pytest.mark.parametrize(
    "function", [soft_assign, soft_assign_reference, vlad_aggregate, vlad_aggregate_reference]
)
@pytest.mark.parametrize(("norm", "error", "text"), BAD_NORMS.values(), ids=BAD_NORMS)
def test_error_texts_of_norm(norm, error, text, function, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    inputs = make(grad=False)
    inputs = inputs[1:3] if "soft" in function.__name__ else inputs
    with pytest.raises(error, match=text):
        function(*inputs, norm=norm)


BAD_ARGUMENTS = {
    "assignment: list": (
        [1.0],
        torch.ones(1),
        TypeError,
        r"assignment: expected a Tensor, found list",
    ),
    "assignment: dimensions": (
        torch.ones(2, 3, 4),
        torch.ones(2, 3, 2),
        ValueError,
        r"assignment: expected shape \(B, T, G, K\), found \(2, 3, 4\)",
    ),
    "assignment: int": (
        torch.ones(2, 3, 2, 4, dtype=torch.int64),
        torch.ones(2, 3, 2),
        TypeError,
        r"assignment: expected float32, float64, float16 or bfloat16, found torch.int64",
    ),
    "attention: dtype": (
        torch.ones(2, 3, 2, 4),
        torch.ones(2, 3, 2).double(),
        TypeError,
        r"attention: expected torch.float32 to fit assignment, found torch.float64",
    ),
    "attention: shape": (
        torch.ones(2, 3, 2, 4),
        torch.ones(2, 3, 1),
        ValueError,
        r"attention: expected shape \(B, T, G\) = \(2, 3, 2\) to fit assignment \(2, 3, 2, 4\), "
        r"found \(2, 3, 1\)",
    ),
    "no cluster": (
        torch.ones(2, 3, 2, 0),
        torch.ones(2, 3, 2),
        ValueError,
        r"assignment: expected at least 1 cluster, found shape \(2, 3, 2, 0\)",
    ),
}


@pytest.mark.parametrize("function", [soft_assign, soft_assign_reference])
@pytest.mark.parametrize(
    ("assignment", "attention", "error", "text"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS
)
def test_error_texts(assignment, attention, error, text, function):
    with pytest.raises(error, match=text):
        function(assignment, attention)


BAD_MATRICES = {
    "x: list": ([1.0], None, TypeError, r"x: expected a Tensor, found list"),
    "x: dimensions": (torch.ones(3), None, ValueError, r"x: expected shape \(R, C\), found \(3,\)"),
    "x: int": (
        torch.ones(2, 3, dtype=torch.int64),
        None,
        TypeError,
        r"x: expected float32, float64, float16 or bfloat16, found torch.int64",
    ),
    "row_weights: list": (
        torch.ones(2, 3),
        [0.5, 0.5],
        TypeError,
        r"row_weights: expected a Tensor, found list",
    ),
    "row_weights: bool": (
        torch.ones(2, 3),
        torch.ones(2, dtype=torch.bool),
        TypeError,
        r"row_weights: expected floating, found torch.bool",
    ),
    "row_weights: shape": (
        torch.ones(2, 3),
        torch.ones(3),
        ValueError,
        r"row_weights: expected shape \(R,\) = \(2,\) to fit x \(2, 3\), found \(3,\)",
    ),
}


@pytest.mark.parametrize("function", [moments, moments_reference])
@pytest.mark.parametrize(
    ("x", "row_weights", "error", "text"), BAD_MATRICES.values(), ids=BAD_MATRICES
)
def test_error_texts_of_moments(x, row_weights, error, text, function):
    with pytest.raises(error, match=text):
        function(x, row_weights)


@needs_cpu_ops
def test_raw_ops_check_what_they_read():
    ops = torch.ops.pyseg
    z, a = torch.ones(2, 3, 2, 4), torch.ones(2, 3, 2)
    with pytest.raises(
        RuntimeError, match=r"assignment: expected shape \(B, T, G, K\), found \(2,\)"
    ):
        ops.soft_assign(z[:, 0, 0, 0], a)
    with pytest.raises(
        RuntimeError, match=r"attention: expected shape \(B, T, G\) = \(2, 3, 2\), found"
    ):
        ops.soft_assign(z, a[:1])
    with pytest.raises(RuntimeError, match=r"attention: expected Float, found Double"):
        ops.soft_assign(z, a.double())
    with pytest.raises(
        RuntimeError, match=r"norm: expected shape \(4, G\*K\) = \(4, 8\), found \(1,\)"
    ):
        ops.soft_assign(z, a, torch.ones(1))
    with pytest.raises(
        RuntimeError, match=r"row_weights: expected shape \(B\*T,\) = \(6,\), found \(2,\)"
    ):
        ops.soft_assign(z, a, torch.ones(4, 8), torch.ones(2))
    with pytest.raises(
        RuntimeError, match=r"grad: expected shape \(B, T, G, K\) = .*, found \(1, 3, 2, 4\)"
    ):
        ops.soft_assign_backward(z[:1], z, a, None, None)
    with pytest.raises(RuntimeError, match=r"grad: expected Float, found Double"):
        ops.soft_assign_backward(z.double(), z, a, None, None)
    with pytest.raises(RuntimeError, match=r"expected float32, .* or bfloat16, found Long"):
        ops.soft_assign(z.long(), a.long())
    with pytest.raises(RuntimeError, match=r"x: expected shape \(R, C\), found \(2, 3, 2, 4\)"):
        ops.moments(z)
    with pytest.raises(
        RuntimeError, match=r"row_weights: expected shape \(R,\) = \(3,\), found \(2,\)"
    ):
        ops.moments(torch.ones(3, 2), torch.ones(2))
    with pytest.raises(RuntimeError, match=r"row_weights: expected Float, found Double"):
        ops.moments(torch.ones(3, 2), torch.ones(3).double())
