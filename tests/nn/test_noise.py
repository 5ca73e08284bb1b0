"""MaskedGaussianNoise (section 3.5 of the paper)."""

from __future__ import annotations

import math

import pytest
import torch

from pyseg.nn import MaskedGaussianNoise

SHAPE = (20, 50, 40)  # 40,000 elements: a mean of 0/1 is within 0.01 at 4 standard deviations


def drawn(noise: MaskedGaussianNoise, seed: int = 0) -> torch.Tensor:
    torch.manual_seed(seed)
    return noise(torch.zeros(SHAPE))


@pytest.mark.parametrize(("sigma", "p"), [(0.1, 0.5), (2.0, 0.2), (0.5, 1.0)])
def test_a_part_of_the_elements_gets_normal_noise(sigma: float, p: float) -> None:
    y = drawn(MaskedGaussianNoise(sigma, p))
    given = y[y != 0]
    assert len(given) / y.numel() == pytest.approx(p, abs=0.01)
    assert given.mean().item() == pytest.approx(0, abs=0.03 * sigma)
    assert given.std().item() == pytest.approx(sigma, rel=0.02)
    within = (given.abs() < sigma).float().mean().item()
    assert within == pytest.approx(math.erf(1 / math.sqrt(2)), abs=0.015)


def test_defaults_are_half_of_the_dimensions_and_a_tenth() -> None:
    assert (MaskedGaussianNoise().p, MaskedGaussianNoise().sigma) == (0.5, 0.1)


@pytest.mark.parametrize("dim", [0, 1, 2])
def test_every_element_of_every_frame_is_drawn_independently(dim: int) -> None:
    """Neither the mask nor the noise is shared between videos, frames or dimensions."""
    y = drawn(MaskedGaussianNoise())
    size = SHAPE[dim]
    first, second = y.narrow(dim, 0, size - 1), y.narrow(dim, 1, size - 1)
    for a, b in ((first != 0, second != 0), (first, second)):
        pair = torch.stack((a.flatten().double(), b.flatten().double()))
        assert abs(torch.corrcoef(pair)[0, 1].item()) < 0.03
    others = [d for d in range(3) if d != dim]
    rates = (y != 0).double().mean(others)
    assert (rates - 0.5).abs().max() < 5 * 0.5 / math.sqrt(y.numel() / size)


def test_noise_is_added_to_what_is_there() -> None:
    x = torch.randn(SHAPE, dtype=torch.float64, requires_grad=True)
    noise = MaskedGaussianNoise(0.1)
    torch.manual_seed(0)
    y = noise(x)
    torch.manual_seed(0)
    torch.testing.assert_close(y, x + noise(torch.zeros_like(x)))
    y.sum().backward()
    assert (x.grad == 1).all()


def test_only_in_training() -> None:
    x = torch.randn(SHAPE)
    noise = MaskedGaussianNoise(0.1)
    assert noise.active
    assert not torch.equal(noise(x), x)
    assert noise.eval()(x) is x
    assert not noise.active
    for off in (MaskedGaussianNoise(0.0), MaskedGaussianNoise(0.1, 0.0)):
        assert not off.active
        assert off(x) is x
    off = MaskedGaussianNoise(0.0)
    off.sigma = 0.1  # fine-tuning turns it on
    assert off.active


def test_padding_stays_as_it_is() -> None:
    torch.manual_seed(0)
    x = torch.randn(SHAPE)
    mask = torch.arange(SHAPE[1]) < torch.arange(1, SHAPE[0] + 1)[:, None]
    y = MaskedGaussianNoise(0.1)(x, mask)
    assert torch.equal(y[~mask], x[~mask])
    assert (y != x)[mask].float().mean().item() == pytest.approx(0.5, abs=0.03)


def test_seeded_by_torch_or_by_a_generator() -> None:
    noise = MaskedGaussianNoise()
    assert torch.equal(drawn(noise, seed=3), drawn(noise, seed=3))
    assert not torch.equal(drawn(noise, seed=3), drawn(noise, seed=4))
    noise.generator = torch.Generator()
    state = torch.get_rng_state()
    results = []
    for _ in range(2):
        noise.generator.manual_seed(5)
        results.append(noise(torch.zeros(SHAPE)))
    assert torch.equal(*results)
    assert torch.equal(torch.get_rng_state(), state)


@pytest.mark.parametrize("dtype", [torch.float16, torch.bfloat16, torch.float64])
def test_dtype_is_that_of_the_frames(dtype: torch.dtype) -> None:
    torch.manual_seed(0)
    with torch.autocast("cpu", torch.bfloat16):
        y = MaskedGaussianNoise(0.25)(torch.zeros(SHAPE, dtype=dtype))
    assert y.dtype == dtype
    assert y[y != 0].double().std().item() == pytest.approx(0.25, rel=0.03)


def test_compiles_whole() -> None:
    torch._dynamo.reset()
    noise = MaskedGaussianNoise()
    compiled = torch.compile(noise, fullgraph=True, dynamic=True, backend="aot_eager")
    for length in (4, 7):
        x, mask = torch.randn(2, length, 3), torch.rand(2, length) < 0.5
        torch.manual_seed(1)
        drawn = torch.empty_like(x).normal_(0.0, noise.sigma)
        noisy = torch.empty_like(x).bernoulli_(noise.p) * mask.unsqueeze(-1)
        torch.manual_seed(1)
        assert torch.equal(compiled(x, mask), torch.addcmul(x, drawn, noisy))


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"sigma": -0.1}, r"sigma: expected a finite number of at least 0, found -0\.1"),
        ({"sigma": float("nan")}, "sigma: expected a finite number .*, found nan"),
        ({"sigma": float("inf")}, "sigma: expected a finite number .*, found inf"),
        ({"p": 1.5}, r"p: expected a number in \[0, 1\], found 1\.5"),
        ({"p": float("nan")}, "p: expected a number .*, found nan"),
    ],
)
def test_bad_arguments(arguments: dict, message: str) -> None:
    with pytest.raises(ValueError, match=message):
        MaskedGaussianNoise(**arguments)
