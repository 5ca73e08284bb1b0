"""pyseg.ops.vlad_aggregate against its definition, and through every layer of PyTorch."""

from __future__ import annotations

import functools

import pytest
import torch
from torch import Tensor

from pyseg import _ext
from pyseg.ops import vlad_aggregate, vlad_aggregate_reference
from tests.ops.conftest import (
    DEVICES,
    DTYPES,
    LAYOUTS,
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

# B, T, G, F, K
SHAPES = {
    "one": (1, 1, 1, 1, 1),
    "one frame": (3, 1, 4, 8, 5),
    "segment": (2, 5, 8, 288, 112),
    "odd": (3, 7, 3, 17, 13),
    "one cluster": (2, 5, 2, 6, 1),
    "one feature": (2, 5, 2, 1, 6),
    "video": (2, 300, 2, 24, 40),
    "audio": (2, 30, 4, 64, 56),
    "K=136": (1, 20, 8, 33, 136),
    "netvlad": (1, 70, 1, 1152, 64),
    "many videos": (80, 3, 1, 9, 7),
    "wide": (1, 2, 2, 70, 257),
    "no video": (0, 5, 2, 6, 3),
    "no frame": (2, 0, 2, 6, 3),
    "no feature": (2, 3, 2, 0, 3),
}
# For a normalised assignment: one slice of rows and several, videos alone and in blocks.
NORM_SHAPES = {
    **{name: SHAPES[name] for name in ("segment", "odd", "one cluster", "video", "K=136")},
    "blocks of videos": (80, 3, 2, 9, 40),
    **{name: SHAPES[name] for name in ("no video", "no frame")},
}


def plain(features: Tensor, assignment: Tensor, attention: Tensor, centers: Tensor) -> Tensor:
    """Computes the plain formula, in the dtype of the arguments throughout."""
    weights = assignment.softmax(-1) * attention.unsqueeze(-1)
    weights, rows = weights.flatten(1, 2), features.flatten(1, 2)
    vlad = rows.mT @ weights - centers * weights.sum(1, keepdim=True)
    return vlad * vlad.square().sum(1, keepdim=True).clamp_min(1e-12).rsqrt()


def output_gradient(shape: tuple[int, ...], dtype: torch.dtype, device: str) -> Tensor:
    random = torch.Generator().manual_seed(1)
    grad = torch.randn(shape[0], shape[3], shape[4], generator=random, dtype=torch.float64)
    return grad.to(device, dtype)


NAMES = ["output", "features", "assignment", "attention", "centers"]


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_error_is_at_most_twice_that_of_plain_pytorch(device, dtype, shape, layout):
    inputs = make(shape, dtype, device, layout=layout)
    grad = output_gradient(shape, dtype, device)
    exact = values_and_gradients(vlad_aggregate_reference, in_float64(inputs), grad)
    baseline = values_and_gradients(plain, inputs, grad)
    actual = values_and_gradients(vlad_aggregate, inputs, grad)
    assert_error_is_at_most_twice(NAMES, actual, baseline, exact)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("shape", NORM_SHAPES.values(), ids=NORM_SHAPES)
@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_error_with_norm_is_at_most_twice_that_of_plain_pytorch(device, dtype, shape, norm):
    inputs = make(shape, dtype, device)
    tensors, row_weights = make_norm(inputs[1], norm)
    inputs += tensors
    grad = output_gradient(shape, dtype, device)
    exact_weights = None if row_weights is None else row_weights.double()
    definition = normalizing(vlad_aggregate_reference, 4, exact_weights)

    def normalized_plain(features: Tensor, assignment: Tensor, *others: Tensor) -> Tensor:
        scores = normalize_plainly(assignment, others[2:], row_weights)
        return plain(features, scores, *others[:2])

    exact = values_and_gradients(definition, in_float64(inputs), grad)
    baseline = values_and_gradients(normalized_plain, inputs, grad)
    actual = values_and_gradients(normalizing(vlad_aggregate, 4, row_weights), inputs, grad)
    names = NAMES + (["mean", "variance"] if row_weights is None else []) + ["weight", "bias"]
    assert_error_is_at_most_twice(names, actual, baseline, exact)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("layout", ["contiguous", "permuted"])
@pytest.mark.parametrize("shape", NORM_SHAPES.values(), ids=NORM_SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_float64_with_norm_agrees_with_the_reference(device, shape, layout, norm):
    inputs = make(shape, torch.float64, device, layout=layout)
    tensors, row_weights = make_norm(inputs[1], norm)
    inputs += tensors
    grad = output_gradient(shape, torch.float64, device)
    actual, expected = (
        values_and_gradients(normalizing(function, 4, row_weights), inputs, grad)
        for function in (vlad_aggregate, vlad_aggregate_reference)
    )
    for value, true in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
@pytest.mark.parametrize("device", DEVICES)
def test_float64_agrees_with_the_reference(device, shape, layout):
    inputs = make(shape, torch.float64, device, layout=layout)
    grad = output_gradient(shape, torch.float64, device)
    actual = values_and_gradients(vlad_aggregate, inputs, grad)
    expected = values_and_gradients(vlad_aggregate_reference, inputs, grad)
    for value, true in zip(actual, expected, strict=True):
        torch.testing.assert_close(value, true, rtol=1e-11, atol=1e-13)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_is_netvlad_with_one_group_and_attention_of_ones(device, dtype):
    # Written as NetVLAD is: the residual of every frame to every centre, weighted and summed.
    features, assignment, _, centers = make((2, 9, 1, 12, 5), dtype, device)
    weights = assignment[:, :, 0].softmax(-1)  # (B, T, K)
    residuals = features[:, :, 0, :, None] - centers  # (B, T, F, K)
    expected = torch.nn.functional.normalize((weights.unsqueeze(2) * residuals).sum(1), dim=1)
    ones = torch.ones(2, 9, 1, dtype=dtype, device=device)
    torch.testing.assert_close(vlad_aggregate(features, assignment, ones, centers), expected)


def test_reference_and_op_flatten_alike():
    # One frame, assigned to cluster 2 only: column 2, index f*K + 2, is the normalised residual.
    features = torch.tensor([3.0, 4.0]).reshape(1, 1, 1, 2)
    assignment = torch.full((1, 1, 1, 3), -1e4)
    assignment[..., 2] = 0
    attention, centers = torch.ones(1, 1, 1), torch.zeros(2, 3)
    for function in (vlad_aggregate, vlad_aggregate_reference):
        flat = function(features, assignment, attention, centers).flatten(1)
        torch.testing.assert_close(flat, torch.tensor([[0.0, 0.0, 0.6, 0.0, 0.0, 0.8]]))


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_video_without_attended_frames_gives_zero_and_finite_gradients(device, dtype):
    inputs = make((3, 5, 2, 16, 6), dtype, device)
    with torch.no_grad():
        inputs[2][1] = 0
    grad = torch.ones(3, 16, 6, device=device, dtype=dtype)
    output, *gradients = values_and_gradients(vlad_aggregate, inputs, grad)
    assert (output[1] == 0).all()
    for name, gradient in zip(NAMES[1:], gradients, strict=True):
        assert gradient.isfinite().all(), name
    assert (gradients[0][1] == 0).all()
    assert (gradients[1][1] == 0).all()
    if dtype in (torch.float32, torch.float64):
        exact = values_and_gradients(vlad_aggregate_reference, in_float64(inputs), grad)
        torch.testing.assert_close(gradients[2].double(), exact[3], rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize("device", DEVICES)
def test_zero_column_gives_zero_and_finite_gradients(device):
    # Every frame lies on the centre of cluster 1: its residuals are 0, its norm is clamped.
    features = torch.ones(1, 4, 1, 3, device=device, requires_grad=True)
    _, assignment, attention, _ = make((1, 4, 1, 3, 2), device=device)
    centers = torch.tensor([[0.0, 1.0]] * 3, device=device, requires_grad=True)
    inputs = [features, assignment, attention, centers]
    grad = torch.rand(1, 3, 2, device=device)
    actual = values_and_gradients(vlad_aggregate, inputs, grad)
    expected = values_and_gradients(vlad_aggregate_reference, in_float64(inputs), grad)
    assert actual[0][0, :, 1].abs().max() < 1.0  # not scaled to length 1
    for name, value, true in zip(NAMES, actual, expected, strict=True):
        assert value.isfinite().all(), name
        torch.testing.assert_close(value.double(), true, rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("scale", [1e4, -1e4])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_extreme_assignments(device, dtype, scale):
    inputs = make((2, 6, 2, 8, 5), dtype, device)
    with torch.no_grad():
        inputs[1].copy_(inputs[1].sign() * scale)
    grad = torch.ones(2, 8, 5, device=device, dtype=dtype)
    actual = values_and_gradients(vlad_aggregate, inputs, grad)
    exact = values_and_gradients(vlad_aggregate_reference, in_float64(inputs), grad)
    tolerance = {torch.bfloat16: 0.05, torch.float16: 0.01}.get(dtype, 1e-5)
    for name, value, true in zip(NAMES, actual, exact, strict=True):
        assert value.isfinite().all(), name
        assert (value.double() - true).abs().max() <= tolerance * true.abs().max() + 1e-30, name


@pytest.mark.parametrize("device", DEVICES)
def test_minus_infinity_excludes_a_cluster(device):
    inputs = make((2, 6, 2, 8, 5), device=device)
    with torch.no_grad():
        inputs[1][..., 3] = -torch.inf
    grad = torch.ones(2, 8, 5, device=device)
    actual = values_and_gradients(vlad_aggregate, inputs, grad)
    exact = values_and_gradients(vlad_aggregate_reference, in_float64(inputs), grad)
    for value, true in zip(actual, exact, strict=True):
        torch.testing.assert_close(value.double(), true, rtol=1e-4, atol=1e-5)


@pytest.mark.parametrize("device", DEVICES)
def test_nan_propagates(device):
    inputs = make((2, 3, 1, 4, 3), device=device, grad=False)
    inputs[1][0, 1, 0, 2] = torch.nan
    output = vlad_aggregate(*inputs)
    assert output[0].isnan().all()
    assert output[1].isfinite().all()


@pytest.mark.parametrize("function", [vlad_aggregate, vlad_aggregate_reference])
def test_normalization_is_that_of_tensorflow(function):
    # x * rsqrt(max(sum x^2, eps)) differs from x / max(|x|, eps) where the norm is small.
    features = torch.full((1, 1, 1, 4), 1e-7)
    output = function(features, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1), torch.zeros(4, 1))
    torch.testing.assert_close(output, torch.full((1, 4, 1), 1e-7 / 1e-6))
    output = function(
        features, torch.zeros(1, 1, 1, 1), torch.ones(1, 1, 1), torch.zeros(4, 1), eps=1e-20
    )
    torch.testing.assert_close(output, torch.full((1, 4, 1), 0.5))


@pytest.mark.parametrize("eps", [1e-12, 100.0], ids=["unit length", "clamped"])
@pytest.mark.parametrize("shape", [(2, 3, 2, 5, 4), (1, 1, 1, 1, 1), (2, 2, 1, 1, 3)])
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device, shape, eps):
    inputs = make(shape, torch.float64, device)
    assert torch.autograd.gradcheck(lambda *args: vlad_aggregate(*args, eps=eps), inputs)


@pytest.mark.parametrize("norm", NORMS)
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck_with_norm(device, norm):
    # With statistics this is the total derivative: the checked function recomputes them.
    inputs = make((2, 4, 2, 3, 4), torch.float64, device)
    tensors, row_weights = make_norm(inputs[1], norm)
    function = normalizing(vlad_aggregate, 4, row_weights)
    assert torch.autograd.gradcheck(function, [*inputs, *tensors])


@pytest.mark.parametrize("wanted", range(4))
@pytest.mark.parametrize("device", DEVICES)
def test_gradient_of_one_argument_alone(device, wanted):
    everything = make(device=device)
    grad = torch.rand(2, 5, 4, device=device)
    expected = torch.autograd.grad(vlad_aggregate(*everything), everything, grad)
    inputs = [t.detach().requires_grad_(i == wanted) for i, t in enumerate(everything)]
    (actual,) = torch.autograd.grad(vlad_aggregate(*inputs), inputs[wanted], grad)
    assert torch.equal(actual, expected[wanted])


@pytest.mark.parametrize(
    ("dtype", "grad", "layout"), half(DTYPES, [False, True], ["contiguous", "permuted"]), ids=str
)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device, dtype, grad, layout):
    inputs = make(dtype=dtype, device=device, grad=grad, layout=layout)
    torch.library.opcheck(torch.ops.pyseg.vlad_aggregate.default, (*inputs, None, None, 1e-12))


def packed_norm(assignment: Tensor, norm: str, layout: str, grad: bool) -> list[Tensor | None]:
    """Returns norm (4, G*K) and row weights (B*T,) as the raw op takes them."""
    dtype = torch.promote_types(assignment.dtype, torch.float32)
    values = torch.rand(4, assignment[0, 0].numel(), dtype=dtype, device=assignment.device) + 0.5
    values = with_layout(values, layout).requires_grad_(grad)
    weights = torch.full((6, 2), 1 / 6, dtype=dtype, device=assignment.device)[:, 0]
    weights = weights.contiguous() if layout == "contiguous" else weights
    return [values, weights if norm == "statistics" else None]


@pytest.mark.parametrize(
    ("grad", "norm", "layout"), half([False, True], NORMS, ["contiguous", "permuted"]), ids=str
)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_with_norm(device, grad, norm, layout):
    inputs = make(device=device, grad=grad, layout=layout)
    packed = packed_norm(inputs[1], norm, layout, grad)
    torch.library.opcheck(torch.ops.pyseg.vlad_aggregate.default, (*inputs, *packed, 1e-12))


@pytest.mark.parametrize(
    ("needs_features_grad", "norm", "layout"),
    half([False, True], [None, *NORMS], ["contiguous", "permuted"]),
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck_of_the_backward(device, needs_features_grad, norm, layout):
    inputs = make(device=device, grad=False, layout=layout)
    packed = packed_norm(inputs[1], norm, layout, False) if norm else [None, None]
    saved = torch.ops.pyseg.vlad_aggregate(*inputs, *packed)
    grad = with_layout(torch.rand(2, 5, 4, device=device), layout)
    arguments = (grad, *inputs, *packed, *saved, 1e-12, needs_features_grad)
    torch.library.opcheck(torch.ops.pyseg.vlad_aggregate_backward.default, arguments)


@ignore_deprecations_of_torch
@pytest.mark.parametrize(("norm", "backend"), [(None, "inductor"), ("statistics", "aot_eager")])
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_without_breaks_for_changing_sizes(device, norm, backend):
    torch._dynamo.reset()

    def step(row_weights: Tensor | None, *inputs: Tensor) -> Tensor:
        if row_weights is None:
            return vlad_aggregate(*inputs)
        return normalizing(vlad_aggregate, 4, row_weights)(*inputs)

    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend=backend)
    with torch._dynamo.config.patch(error_on_recompile=True):
        for shape in [(2, 5, 3, 8, 6), (3, 9, 4, 12, 7)]:
            inputs = make(shape, device=device)
            tensors, row_weights = make_norm(inputs[1], norm) if norm else ([], None)
            inputs += tensors
            grad = torch.rand(shape[0], shape[3], shape[4], device=device)
            actual, expected = (
                values_and_gradients(functools.partial(function, row_weights), inputs, grad)
                for function in (compiled, step)
            )
            for value, true in zip(actual, expected, strict=True):
                torch.testing.assert_close(value, true, rtol=1e-6, atol=1e-6)
                assert norm or torch.equal(value, true)


class Layer(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return vlad_aggregate(*inputs) * 2


class NormalizingLayer(torch.nn.Module):
    def forward(self, *inputs: Tensor) -> Tensor:
        return normalizing(vlad_aggregate, 4, None)(*inputs)


@pytest.mark.parametrize("device", DEVICES)
def test_export_keeps_the_op_and_the_batch_size_free(device):
    inputs = tuple(make(device=device, grad=False))
    batch, frames = torch.export.Dim("batch"), torch.export.Dim("frames")
    free = {0: batch, 1: frames}
    program = torch.export.export(Layer(), inputs, dynamic_shapes=((free, free, free, None),))
    targets = [str(node.target) for node in program.graph.nodes]
    assert "pyseg.vlad_aggregate.default" in targets
    larger = make((5, 7, 2, 5, 4), device=device, grad=False)
    assert torch.equal(program.module()(*larger), Layer()(*larger))


@needs_cpu_ops
def test_export_with_norm():
    inputs = make(grad=False)
    inputs += make_norm(inputs[1], grad=False)[0]
    program = torch.export.export(NormalizingLayer(), tuple(inputs))
    assert "pyseg.vlad_aggregate.default" in [str(node.target) for node in program.graph.nodes]
    assert torch.equal(program.module()(*inputs), NormalizingLayer()(*inputs))


def test_export_without_kernels_traces_the_reference(monkeypatch):
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    inputs = tuple(make(grad=False))
    program = torch.export.export(Layer(), inputs)
    assert not any("pyseg" in str(node.target) for node in program.graph.nodes)
    torch.testing.assert_close(program.module()(*inputs), Layer()(*inputs))


@pytest.mark.parametrize("kernels", [True, False], ids=["op", "reference"])
@pytest.mark.parametrize("dtype", [torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_computes_in_its_dtype(device, dtype, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
        monkeypatch.setattr(_ext, "HAS_CUDA_OPS", False)
    # As in a model: activations in autocast's dtype, the centres a float32 parameter.
    features, assignment, attention, centers = make((2, 5, 2, 8, 6), device=device)
    mixed = [features.to(dtype), assignment.to(dtype), attention.to(dtype), centers]
    with torch.autocast(device, dtype):
        output = vlad_aggregate(*mixed)
        gradients = torch.autograd.grad(
            output.sum(), [features, assignment, attention, centers], retain_graph=True
        )
    assert output.dtype == dtype
    assert torch.equal(output, vlad_aggregate(*(tensor.to(dtype) for tensor in mixed)))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("device", DEVICES)
def test_autocast_leaves_norm_in_float32(device):
    inputs = make((2, 5, 2, 8, 6), device=device)
    tensors, _ = make_norm(inputs[1])
    function = normalizing(vlad_aggregate, 4, None)
    with torch.autocast(device, torch.bfloat16):
        output = function(*inputs, *tensors)
    gradients = torch.autograd.grad(output.sum(), tensors)
    assert output.dtype == torch.bfloat16
    assert torch.equal(output, function(*(t.bfloat16() for t in inputs), *tensors))
    assert all(gradient.dtype == torch.float32 for gradient in gradients)


@pytest.mark.parametrize("norm", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_of_the_raw_op(device, norm):
    inputs = make(device=device, grad=False)
    packed = packed_norm(inputs[1], "statistics", "contiguous", False) if norm else []
    with torch.autocast(device, torch.bfloat16):
        output, mass, square_norm = torch.ops.pyseg.vlad_aggregate(*inputs, *packed)
    assert output.dtype == torch.bfloat16
    assert mass.dtype == square_norm.dtype == torch.float32


@ignore_deprecations_of_torch
@pytest.mark.parametrize("device", DEVICES)
def test_autocast_compiles_and_leaves_float64_alone(device):
    torch._dynamo.reset()
    inputs = make(device=device, grad=False)

    def step(*args: Tensor) -> Tensor:
        with torch.autocast(device, torch.bfloat16):
            return vlad_aggregate(*args)

    compiled = torch.compile(step, fullgraph=True, backend="aot_eager")(*inputs)
    assert compiled.dtype == torch.bfloat16
    assert torch.equal(compiled, step(*inputs))
    assert step(*(tensor.double() for tensor in inputs)).dtype == torch.float64


@needs_cpu_ops
@pytest.mark.parametrize("shape", SHAPES.values(), ids=SHAPES)
def test_any_shape_is_divided_among_threads(shape, restore_threads):
    inputs = make(shape)
    grad = output_gradient(shape, torch.float32, "cpu")
    results = []
    for number in (1, 2):
        torch.set_num_threads(number)
        results.append(values_and_gradients(vlad_aggregate, inputs, grad))
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


# Several videos; and one, whose rows are divided among the threads.
@pytest.mark.parametrize("shape", [(5, 40, 4, 33, 20), (1, 300, 4, 33, 20)])
@pytest.mark.parametrize("norm", [None, "statistics"])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_same_input_same_bits(device, dtype, norm, shape, restore_threads):
    inputs = make(shape, dtype, device)
    function = vlad_aggregate
    if norm:
        tensors, row_weights = make_norm(inputs[1], norm)
        inputs += tensors
        function = normalizing(vlad_aggregate, 4, row_weights)
    grad = torch.rand(shape[0], 33, 20, device=device).to(dtype)
    first = values_and_gradients(function, inputs, grad)
    for number in (1, 2, 3):
        torch.set_num_threads(number)
        again = values_and_gradients(function, inputs, grad)
        assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))


@pytest.mark.parametrize("frames", [5, 350])
@pytest.mark.parametrize("device", DEVICES)
def test_a_video_does_not_depend_on_its_batch(device, frames):
    whole = make((6, frames, 2, 33, 20), device=device)
    alone = [tensor[2:3].detach().requires_grad_() for tensor in whole[:3]] + whole[3:]
    grad = torch.rand(6, 33, 20, device=device)
    expected = values_and_gradients(vlad_aggregate, whole, grad)[:4]
    actual = values_and_gradients(vlad_aggregate, alone, grad[2:3])[:4]
    for value, true in zip(actual, expected, strict=True):
        assert torch.equal(value, true[2:3])


@needs_cpu_ops
def test_double_backward_is_refused():
    inputs = make()
    output = vlad_aggregate(*inputs)
    (gradient,) = torch.autograd.grad(output.sum(), inputs[0], create_graph=True)
    with pytest.raises(
        RuntimeError, match="vlad_aggregate cannot be differentiated twice: use pyse"
    ):
        gradient.sum().backward()


def test_reference_differentiates_twice():
    assert torch.autograd.gradgradcheck(
        vlad_aggregate_reference, make((1, 2, 1, 3, 2), torch.float64)
    )


def replaced(index: int, value: object) -> list[object]:
    inputs: list[object] = list(make(grad=False))
    inputs[index] = value
    return inputs


BAD_ARGUMENTS = {
    "features: list": (replaced(0, [1.0]), TypeError, r"features: expected a Tensor, found list"),
    "centers: None": (replaced(3, None), TypeError, r"centers: expected a Tensor, found NoneType"),
    "features: 3 dimensions": (
        replaced(0, torch.zeros(2, 3, 10)),
        ValueError,
        r"features: expected shape \(B, T, G, F\), found \(2, 3, 10\)",
    ),
    "attention: 4 dimensions": (
        replaced(2, torch.zeros(2, 3, 2, 1)),
        ValueError,
        r"attention: expected shape \(B, T, G\), found \(2, 3, 2, 1\)",
    ),
    "features: int": (
        replaced(0, torch.zeros(2, 3, 2, 5, dtype=torch.int64)),
        TypeError,
        r"features: expected float32, float64, float16 or bfloat16, found torch.int64",
    ),
    "centers: another dtype": (
        replaced(3, torch.zeros(5, 4, dtype=torch.float64)),
        TypeError,
        r"centers: expected torch.float32 to fit features, found torch.float64",
    ),
    "assignment: another device": (
        replaced(1, torch.zeros(2, 3, 2, 4, device="meta")),
        ValueError,
        r"assignment: expected the device of features, cpu, found meta",
    ),
    "assignment: other frames": (
        replaced(1, torch.zeros(2, 4, 2, 4)),
        ValueError,
        r"assignment: expected shape \(B, T, G, K\) = \(2, 3, 2, K\) to fit features "
        r"\(2, 3, 2, 5\), found \(2, 4, 2, 4\)",
    ),
    "attention: other groups": (
        replaced(2, torch.zeros(2, 3, 1)),
        ValueError,
        r"attention: expected shape \(B, T, G\) = \(2, 3, 2\) to fit features \(2, 3, 2, 5\), "
        r"found \(2, 3, 1\)",
    ),
    "centers: transposed": (
        replaced(3, torch.zeros(4, 5)),
        ValueError,
        r"centers: expected shape \(F, K\) = \(5, 4\) to fit features \(2, 3, 2, 5\), "
        r"found \(4, 5\)",
    ),
    "sparse": (
        replaced(0, torch.zeros(2, 3, 2, 5).to_sparse()),
        TypeError,
        r"features: expected a dense Tensor, found one of torch\.sparse_coo",
    ),
    "no cluster": (
        [*make(grad=False)[:1], torch.zeros(2, 3, 2, 0), torch.zeros(2, 3, 2), torch.zeros(5, 0)],
        ValueError,
        r"assignment: expected at least 1 cluster, found shape \(2, 3, 2, 0\)",
    ),
}


@pytest.mark.parametrize("kernels", [True, False], ids=["op", "without kernels"])
@pytest.mark.parametrize("function", [vlad_aggregate, vlad_aggregate_reference])
@pytest.mark.parametrize(("arguments", "error", "text"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_error_texts(arguments, error, text, function, kernels, monkeypatch):
    if not kernels:
        monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    with pytest.raises(error, match=text):
        function(*arguments)


@pytest.mark.parametrize("eps", [0.0, -1.0, 1e-40, float("inf"), float("nan")])
@pytest.mark.parametrize("function", [vlad_aggregate, vlad_aggregate_reference])
def test_error_text_of_eps(function, eps):
    with pytest.raises(
        ValueError, match=rf"eps: expected a finite number of at least 1.18e-38, found {eps}"
    ):
        function(*make(grad=False), eps=eps)


RAW_ARGUMENTS = {
    "features": (
        replaced(0, torch.zeros(2, 3)),
        r"features: expected shape \(B, T, G, F\), found \(2, 3\)",
    ),
    "assignment": (
        replaced(1, torch.zeros(2, 3, 1, 4)),
        r"assignment: expected shape \(B, T, G, K\) = \(2, 3, 2, 4\), found \(2, 3, 1, 4\)",
    ),
    "attention": (
        replaced(2, torch.zeros(1)),
        r"attention: expected shape \(B, T, G\) = \(2, 3, 2\), found \(1,\)",
    ),
    "centers": (
        replaced(3, torch.zeros(5, 4).double()),
        r"centers: expected Float, found Double",
    ),
}


@pytest.mark.parametrize(("arguments", "text"), RAW_ARGUMENTS.values(), ids=RAW_ARGUMENTS)
@needs_cpu_ops
def test_raw_op_checks_what_it_reads(arguments, text):
    with pytest.raises(RuntimeError, match=text):
        torch.ops.pyseg.vlad_aggregate(*arguments)


@needs_cpu_ops
def test_raw_op_refuses_integers_and_bad_eps():
    with pytest.raises(
        RuntimeError, match="expected float32, float64, float16 or bfloat16, found Long"
    ):
        torch.ops.pyseg.vlad_aggregate(*(t.long() for t in make(grad=False)))
    with pytest.raises(
        RuntimeError, match=r"eps: expected a finite number of at least .*, found 0"
    ):
        torch.ops.pyseg.vlad_aggregate(*make(grad=False), eps=0.0)


RAW_NORMS = {
    "norm: shape": (
        torch.ones(4, 2, 4),
        None,
        r"norm: expected shape \(4, G\*K\) = \(4, 8\), found \(4, 2, 4\)",
    ),
    "norm: dtype": (torch.ones(4, 8).double(), None, r"norm: expected Float, found Double"),
    "row_weights: alone": (None, torch.ones(6), r"row_weights: expected None without norm"),
    "row_weights: shape": (
        torch.ones(4, 8),
        torch.ones(2, 3),
        r"row_weights: expected shape \(B\*T,\) = \(6,\), found \(2, 3\)",
    ),
    "row_weights: dtype": (
        torch.ones(4, 8),
        torch.ones(6).bfloat16(),
        r"row_weights: expected Float, found BFloat16",
    ),
}


@pytest.mark.parametrize("backward", [False, True])
@pytest.mark.parametrize(("norm", "row_weights", "text"), RAW_NORMS.values(), ids=RAW_NORMS)
@needs_cpu_ops
def test_raw_op_checks_norm(norm, row_weights, text, backward):
    inputs = make(grad=False)
    op, arguments = torch.ops.pyseg.vlad_aggregate, [*inputs, norm, row_weights]
    if backward:
        arguments = [torch.rand(2, 5, 4), *arguments, *op(*inputs), 1e-12, True]
        op = torch.ops.pyseg.vlad_aggregate_backward
    with pytest.raises(RuntimeError, match=text):
        op(*arguments)


@pytest.mark.parametrize("index", range(4))
@needs_cpu_ops
def test_raw_backward_checks_what_it_reads(index):
    inputs = make(grad=False)
    saved = [torch.rand(2, 5, 4), *torch.ops.pyseg.vlad_aggregate(*inputs)]
    name = ["grad", "output", "mass", "square_norm"][index]
    saved[index] = saved[index][:1]
    with pytest.raises(RuntimeError, match=rf"{name}: expected shape \(B, .*found \(1, "):
        torch.ops.pyseg.vlad_aggregate_backward(
            saved[0], *inputs, None, None, *saved[1:], 1e-12, True
        )


@pytest.mark.parametrize("norm", [None, *NORMS])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
def test_falls_back_to_the_reference(dtype, norm, monkeypatch):
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    inputs = make(dtype=dtype)
    functions = [vlad_aggregate, vlad_aggregate_reference]
    if norm:
        tensors, row_weights = make_norm(inputs[1], norm)
        inputs += tensors
        functions = [normalizing(function, 4, row_weights) for function in functions]
    grad = torch.rand(2, 5, 4).to(dtype)
    actual, expected = (values_and_gradients(function, inputs, grad) for function in functions)
    assert all(torch.equal(a, b) for a, b in zip(actual, expected, strict=True))


def test_other_devices_use_the_reference():
    output = vlad_aggregate(*make(device="meta", grad=False))
    assert output.shape == (2, 5, 4)
    assert output.device.type == "meta"


def test_works_without_native_code(python):
    program = (
        "import torch, pyseg\n"
        "assert not pyseg._ext.HAS_CPU_OPS\n"
        "x, z, a, c = (torch.rand(s) for s in ((2, 3, 1, 4), (2, 3, 1, 5), (2, 3, 1), (4, 5)))\n"
        "y = torch.compile(pyseg.ops.vlad_aggregate, backend='eager', fullgraph=True)(x, z, a, c)\n"
        "assert torch.equal(y, pyseg.ops.vlad_aggregate_reference(x, z, a, c))\n"
    )
    done = python("-c", program, PYSEG_EXT="0", PYSEG_CUDA="auto")
    assert done.returncode == 0, done.stderr
