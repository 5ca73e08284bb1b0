"""Batch normalisation as the reference models use it."""

from __future__ import annotations

import functools

import torch
from torch import Tensor, distributed, nn

from pyseg.errors import ArgumentError
from pyseg.ops import AssignmentNorm, moments
from pyseg.ops._dispatch import as_dtype, has_kernel, is_captured, sum_dtype
from pyseg.ops._op import is_plain
from pyseg.ops.assignment import PackedNorm, batch_statistics_, normalize

_DISTRIBUTED = distributed.is_available()  # in this build of torch


def _equal_weights(count: int, dtype: torch.dtype, device: torch.device) -> Tensor:
    """Returns the weights of rows in a mean over all of them, (count,): 1 / count each.

    Not in inference mode, whose tensors cannot be saved for a gradient, as the cached ones are.
    """
    if is_captured(device):
        return torch.full((count,), 1.0 / count, dtype=dtype, device=device)
    # Another stream would have to wait for the one that fills them.
    stream = torch.cuda.current_stream(device).cuda_stream if device.type == "cuda" else 0
    return _cached_weights(count, dtype, device, stream)


@functools.lru_cache(maxsize=32)
def _cached_weights(count: int, dtype: torch.dtype, device: torch.device, stream: int) -> Tensor:
    return torch.full((count,), 1.0 / count, dtype=dtype, device=device)


class BatchNorm(nn.Module):
    """Batch normalisation over all rows, with the constants and the variance of TensorFlow's slim.

    y = (x - mean) / sqrt(variance + eps) * weight + bias, with the mean and the biased variance of
    the batch in training mode and the running ones in eval mode. It differs from
    `torch.nn.BatchNorm1d` in that

    * channels are the last dimension, all others are rows (reference: (B*T, channels));
    * eps is 1e-3 and momentum 0.001 (slim's decay of 0.999);
    * the running variance is the biased one of the batch (slim with ``fused=False``) unless
      `unbiased` is set (slim's default, which PyTorch always does): a factor n / (n - 1);
    * an op can normalise while it reads, also with rows left out of the statistics (`deferred`);
    * a batch with a single row is no error: its variance is 0 and the output is `bias`. A batch
      without rows (or with all of them masked) leaves the running statistics alone;
    * in a distributed run the batch is that of all processes (`synchronized`).

    Statistics are computed in float32 or better whatever the dtype of the input.

    In a distributed run each row counts the same, and a process may have any number of rows,
    including none. Outputs, running statistics and gradients (if averaged over the processes, as
    DistributedDataParallel does) are those of one process with all rows. Every process must call
    the module equally often. A call communicates once, 2 * channels + 1 numbers, and so does its
    gradient, which cannot be differentiated again. The reference normalises every tower by itself:
    ``synchronized=False``; running statistics then differ between processes.

    Args:
        num_features: number of channels.
        eps: added to the variance.
        momentum: weight of the batch in the running statistics, in 0..1.
        unbiased: whether the running variance is that of a sample (n - 1 in the denominator).
        synchronized: whether the statistics of training mode are those of all processes of a
            distributed run.

    Raises:
        ValueError: an argument is out of its range.

    Attributes:
        weight: (channels,) scale, 1 at the start.
        bias: (channels,) shift, 0 at the start.
        running_mean: (channels,) buffer, 0 at the start.
        running_var: (channels,) buffer, 1 at the start.

    Example:
        >>> norm = BatchNorm(2, eps=0.0)
        >>> norm(torch.tensor([[1.0, 5.0], [3.0, 9.0]])).round(decimals=4).tolist()
        [[-1.0, -1.0], [1.0, 1.0]]
        >>> norm.running_mean.tolist()
        [0.0020000000949949026, 0.007000000216066837]
    """

    running_mean: Tensor
    running_var: Tensor

    def __init__(
        self,
        num_features: int,
        *,
        eps: float = 1e-3,
        momentum: float = 0.001,
        unbiased: bool = False,
        synchronized: bool = True,
    ) -> None:
        super().__init__()
        if num_features < 1:
            raise ArgumentError(f"num_features: expected at least 1, found {num_features}")
        if not eps >= 0.0:
            raise ArgumentError(f"eps: expected a number >= 0, found {eps}")
        if not 0.0 <= momentum <= 1.0:
            raise ArgumentError(f"momentum: expected a number in 0..1, found {momentum}")
        self.num_features = num_features
        self.eps = eps
        self.momentum = momentum
        self.unbiased = unbiased
        self.synchronized = synchronized
        self.weight = nn.Parameter(torch.ones(num_features))
        self.bias = nn.Parameter(torch.zeros(num_features))
        self.register_buffer("running_mean", torch.zeros(num_features))
        self.register_buffer("running_var", torch.ones(num_features))

    def forward(self, x: Tensor, counts: Tensor | None = None) -> Tensor:
        """Normalises every row.

        Args:
            x: (..., channels), floating.
            counts: see `deferred`.

        Returns:
            The same shape and dtype as `x`.

        Raises:
            ValueError: the last dimension is not `num_features`, or `counts` does not fit.
        """
        self._check(x)
        rows = x if x.dim() == 2 else x.reshape(-1, self.num_features)
        if (counts is not None and self.training) or self._over_processes():
            norm = self.deferred(x, counts)
            return normalize(rows[None, :, None], norm).reshape(x.shape).to(x.dtype)
        var = running = self.running_var
        count, ratio, training = rows.shape[0], 1.0, False
        if self.training and count > 0:  # a condition, as `training` must be no symbol
            training = True
            if count == 1:  # PyTorch divides by n - 1; the variance is 0
                var, ratio = torch.zeros_like(running), 0.0
            elif not self.unbiased:
                # PyTorch's is that of a sample, so it is another multiple of everything.
                ratio = (count - 1) / count
                var = running / ratio
        # In training it moves both towards the statistics of this batch.
        # Not torch.nn.functional.batch_norm: it refuses a single row.
        rows = torch.batch_norm(
            rows,
            self.weight,
            self.bias,
            self.running_mean,
            var,
            training,
            self.momentum,
            self.eps,
            torch.backends.cudnn.enabled,
        )
        if ratio == 0.0:
            running.mul_(1.0 - self.momentum)
        elif var is not running:
            torch.mul(var, ratio, out=running)
        return rows if x.dim() == 2 else rows.reshape(x.shape)

    def deferred(
        self, x: Tensor, counts: Tensor | None = None, *, deferred_bias: Tensor | None = None
    ) -> AssignmentNorm:
        """Returns the normalisation of `x`, for an op that applies it while it reads `x`.

        In training mode it takes the statistics and updates the running ones, as `forward` does.

        Args:
            x: (..., channels), floating.
            counts: (...) how often a row enters the statistics in training mode: a bool mask, or
                integers (every row is normalised). ``None``: once each. If all are 0, the running
                statistics stay.
            deferred_bias: (channels,) a bias that was not added to `x`, in training mode only:
                subtracting the mean of the batch would remove it. The running mean includes it.

        Returns:
            The argument `norm` of `pyseg.ops.vlad_aggregate` and `pyseg.ops.soft_assign`.

        Raises:
            ValueError: the last dimension is not `num_features`, or `counts` does not fit.
        """
        self._check(x)
        if counts is not None and counts.shape != x.shape[:-1]:
            raise ArgumentError(
                f"counts: expected shape {tuple(x.shape[:-1])} as x has, "
                f"found {tuple(counts.shape)}"
            )
        shape = x.shape[:-1]
        over_processes = self._over_processes()
        if not self.training or (shape.numel() == 0 and not over_processes):
            return AssignmentNorm(
                self.running_mean, self.running_var, self.weight, self.bias, self.eps
            )
        if counts is None and not over_processes:
            return self._deferred_of_all(x, deferred_bias)
        if counts is None:
            counts = torch.ones(shape, dtype=torch.bool, device=x.device)
        counts, rows = counts.flatten().to(sum_dtype(x.dtype)), x.reshape(-1, self.num_features)
        row_weights: Tensor | None = None
        if over_processes:  # the gradient through them is that of `GlobalMoments`, not of the op
            from pyseg.nn._global_moments import global_moments  # it imports all of torch._dynamo

            mean, var, count = global_moments(rows, counts)
        else:
            count = counts.sum()
            row_weights = counts / count.clamp(min=1.0)
            mean, var = moments(rows.detach(), row_weights)
        with torch.no_grad():
            running = var * (count / (count - 1.0).clamp(min=1.0)) if self.unbiased else var
            momentum = self.momentum * (count > 0).to(self.running_mean.dtype)
            self._update(mean, running, momentum, deferred_bias)
        return AssignmentNorm(mean, var, self.weight, self.bias, self.eps, row_weights)

    def _deferred_of_all(self, x: Tensor, deferred_bias: Tensor | None) -> AssignmentNorm:
        """Returns what `deferred` does where all rows count, which takes fewer kernels."""
        count, dtype = x.shape[:-1].numel(), sum_dtype(x.dtype)
        weight, bias = self.weight, self.bias
        running_mean, running_var = self.running_mean, self.running_var
        if (
            weight.dtype == bias.dtype == running_mean.dtype == running_var.dtype == dtype
            and has_kernel(x)
            and is_plain((x, weight, bias, running_mean, running_var, deferred_bias))
        ):
            if deferred_bias is not None:
                deferred_bias = as_dtype(deferred_bias, dtype)
            both, packed = batch_statistics_(
                x,
                weight,
                bias,
                deferred_bias,
                running_mean,
                running_var,
                self.momentum,
                self.eps,
                self.unbiased,
            )
            row_weights = _equal_weights(count, dtype, x.device)
            mean, var = both.unbind()
            norm = PackedNorm(mean, var, weight, bias, self.eps, row_weights)
            norm.packed = packed
            return norm
        with torch.no_grad():
            mean, var = moments(x.reshape(-1, self.num_features))
            now = var * (count / max(count - 1, 1)) if self.unbiased else var
            self._update(mean, now, self.momentum, deferred_bias)
        row_weights = x.new_full((count,), 1.0 / count, dtype=dtype)
        return AssignmentNorm(mean, var, weight, bias, self.eps, row_weights)

    def _update(
        self, mean: Tensor, var: Tensor, momentum: float | Tensor, deferred_bias: Tensor | None
    ) -> None:
        """Moves the running statistics towards those of a batch, without gradients."""
        if deferred_bias is not None:
            mean = mean + deferred_bias
        running, dtype = [self.running_mean, self.running_var], self.running_mean.dtype
        batch = [as_dtype(mean, dtype), as_dtype(var, dtype)]
        if isinstance(momentum, Tensor):
            for before, now in zip(running, batch, strict=True):
                before.lerp_(now, momentum)
        else:  # one kernel for both on a GPU
            torch._foreach_lerp_(running, batch, momentum)

    def affine(self) -> tuple[Tensor, Tensor]:
        """Returns scale and shift, (channels,), of eval mode: y = x * scale + shift."""
        scale = self.weight * torch.rsqrt(self.running_var + self.eps)
        return scale, self.bias - self.running_mean * scale

    def extra_repr(self) -> str:
        """Returns the arguments for `repr`."""
        return (
            f"{self.num_features}, eps={self.eps}, momentum={self.momentum}, "
            f"unbiased={self.unbiased}, synchronized={self.synchronized}"
        )

    def _over_processes(self) -> bool:
        """Whether statistics are taken over several processes."""
        return (
            self.training
            and self.synchronized
            and _DISTRIBUTED
            and distributed.is_initialized()
            and distributed.get_world_size() > 1
        )

    def _check(self, x: Tensor) -> None:
        if x.shape[-1] != self.num_features:
            raise ArgumentError(
                f"x: expected a last dimension of {self.num_features}, found {tuple(x.shape)}"
            )
