"""Which order of NeXtVLAD's products takes the least time: operations and bytes of each."""

from __future__ import annotations

import functools
from typing import Literal, NamedTuple, get_args

import torch

from pyseg._rates import Rates

Order = Literal["direct", "folded", "reassociated"]
ORDERS: tuple[Order, ...] = get_args(Order)


class Sizes(NamedTuple):
    """The sizes of a NeXtVLAD layer.

    Attributes:
        feature_size: N.
        expanded: E*N.
        clusters: K.
        groups: G.
    """

    feature_size: int
    expanded: int
    clusters: int
    groups: int


class Pass(NamedTuple):
    """A product, or another operator, that reads its operands from memory and writes its result.

    Attributes:
        pairs: multiplications with an addition; 0 where they do not count beside the values.
        values: values read and written.
    """

    pairs: int
    values: int


def passes(
    order: Order, sizes: Sizes, batch: int, length: int, *, backward: bool, formed: bool
) -> list[Pass]:
    """Returns the passes of an order that the orders do not share; see `NeXtVLAD.operations`."""
    size, expanded, clusters, groups = sizes
    rows, columns = batch * length, groups * clusters
    # Values of the frames, the expanded frames, the assignment, the pooled frames, the result...
    x, h, z = rows * size, rows * expanded, rows * columns
    pooled, result = batch * size * columns, batch * expanded // groups * clusters
    # ... and of W, Wc and Wc W.
    wide, assign, folded = size * expanded, expanded * columns, size * columns
    if order == "direct":
        found = [
            Pass(rows * wide, x + wide + h),
            Pass(0, h),  # the attention, of few columns
            Pass(rows * assign, h + assign + z),
            Pass(h * clusters, h + z + result),  # the aggregation
        ]
        if backward:
            found += [
                Pass(2 * h * clusters, 2 * (h + z) + result),
                Pass(rows * assign, z + assign + h),
                Pass(rows * assign, z + h + assign),
                Pass(0, 2 * h),  # the attention's gradients
                Pass(0, 6 * h),  # h has three gradients, which are added
                Pass(rows * wide, h + x + wide),
                Pass(0, h),  # the gradient of the bias
            ]
        return found
    found = [Pass(0, x), Pass(rows * folded, x + folded + z)]  # attention and assignment
    fold = Pass(size * assign, wide + assign + folded)
    if not formed:
        found.append(fold)
    if backward:
        found += [fold, fold, Pass(0, x), Pass(rows * folded, z + x + folded)]
    if order == "folded":
        found += [Pass(rows * wide, x + wide + h), Pass(h * clusters, h + z + result)]
        if backward:
            found += [
                Pass(2 * h * clusters, 2 * (h + z) + result),
                Pass(rows * wide, h + x + wide),
                Pass(0, h),  # the gradient of the bias
            ]
        return found
    after = Pass(batch * wide * clusters, pooled + wide + result)  # W times the pooled frames
    found += [Pass(0, 2 * z), Pass(0, z)]  # the weights, and their sums
    found += [Pass(rows * folded, z + x + pooled), after]
    if backward:
        # The gradients of the pooled frames and of the weights, to which that of the sums is added.
        found += [after, after, Pass(rows * folded, x + pooled + z), Pass(0, 2 * z)]
        found.append(Pass(0, 3 * z))  # the gradient of the assignment
    return found


def operations(
    order: Order, sizes: Sizes, batch: int, length: int, *, backward: bool, formed: bool
) -> int:
    """Returns the multiplications and additions of the products of an order."""
    found = passes(order, sizes, batch, length, backward=backward, formed=formed)
    return 2 * sum(each.pairs for each in found)


def cheapest_order(
    sizes: Sizes,
    batch: int,
    length: int,
    *,
    backward: bool,
    formed: bool,
    rates: Rates | None = None,
    dtype: torch.dtype = torch.float32,
    tf32: bool = False,
) -> Order:
    """Returns the order that takes the least time.

    A pass takes the longer of the times of its operations and of its bytes, and an order the sum of
    its passes, as kernels run one after another. Without rates only operations count.

    Args:
        sizes: those of the layer.
        batch: number of videos B.
        length: number of frames T of each.
        backward: whether gradients of the parameters are wanted.
        formed: whether Wc W exists already.
        rates: those of the device.
        dtype: of the products and their operands.
        tf32: whether float32 products are rounded to TF32.
    """
    # Times are multiplied by both rates: they stay whole numbers, which torch.compile compares
    # without a guard for every product.
    copy, rate = (0, 1) if rates is None else (rates.copy, _rate(rates, dtype, tf32))
    cheapest, least = ORDERS[0], -1
    for order in ORDERS:  # not min(): torch.compile cannot trace its key
        cost = 0
        for each in passes(order, sizes, batch, length, backward=backward, formed=formed):
            if rates is None:
                cost = cost + each.pairs
            else:
                cost = cost + max(2 * each.pairs * copy, each.values * dtype.itemsize * rate)
        if least < 0 or cost < least:
            cheapest, least = order, cost
    return cheapest


cached_order = functools.lru_cache(maxsize=256)(cheapest_order)


def _rate(rates: Rates, dtype: torch.dtype, tf32: bool) -> int:
    """Returns GFLOP/s of products; those of float64 count as float32's."""
    if dtype == torch.bfloat16:
        return rates.bfloat16
    if dtype == torch.float16:
        return rates.float16
    return rates.tf32 if tf32 else rates.float32
