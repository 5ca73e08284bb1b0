"""rated_bce_with_logits against equations (1), (2), (3) and (6), row by row, and its reference."""

from __future__ import annotations

import math

import numpy as np
import pytest
import torch
from torch import Tensor
from torch.nn import functional

from pyseg import _ext
from pyseg.labels import LabelCorrelation
from pyseg.ops import correlated_targets, rated_bce_with_logits, rated_bce_with_logits_reference
from tests.ops.conftest import DEVICES, DTYPES, half, ignore_deprecations_of_torch, needs_cpu_ops

SHAPES = [(1, 1), (2, 5), (7, 16), (3, 257), (40, 1000), (80, 33), (2, 3862), (0, 5), (3, 0)]


def make_correlation(classes: int, seed: int = 0, relations: int = 3) -> LabelCorrelation:
    random = np.random.default_rng(seed)
    columns = [
        sorted(set(random.integers(0, classes, relations).tolist()) - {i}) for i in range(classes)
    ]
    sizes = np.array([len(row) for row in columns])
    flat = np.concatenate([np.array(row, np.int64) for row in columns] or [np.zeros(0, np.int64)])
    values = random.uniform(0.3, 1.0, len(flat)).astype(np.float32)
    offsets = np.concatenate(([0], np.cumsum(sizes))).astype(np.int64)
    return LabelCorrelation(*(torch.from_numpy(a) for a in (offsets, flat, values)))


def make(
    shape: tuple[int, int],
    dtype: torch.dtype = torch.float32,
    device: str = "cpu",
    *,
    scale: float = 3.0,
    most: int = 4,
    grad: bool = True,
) -> tuple[Tensor, ...]:
    """Returns logits and ratings: 0 to `most` per row, with scores 0, 1 and between."""
    batch, classes = shape
    random = np.random.default_rng(1)
    rows = [random.permutation(classes)[: random.integers(0, most + 1)] for _ in range(batch)]
    offsets = np.concatenate(([0], np.cumsum([len(row) for row in rows]))).astype(np.int64)
    rated = np.concatenate([*rows, np.zeros(0, np.int64)]).astype(np.int64)
    scores = random.choice([0.0, 1.0, 0.5, 0.25], len(rated)).astype(np.float32)
    generator = torch.Generator().manual_seed(0)
    logits = torch.randn(shape, generator=generator, dtype=torch.float64) * scale
    ratings = (torch.from_numpy(array).to(device) for array in (offsets, rated, scores))
    return logits.to(device, dtype).requires_grad_(grad), *ratings


def padded(ratings: list[Tensor], size: int) -> list[Tensor]:
    """Returns ratings of the given size: entries that would be errors fill the end."""
    offsets, classes, scores = ratings
    wrong = torch.tensor([-1, 1 << 40, 0], device=classes.device)
    fill = wrong.repeat(size)[: size - len(classes)].to(classes.dtype)
    return [
        offsets,
        torch.cat((classes, fill)),
        torch.cat((scores, scores.new_full((len(fill),), torch.nan))),
    ]


def targets_by_loops(
    offsets: Tensor,
    classes: Tensor,
    scores: Tensor,
    dense: Tensor,
    num_classes: int,
    absent_evidence: float = 0.0,
) -> tuple[Tensor, Tensor]:
    targets = torch.zeros(len(offsets) - 1, num_classes, dtype=torch.float64)
    rated = torch.zeros_like(targets, dtype=torch.bool)
    for b in range(len(offsets) - 1):
        pairs = list(zip(classes.tolist(), scores.tolist(), strict=True))
        pairs = pairs[offsets[b] : offsets[b + 1]]
        for i, score in pairs:
            targets[b] += (score + absent_evidence * (1 - score)) * dense[i].double()
        targets[b].clamp_(max=1.0)
        for i, score in pairs:
            targets[b, i], rated[b, i] = score, True
    return targets, rated


def by_loops(
    logits: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor,
    correlation: LabelCorrelation | None, m: float = 2.5, n: float = 0.1, a: float = 0.0,
) -> tuple[Tensor, Tensor]:  # fmt: skip
    """The definition in float64: loss, and gradient w (sigmoid(z) - y') / B."""
    z = logits.detach().double().cpu()
    columns = z.shape[1]
    dense = torch.zeros(columns, columns) if correlation is None else correlation.to("cpu").dense()
    y, rated = targets_by_loops(offsets.cpu(), classes.cpu(), scores.cpu(), dense, columns, a)
    w = torch.full_like(y, n).masked_fill(rated, m)
    batch = max(len(z), 1)
    loss = (w * (functional.softplus(z) - y * z)).sum() / batch
    return loss, w * (torch.sigmoid(z) - y) / batch


def own_and_gradient(function, arguments: tuple, **weights: float) -> tuple[Tensor, Tensor]:
    loss = function(*arguments, **weights)
    return loss, torch.autograd.grad(loss, arguments[0])[0]


@pytest.mark.parametrize(
    ("correlated", "absent_evidence"),
    [(False, 0.0), (True, 0.0), (True, 0.6)],
    ids=["alone", "correlated", "absent-evidence"],
)
@pytest.mark.parametrize("shape", SHAPES)
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_is_its_definition(device, dtype, shape, correlated, absent_evidence):
    arguments = make(shape, dtype, device)
    correlation = make_correlation(shape[1]).to(device) if correlated and shape[1] else None
    expected = by_loops(*arguments, correlation, a=absent_evidence)
    for function in (rated_bce_with_logits, rated_bce_with_logits_reference):
        loss, gradient = own_and_gradient(
            function, (*arguments, correlation), absent_evidence=absent_evidence
        )
        assert loss.dtype == (torch.float64 if dtype == torch.float64 else torch.float32)
        assert gradient.dtype == dtype
        single = 1e-12 if dtype == torch.float64 else 1e-6
        torch.testing.assert_close(loss.double().cpu(), expected[0], rtol=2 * single, atol=single)
        digit = max(torch.finfo(dtype).eps, single)
        largest = expected[1].abs().max().item() if expected[1].numel() else 0.0
        torch.testing.assert_close(
            gradient.double().cpu(),
            expected[1],
            rtol=2 * digit,
            atol=1e-7 * largest + (6e-8 if dtype == torch.float16 else 1e-9),
        )


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16, torch.float16], ids=str)
@pytest.mark.parametrize("scale", [1.0, 10.0, 60.0])
@pytest.mark.parametrize("device", DEVICES)
def test_error_is_at_most_twice_that_of_plain_pytorch(device, dtype, scale):
    arguments = make((64, 1000), dtype, device, scale=scale)
    correlation = make_correlation(1000).to(device)
    exact = by_loops(*arguments, correlation)

    def plain(logits, offsets, classes, scores, relations):
        """The plain formula, in the dtype of the logits throughout."""
        y, rated = targets_by_loops(
            offsets.cpu(), classes.cpu(), scores.cpu(), relations.to("cpu").dense(), 1000
        )
        y, rated = y.to(logits), rated.to(device)
        weights = torch.where(rated, 2.5, 0.1).to(logits)
        losses = functional.binary_cross_entropy_with_logits(logits, y, weights, reduction="none")
        return losses.sum(1).mean()

    actual = own_and_gradient(rated_bce_with_logits, (*arguments, correlation))
    baseline = own_and_gradient(plain, (*arguments, correlation))
    for value, base, true in zip(actual, baseline, exact, strict=True):
        error, allowed = (x.double().cpu() - true for x in (value, base))
        digit = torch.finfo(value.dtype).eps * true.abs().max()
        assert error.abs().max() <= 2 * allowed.abs().max() + digit
        assert error.norm() <= 2 * allowed.norm() + digit


@pytest.mark.parametrize("sign", [1.0, -1.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_extreme_logits_are_finite(device, dtype, sign):
    _, *ratings = make((4, 40), dtype, device)
    logits = torch.full((4, 40), sign * 1e4, dtype=dtype, device=device).requires_grad_()
    loss, gradient = own_and_gradient(rated_bce_with_logits, (logits, *ratings))
    expected = by_loops(logits, *ratings, None)
    torch.testing.assert_close(loss.double().cpu(), expected[0], rtol=1e-6, atol=1e-6)
    assert gradient.isfinite().all()
    torch.testing.assert_close(gradient.double().cpu(), expected[1], rtol=1e-2, atol=1e-6)


@pytest.mark.parametrize("device", DEVICES)
def test_small_losses_keep_their_digits(device):
    # softplus(-20) is 2e-9, which log(1 + x) loses.
    logits = torch.full((1, 64), -20.0, device=device)
    nothing = torch.zeros(2, dtype=torch.int64, device=device)
    empty = torch.zeros(0, dtype=torch.int64, device=device)
    loss = rated_bce_with_logits(logits, nothing, empty, empty.float(), unrated_weight=1.0)
    assert loss.item() == pytest.approx(64 * math.log1p(math.exp(-20.0)), rel=1e-6)


@pytest.mark.parametrize("function", [rated_bce_with_logits, rated_bce_with_logits_reference])
def test_the_rules(function):
    """One row: class 0 rated 1, class 1 rated 0, class 2 implied by both, 3 by nothing."""
    columns, values = torch.tensor([1, 2, 2]), torch.tensor([0.9, 0.7, 0.8])
    logits = torch.tensor([[0.3, -0.2, 0.5, 1.0]], requires_grad=True)
    ratings = torch.tensor([0, 2]), torch.tensor([0, 1]), torch.tensor([1.0, 0.0])
    correlation = LabelCorrelation(torch.tensor([0, 2, 3, 3, 3]), columns, values)

    def gradient(correlation, scores=ratings[2]):
        loss = function(logits, *ratings[:2], scores, correlation)
        return torch.autograd.grad(loss, logits)[0][0]

    s = torch.sigmoid(logits.detach()[0])
    # A rated 0 stays 0 although class 0 implies it with 0.9; a rated 0 is no evidence for class 2;
    # a class that is only implied has the unrated weight.
    expected = torch.stack([2.5 * (s[0] - 1), 2.5 * s[1], 0.1 * (s[2] - 0.7), 0.1 * s[3]])
    torch.testing.assert_close(gradient(correlation), expected)
    # Several positives add up to at most 1; a rated class still keeps its score.
    expected = torch.stack([2.5 * (s[0] - 1), 2.5 * (s[1] - 1), 0.1 * (s[2] - 1), 0.1 * s[3]])
    torch.testing.assert_close(gradient(correlation, torch.ones(2)), expected)
    expected = torch.stack([2.5 * (s[0] - 1), 2.5 * s[1], 0.1 * s[2], 0.1 * s[3]])
    torch.testing.assert_close(gradient(None), expected)


@pytest.mark.parametrize("function", [rated_bce_with_logits, rated_bce_with_logits_reference])
def test_a_row_without_ratings_is_pushed_to_0_gently(function):
    logits = torch.randn(2, 6)
    offsets, empty = torch.zeros(3, dtype=torch.int64), torch.zeros(0, dtype=torch.int64)
    loss = function(logits, offsets, empty, empty.float(), make_correlation(6))
    torch.testing.assert_close(loss, 0.1 * functional.softplus(logits).sum() / 2)


@pytest.mark.parametrize("device", DEVICES)
def test_is_the_loss_of_pretraining_with_weights_of_1(device):
    labels = [[0, 3], [], [5, 1, 2]]
    offsets = torch.tensor([0, 2, 2, 5], device=device)
    classes = torch.tensor([j for row in labels for j in row], device=device)
    dense = torch.zeros(3, 6, device=device)
    for row, present in enumerate(labels):
        dense[row, present] = 1
    logits = torch.randn(3, 6, device=device)
    ones = torch.ones(5, device=device)
    loss = rated_bce_with_logits(
        logits, offsets, classes, ones, rated_weight=1.0, unrated_weight=1.0
    )
    expected = functional.binary_cross_entropy_with_logits(logits, dense, reduction="sum") / 3
    torch.testing.assert_close(loss, expected)


def test_correlated_targets_are_those_of_the_paper():
    _, *ratings = make((40, 30), most=6)
    correlation = make_correlation(30)
    targets = correlated_targets(*ratings, correlation, 30)
    expected, _ = targets_by_loops(*ratings, correlation.dense(), 30)
    torch.testing.assert_close(targets.double(), expected, rtol=1e-6, atol=1e-6)
    assert targets.max() == 1.0
    targets = correlated_targets(*ratings, correlation, 30, absent_evidence=1.0)
    expected, _ = targets_by_loops(*ratings, correlation.dense(), 30, 1.0)
    torch.testing.assert_close(targets.double(), expected, rtol=1e-6, atol=1e-6)
    plain = correlated_targets(*ratings, None, 30)
    expected, _ = targets_by_loops(*ratings, torch.zeros(30, 30), 30)
    assert torch.equal(plain.double(), expected)


def test_targets_of_classes_that_are_rated_0():
    """They have relations of their own; a score between counts for both."""
    size = 6
    present, absent = (correlation_of(size, seed) for seed in (0, 1))
    ratings = (
        torch.tensor([0, 1, 2, 4, 4]),
        torch.tensor([0, 1, 2, 5]),
        torch.tensor([1.0, 0, 0.3, 0]),
    )
    found = correlated_targets(*ratings, present, size, absent=absent)
    for row, rated in enumerate([{0: 1.0}, {1: 0.0}, {2: 0.3, 5: 0.0}, {}]):
        for label in range(size):
            expected = sum(
                score * float(present.dense()[i, label])
                + (1 - score) * float(absent.dense()[i, label])
                for i, score in rated.items()
            )
            expected = rated.get(label, min(1.0, expected))
            assert float(found[row, label]) == pytest.approx(expected, abs=1e-6)
    with pytest.raises(ValueError, match="absent_evidence: expected none with absent, found both"):
        correlated_targets(*ratings, present, size, absent=absent, absent_evidence=0.5)
    with pytest.raises(ValueError, match="correlation: expected"):
        correlated_targets(*ratings, present, size, absent=correlation_of(size + 1, 0))


def correlation_of(size: int, seed: int) -> LabelCorrelation:
    generator = torch.Generator().manual_seed(seed)
    given = torch.rand(size, size, generator=generator).fill_diagonal_(0)
    given[given < 0.5] = 0
    rows, columns = given.nonzero(as_tuple=True)
    offsets = torch.cat((torch.zeros(1).long(), (given > 0).sum(1).cumsum(0)))
    return LabelCorrelation(offsets, columns, given[rows, columns])


@pytest.mark.parametrize("function", [rated_bce_with_logits, rated_bce_with_logits_reference])
@pytest.mark.parametrize("shape", [(7, 16), (3, 257), (0, 5), (3, 0)])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_padding_changes_nothing(device, dtype, shape, function):
    logits, *ratings = make(shape, dtype, device)
    correlation = make_correlation(shape[1]).to(device) if shape[1] else None
    expected = own_and_gradient(function, (logits, *ratings, correlation))
    found = own_and_gradient(function, (logits, *padded(ratings, 40), correlation))
    assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))
    targets, same = (
        correlated_targets(*of, correlation, shape[1]) for of in (ratings, padded(ratings, 40))
    )
    assert torch.equal(same, targets)


def test_scores_that_are_padding_have_a_gradient_of_0():
    logits, *ratings = make((4, 6))
    expected, found = (
        torch.autograd.grad(
            rated_bce_with_logits(logits, offsets, classes, scores.requires_grad_()), scores
        )[0]
        for offsets, classes, scores in (ratings, padded(ratings, 20))
    )
    assert torch.equal(found, torch.cat((expected, torch.zeros(20 - len(expected)))))


@ignore_deprecations_of_torch
def test_the_reference_waits_for_no_gpu_and_compiles():
    correlation = make_correlation(6)
    logits, *ratings = make((4, 6))
    arguments = (logits, *padded(ratings, 20), correlation)
    # Tensors without values, so that any look at them is an error.
    without_values = [argument.to("meta") for argument in arguments]
    assert rated_bce_with_logits_reference(*without_values).shape == ()
    compiled = torch.compile(
        rated_bce_with_logits_reference, fullgraph=True, dynamic=True, backend="aot_eager"
    )
    expected = own_and_gradient(rated_bce_with_logits_reference, arguments)
    torch.testing.assert_close(own_and_gradient(compiled, arguments), expected)


@pytest.mark.parametrize("correlated", [False, True])
@pytest.mark.parametrize("device", DEVICES)
def test_gradcheck(device, correlated):
    logits, *ratings = make((3, 5), torch.float64, device)
    ratings = padded(ratings, 20)
    correlation = make_correlation(5).to(device) if correlated else None
    assert torch.autograd.gradcheck(
        lambda z: 3 * rated_bce_with_logits(z, *ratings, correlation), (logits,)
    )


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_gradient_of_a_scaled_loss(device, dtype):
    """In float16 a loss scale must come before the rounding, or small gradients are lost."""
    logits, *ratings = make((64, 40), dtype, device, scale=1.0)
    scaled = 4096.0 * rated_bce_with_logits(logits, *ratings, unrated_weight=1e-3)
    (gradient,) = torch.autograd.grad(scaled, logits)
    _, exact = by_loops(logits, *ratings, None, n=1e-3)
    assert (gradient != 0).all()
    digit = torch.finfo(dtype).eps
    torch.testing.assert_close(
        gradient.double().cpu(), 4096 * exact, rtol=2 * digit, atol=1e-7 * 4096 / 64 * 2.5
    )


@pytest.mark.parametrize("scale", [1.0, 3.0])
@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_gradients_can_be_asked_for_until_the_graph_is_freed(device, dtype, scale):
    """Only the last of them may overwrite what the forward pass has saved."""
    logits, *ratings = make((3, 5), dtype, device)
    loss = scale * rated_bce_with_logits(logits, *ratings)
    first, second = (torch.autograd.grad(loss, logits, retain_graph=True)[0] for _ in range(2))
    kept = first.clone()
    (last,) = torch.autograd.grad(loss, logits)
    assert all(torch.equal(other, kept) for other in (first, second, last))
    with pytest.raises(RuntimeError, match="backward through the graph a second time"):
        torch.autograd.grad(loss, logits)


def test_several_gradients_at_once():
    logits, *ratings = make((3, 5))
    (one,) = torch.autograd.grad(rated_bce_with_logits(logits, *ratings), logits)
    scales = torch.tensor([1.0, -2.0])
    loss = rated_bce_with_logits(logits, *ratings)
    (both,) = torch.autograd.grad(loss, logits, scales, is_grads_batched=True)
    torch.testing.assert_close(both, torch.stack((one, -2 * one)))


@pytest.mark.parametrize(
    ("dtype", "correlated", "grad", "layout"),
    half(DTYPES, [False, True], [False, True], ["contiguous", "permuted"]),
    ids=str,
)
@pytest.mark.parametrize("device", DEVICES)
def test_opcheck(device, dtype, correlated, grad, layout):
    logits, *ratings = make((4, 6), dtype, device, grad=False)
    if layout == "permuted":
        logits = logits.mT.contiguous().mT
    ratings = padded(ratings, 20)
    if dtype == torch.float64:
        ratings[2] = ratings[2].double()
    relations = (None, None, None)
    if correlated:
        correlation = make_correlation(6).to(device)
        relations = (
            correlation.offsets,
            correlation.columns,
            correlation.values.to(ratings[2].dtype),
        )
    arguments = (logits.requires_grad_(grad), *ratings, *relations, 2.5, 0.1, 0.5, grad)
    torch.library.opcheck(torch.ops.pyseg.rated_bce_with_logits.default, arguments)
    scale = torch.tensor(2.0, dtype=ratings[2].dtype, device=device)
    torch.library.opcheck(
        torch.ops.pyseg.rated_bce_with_logits_backward.default, (scale, logits.detach())
    )
    torch.library.opcheck(
        torch.ops.pyseg.rated_bce_with_logits_backward_.default,
        (scale, logits.detach()),
    )


@ignore_deprecations_of_torch
@pytest.mark.parametrize("device", DEVICES)
def test_compiles_whole_for_changing_sizes(device):
    correlation = make_correlation(23).to(device)

    def step(logits, *ratings):
        return rated_bce_with_logits(logits * 2, *ratings, correlation)

    torch._dynamo.reset()
    compiled = torch.compile(step, fullgraph=True, dynamic=True, backend="aot_eager")
    for index, batch in enumerate((6, 9, 4)):
        arguments = make((batch, 23), device=device)
        with torch._dynamo.config.patch(error_on_recompile=index > 0):
            for a, b in zip(
                *(own_and_gradient(f, arguments) for f in (compiled, step)), strict=True
            ):
                torch.testing.assert_close(a, b)


@pytest.mark.parametrize("device", DEVICES)
def test_exports(device):
    class Loss(torch.nn.Module):
        def forward(self, *arguments):
            return rated_bce_with_logits(*arguments)

    arguments = make((4, 6), device=device, grad=False)
    program = torch.export.export(Loss(), arguments)
    assert "pyseg.rated_bce_with_logits.default" in {str(n.target) for n in program.graph.nodes}
    torch.testing.assert_close(program.module()(*arguments), Loss()(*arguments))


@pytest.mark.parametrize("device", DEVICES)
def test_under_autocast_the_loss_is_float32(device):
    logits, *ratings = make((4, 6), torch.bfloat16, device)
    with torch.autocast(device, torch.bfloat16):
        loss = rated_bce_with_logits(logits, *ratings)
    assert loss.dtype == torch.float32
    assert torch.equal(loss, rated_bce_with_logits(logits, *ratings))


@needs_cpu_ops
def test_same_bits_whatever_the_threads():
    arguments = (*make((200, 300)), make_correlation(300))
    threads = torch.get_num_threads()
    first = own_and_gradient(rated_bce_with_logits, arguments)
    try:
        for number in (1, 2, 3):
            torch.set_num_threads(number)
            again = own_and_gradient(rated_bce_with_logits, arguments)
            assert all(torch.equal(a, b) for a, b in zip(first, again, strict=True))
    finally:
        torch.set_num_threads(threads)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("device", DEVICES)
def test_same_bits_wherever_a_row_lies(device, dtype):
    """In the batch, and in memory, which decides the 16-byte accesses."""
    logits, *ratings = make((1, 1001), dtype, device, grad=False)
    correlation = make_correlation(1001).to(device)
    expected = None
    for shift in range(9):
        memory = torch.empty(1001 + shift, dtype=dtype, device=device)
        shifted = memory[shift:].view(1, 1001).copy_(logits).requires_grad_()
        found = own_and_gradient(rated_bce_with_logits, (shifted, *ratings, correlation))
        expected = expected or found
        assert all(torch.equal(a, b) for a, b in zip(found, expected, strict=True))


@needs_cpu_ops
@pytest.mark.parametrize("scale", [1.0, 3.0])
def test_allocates_the_gradient_alone(scale):
    arguments = (*make((64, 1000)), make_correlation(1000))
    # There is one cycle anyway, but torch 2.11 warns without acc_events.
    with torch.profiler.profile(profile_memory=True, acc_events=True) as profile:
        _, gradient = own_and_gradient(lambda *of: scale * rated_bce_with_logits(*of), arguments)
    allocated = sum(max(event.self_cpu_memory_usage, 0) for event in profile.events())
    assert gradient.nbytes <= allocated < 1.1 * gradient.nbytes


@pytest.mark.parametrize("kind", [torch.int32, torch.uint8])
def test_kinds_of_integers_and_scores(kind):
    logits, offsets, classes, scores = make((4, 6))
    expected = rated_bce_with_logits(logits, offsets, classes, scores)
    for other in (torch.float64, torch.bfloat16):
        found = rated_bce_with_logits(logits, offsets.to(kind), classes.to(kind), scores.to(other))
        assert torch.equal(found, expected)


@needs_cpu_ops
def test_double_backward_is_refused():
    logits, *ratings = make((2, 5))
    loss = rated_bce_with_logits(logits, *ratings) * 2
    expected = torch.autograd.grad(loss, logits, retain_graph=True)[0]
    (gradient,) = torch.autograd.grad(loss, logits, create_graph=True)
    assert torch.equal(gradient, expected)
    with pytest.raises(RuntimeError, match="rated_bce_with_logits cannot be differentiated twice"):
        gradient.sum().backward()


def test_falls_back_to_the_reference(monkeypatch):
    monkeypatch.setattr(_ext, "HAS_CPU_OPS", False)
    arguments = (*make((4, 6)), make_correlation(6))
    results = (
        own_and_gradient(f, arguments)
        for f in (rated_bce_with_logits, rated_bce_with_logits_reference)
    )
    assert all(torch.equal(a, b) for a, b in zip(*results, strict=True))


def replaced(**changes):
    """Arguments of 2 rows and 4 classes with some of them replaced."""
    arguments = {
        "logits": torch.zeros(2, 4),
        "offsets": torch.tensor([0, 1, 3]),
        "classes": torch.tensor([0, 1, 2]),
        "scores": torch.tensor([1.0, 0.0, 1.0]),
    }
    return arguments | changes


BAD_VALUES = {
    "class too large": (
        {"classes": torch.tensor([0, 4, 2])},
        r"classes: expected 0 <= class < 4, found 4 in row 1",
    ),
    "class negative": (
        {"classes": torch.tensor([-1, 1, 2])},
        r"classes: expected 0 <= class < 4, found -1 in row 0",
    ),
    "class twice": (
        {"classes": torch.tensor([0, 2, 2])},
        "classes: expected each once in a row, found 2 twice in row 1",
    ),
    "offsets decrease": (
        {"offsets": torch.tensor([0, 4, 3]), "classes": torch.tensor([0, 1, 2])},
        "offsets: expected no decrease, found 4 before 3 at row 1",
    ),
    "offsets go beyond the end": (
        {"offsets": torch.tensor([0, 1, 4])},
        "offsets: expected 0 to at most 3, found 0 to 4",
    ),
    "offsets do not begin at 0": (
        {"offsets": torch.tensor([1, 1, 3])},
        "offsets: expected 0 to at most 3, found 1 to 3",
    ),
    "score too large": (
        {"scores": torch.tensor([1.0, 1.5, 1.0])},
        r"scores: expected numbers in \[0, 1\], found 1\.5 in row 1",
    ),
    "score a little too large": (
        {"scores": torch.tensor([1.0, 1.0000001, 1.0])},
        r"scores: expected numbers in \[0, 1\], found 1\.0000001 in row 1",
    ),
    "score negative": (
        {"scores": torch.tensor([-0.5, 1.0, 1.0])},
        r"scores: expected numbers in \[0, 1\], found -0\.5 in row 0",
    ),
    "score NaN": (
        {"scores": torch.tensor([1.0, 1.0, torch.nan])},
        r"scores: expected numbers in \[0, 1\], found nan in row 1",
    ),
}


@pytest.mark.parametrize("function", [rated_bce_with_logits, rated_bce_with_logits_reference])
@pytest.mark.parametrize(("changes", "text"), BAD_VALUES.values(), ids=BAD_VALUES)
def test_bad_values_are_errors(changes, text, function):
    with pytest.raises(RuntimeError, match=f"^{text}"):  # no path precedes it
        function(**replaced(**changes))
    arguments = replaced(**changes)
    del arguments["logits"]
    with pytest.raises(ValueError, match=text):
        correlated_targets(**arguments, correlation=None, num_classes=4)


@pytest.mark.parametrize("function", [rated_bce_with_logits, rated_bce_with_logits_reference])
def test_of_no_classes_none_can_be_rated(function):
    ratings = torch.tensor([0, 1]), torch.tensor([0]), torch.ones(1)
    with pytest.raises(RuntimeError, match=r"^classes: expected 0 <= class < 0, found 0 in"):
        function(torch.zeros(1, 0), *ratings)


@pytest.mark.parametrize("dtype", DTYPES, ids=str)
@pytest.mark.parametrize("changes", [changes for changes, _ in BAD_VALUES.values()], ids=BAD_VALUES)
@pytest.mark.parametrize("device", DEVICES[1:])
def test_bad_values_on_a_gpu_make_their_rows_nan(device, changes, dtype):
    arguments = {name: tensor.to(device) for name, tensor in replaced(**changes).items()}
    logits = arguments.pop("logits").to(dtype).requires_grad_()
    loss = rated_bce_with_logits(logits, **arguments, correlation=make_correlation(4).to(device))
    assert loss.isnan()
    (gradient,) = torch.autograd.grad(loss, logits)
    wrong = gradient.isnan().all(1)
    assert wrong.any()
    assert gradient[~wrong].isfinite().all()


BAD_ARGUMENTS = {
    "logits: list": ({"logits": [0.0]}, TypeError, "logits: expected a Tensor, found list"),
    "logits: int": (
        {"logits": torch.zeros(2, 4, dtype=torch.int64)},
        TypeError,
        r"logits: expected float32, .*, found torch\.int64",
    ),
    "logits: one row": (
        {"logits": torch.zeros(4)},
        ValueError,
        r"logits: expected shape \(B, C\), found \(4,\)",
    ),
    "offsets: too few": (
        {"offsets": torch.tensor([0, 3])},
        ValueError,
        r"offsets: expected shape \(B \+ 1,\) = \(3,\) to fit logits \(2, 4\), found \(2,\)",
    ),
    "classes: float": (
        {"classes": torch.zeros(3)},
        TypeError,
        r"classes: expected integers, found torch\.float32",
    ),
    "scores: int": (
        {"scores": torch.zeros(3, dtype=torch.int64)},
        TypeError,
        r"scores: expected floating, found torch\.int64",
    ),
    "scores: too few": (
        {"scores": torch.zeros(2)},
        ValueError,
        r"scores: expected shape \(R,\) = \(3,\) to fit classes \(3,\), found \(2,\)",
    ),
    "scores: another device": (
        {"scores": torch.zeros(3, device="meta")},
        ValueError,
        "scores: expected the device of logits, cpu, found meta",
    ),
    "correlation: a matrix": (
        {"correlation": torch.zeros(4, 4)},
        TypeError,
        "correlation: expected a LabelCorrelation, found Tensor",
    ),
    "correlation: other classes": (
        {"correlation": make_correlation(5)},
        ValueError,
        "correlation: expected 4 classes, found 5",
    ),
    "rated_weight": (
        {"rated_weight": -1.0},
        ValueError,
        r"rated_weight: expected a finite number of at least 0, found -1\.0",
    ),
    "rated_weight: text": (
        {"rated_weight": "2"},
        TypeError,
        "rated_weight: expected a number, found str",
    ),
    "unrated_weight": (
        {"unrated_weight": math.nan},
        ValueError,
        "unrated_weight: expected a finite number of at least 0, found nan",
    ),
    "absent_evidence": (
        {"absent_evidence": 1.5},
        ValueError,
        r"absent_evidence: expected a number in \[0, 1\], found 1\.5",
    ),
}


@pytest.mark.parametrize("function", [rated_bce_with_logits, rated_bce_with_logits_reference])
@pytest.mark.parametrize(("changes", "error", "text"), BAD_ARGUMENTS.values(), ids=BAD_ARGUMENTS)
def test_error_texts(changes, error, text, function):
    with pytest.raises(error, match=text):
        function(**replaced(**changes))


@needs_cpu_ops
def test_the_raw_op_checks_what_it_reads():
    op = torch.ops.pyseg.rated_bce_with_logits
    arguments = list(replaced().values())
    some = torch.tensor([0, 0, 0, 0, 0]), torch.zeros(0, dtype=torch.int64), torch.zeros(0)
    with pytest.raises(RuntimeError, match="expected all or none"):
        op(*arguments, some[0], None, None, 1.0, 1.0, 0.0, False)
    with pytest.raises(
        RuntimeError, match=r"correlation_offsets: expected shape \(C \+ 1,\) = \(5,\), found"
    ):
        op(*arguments, some[0][:3], *some[1:], 1.0, 1.0, 0.0, False)
    relations = torch.tensor([0, 1, 1, 1, 1]), torch.tensor([4]), torch.ones(1)
    with pytest.raises(
        RuntimeError, match=r"correlation_columns: expected 0 <= class < 4, found 4"
    ):
        op(*arguments, *relations, 1.0, 1.0, 0.0, False)
    relations = relations[0], torch.tensor([3]), torch.tensor([1.5])
    with pytest.raises(
        RuntimeError, match=r"correlation_values: expected numbers in \[0, 1\], found 1\.5"
    ):
        op(*arguments, *relations, 1.0, 1.0, 0.0, False)
    with pytest.raises(
        RuntimeError, match=r"offsets: expected shape \(B \+ 1,\) = \(3,\), found \(2,\)"
    ):
        op(arguments[0], arguments[1][:2], *arguments[2:], None, None, None, 1.0, 1.0, 0.0, False)
    with pytest.raises(RuntimeError, match="scores: expected Float, found Double"):
        op(*arguments[:3], arguments[3].double(), None, None, None, 1.0, 1.0, 0.0, False)
    with pytest.raises(
        RuntimeError, match=r"grad_output: expected shape \(\) = \(\), found \(1,\)"
    ):
        torch.ops.pyseg.rated_bce_with_logits_backward(torch.ones(1), arguments[0])
    with pytest.raises(RuntimeError, match=r"grad: expected shape \(B, C\), found \(4,\)"):
        torch.ops.pyseg.rated_bce_with_logits_backward(torch.ones(()), torch.ones(4))
