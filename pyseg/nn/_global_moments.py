"""Statistics of the rows of all processes; a separate module, since it imports torch._dynamo."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor, distributed
from torch.autograd.function import once_differentiable

from pyseg.ops import moments


class GlobalMoments(torch.autograd.Function):
    """Mean, biased variance and number of the rows of all processes.

    With the n_r rows of process r, their mean m_r and variance v_r, and n the sum of all n_r

        m = sum n_r m_r / n,    v = sum n_r (v_r + (m_r - m)^2) / n

    without the cancellation of a sum of squares. Every process computes both from the same numbers
    in the same order, so all have the same bits.
    """

    @staticmethod
    def forward(ctx: Any, x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
        """Takes x (R, C) and counts (R,); returns (C,), (C,) and ()."""
        own = counts.sum()
        mean, var = x.new_zeros(2, x.shape[1], dtype=counts.dtype)
        if len(x):
            mean, var = moments(x, counts / own.clamp(min=1.0))
        sent = torch.cat((own.reshape(1), mean, var))
        received = sent.new_empty(distributed.get_world_size(), len(sent))
        distributed.all_gather(list(received.unbind()), sent)
        each, means, variances = received.split((1, x.shape[1], x.shape[1]), dim=1)
        count = each.sum()
        shares = each / count.clamp(min=1.0)
        mean = (shares * means).sum(0)
        var = (shares * (variances + (means - mean).square())).sum(0)
        ctx.save_for_backward(x, counts, mean, count)
        ctx.mark_non_differentiable(count)
        return mean, var, count

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, by_mean: Tensor, by_var: Tensor, _: Tensor) -> tuple[Tensor, None]:
        """Sums the gradients of the statistics over the processes: every row affects them all."""
        x, counts, mean, count = ctx.saved_tensors
        both = torch.stack((by_mean, by_var))
        distributed.all_reduce(both)
        by_mean, by_var = both / count.clamp(min=1.0)
        grad = (x.to(mean.dtype) - mean).mul_(2.0 * by_var).add_(by_mean)
        # Rows with a count of 0 may hold anything.
        rows = counts.unsqueeze(1)
        return (grad * rows).masked_fill_(rows == 0, 0.0).to(x.dtype), None


@torch.compiler.disable  # it communicates, so it breaks the graph
def global_moments(x: Tensor, counts: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Returns mean (C,), biased variance (C,) and number () of the rows of all processes.

    Args:
        x: This process's rows, (R, C).
        counts: 1 where a row counts, else 0, (R,), in the dtype of the statistics.
    """
    result: tuple[Tensor, Tensor, Tensor] = GlobalMoments.apply(x, counts)
    return result
