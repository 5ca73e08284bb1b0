"""The order of NeXtVLAD's products by operations and bytes."""

from __future__ import annotations

import functools
import itertools

import pytest
import torch

from pyseg._rates import ASSUMED, Rates
from pyseg.nn import NeXtVLAD, nextvlad
from pyseg.nn.product_order import ORDERS, Sizes, cheapest_order, operations, passes

SIZES = Sizes(1152, 2304, 112, 8)
ALL = list(itertools.product((1, 16, 80), (1, 5, 60, 300), (False, True), (False, True)))


def seconds(order, batch, length, backward, formed, rates, rate, itemsize) -> float:
    found = passes(order, SIZES, batch, length, backward=backward, formed=formed)
    return sum(
        max(2 * each.pairs / (rate * 1e9), each.values * itemsize / (rates.copy * 1e9))
        for each in found
    )


@pytest.mark.parametrize("rates", ASSUMED.values())
def test_each_pass_takes_the_longer_of_its_operations_and_its_bytes(rates: Rates) -> None:
    for dtype, tf32, rate in (
        (torch.bfloat16, False, rates.bfloat16),
        (torch.float16, False, rates.float16),
        (torch.float32, True, rates.tf32),
        (torch.float32, False, rates.float32),
        (torch.float64, False, rates.float32),
    ):
        for batch, length, backward, formed in ALL:
            options = {"backward": backward, "formed": formed}
            found = cheapest_order(
                SIZES, batch, length, **options, rates=rates, dtype=dtype, tf32=tf32
            )
            times = {
                order: seconds(order, batch, length, backward, formed, rates, rate, dtype.itemsize)
                for order in ORDERS
            }
            assert times[found] <= 1.000001 * min(times.values())


def test_operations_decide_where_memory_is_fast_and_bytes_where_it_is_slow() -> None:
    fast = Rates(10**9 - 1, 1, 1, 1, 1)
    slow = Rates(1, *[10**9 - 1] * 4)
    by_bytes, by_operations = [], []
    for batch, length, backward, formed in ALL:
        options = {"backward": backward, "formed": formed}
        counts = {o: operations(o, SIZES, batch, length, **options) for o in ORDERS}
        values = {
            o: sum(each.values for each in passes(o, SIZES, batch, length, **options))
            for o in ORDERS
        }
        by_operations.append(cheapest_order(SIZES, batch, length, **options))
        assert counts[by_operations[-1]] == min(counts.values())
        assert cheapest_order(SIZES, batch, length, **options, rates=fast) == by_operations[-1]
        by_bytes.append(cheapest_order(SIZES, batch, length, **options, rates=slow))
        assert values[by_bytes[-1]] == min(values.values())
    assert by_bytes != by_operations


def test_values_are_those_of_the_tensors() -> None:
    """Every pass reads its operands and writes its result; gradients of a product do both again."""
    b, t, n, e, k, g = 3, 7, 12, 24, 5, 4
    c, f = g * k, e // g
    empty = functools.partial(torch.empty, device="meta")
    x, h, z, pooled, v = (
        empty(b, t, n),
        empty(b, t, e),
        empty(b, t, c),
        empty(b, n, c),
        empty(b, f, k),
    )
    wide, assign, folded = empty(n, e), empty(e, c), empty(n, c)

    def total(*tensors: torch.Tensor) -> int:
        return sum(tensor.numel() for tensor in tensors)

    fold = total(wide, assign, folded)
    expand, aggregate = total(x, wide, h), total(h, z, v)
    forward = {
        "direct": expand + total(h) + total(h, assign, z) + aggregate,
        "folded": fold + total(x) + total(x, folded, z) + expand + aggregate,
        "reassociated": fold
        + (total(x) + total(x, folded, z) + total(z, z) + total(z))
        + (total(z, x, pooled) + total(pooled, wide, v)),
    }
    backward = {
        "direct": aggregate + total(h, z)  # the gradients of h and z are written, v's is read
        + 2 * total(h, assign, z) + 2 * total(h) + 2 * total(h, h, h) + expand + total(h),
        "folded": aggregate + total(h, z) + expand + total(h)
        + total(x, folded, z) + total(x) + 2 * fold,
        "reassociated": 2 * total(pooled, wide, v) + total(x, pooled, z) + total(z, z)
        + total(z, z, z) + total(x, folded, z) + total(x) + 2 * fold,
    }  # fmt: skip
    for order in ORDERS:
        for training in (False, True):
            found = passes(order, Sizes(n, e, k, g), b, t, backward=training, formed=False)
            expected = forward[order] + training * backward[order]
            assert sum(each.values for each in found) == expected, (order, training)


def test_the_layer_asks_for_its_device_dtype_and_mode(monkeypatch: pytest.MonkeyPatch) -> None:
    layer = NeXtVLAD(96, clusters=16, groups=4)
    rates = ASSUMED[9]
    monkeypatch.setattr(nextvlad, "rates_of", lambda device, index: rates)
    asked = []
    monkeypatch.setattr(nextvlad, "cached_order", lambda *a, **k: asked.append((a, k)))
    frames = torch.zeros(3, 40, 96)
    layer.cheapest_order(frames)
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        layer.eval().cheapest_order(frames)
    sizes = Sizes(96, 192, 16, 4)
    known = {"rates": rates, "tf32": False}
    assert asked == [
        ((sizes, 3, 40), known | {"backward": True, "formed": False, "dtype": torch.float32}),
        ((sizes, 3, 40), known | {"backward": False, "formed": True, "dtype": torch.bfloat16}),
    ]


def test_a_graph_compares_the_times_of_its_shapes(monkeypatch: pytest.MonkeyPatch) -> None:
    """One graph serves all shapes with the same order: rates are constants, shapes symbols."""
    rates = Rates(300, 50, 350, 700, 700)

    def rates_of(device: str, index: int | None) -> Rates:
        return rates

    rates_of._dynamo_marked_constant = True
    monkeypatch.setattr(nextvlad, "rates_of", rates_of)
    layer = NeXtVLAD(96, clusters=16, groups=4)
    compiled = torch.compile(
        lambda x: (x + 1, layer.cheapest_order(x)), fullgraph=True, dynamic=True, backend="eager"
    )
    torch._dynamo.reset()
    taken = set()
    for batch, length in ((4, 6), (3, 5), (4, 90), (5, 100), (4, 300), (3, 320)):
        frames = torch.zeros(batch, length, 96)
        expected = layer.cheapest_order(frames)
        with torch._dynamo.config.patch(error_on_recompile=expected in taken):
            assert compiled(frames)[1] == expected
        taken.add(expected)
    assert len(taken) > 1
