"""Mixtures of classifiers, trained together."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Literal, NamedTuple, cast, get_args

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional

from pyseg.errors import ArgumentError
from pyseg.nn.batch_norm import BatchNorm
from pyseg.nn.classifier import FrameClassifier
from pyseg.nn.init import he_linear
from pyseg.nn.mask import Integers

Weighting = Literal["input", "static"]


class MixtureOutputs(NamedTuple):
    """The outputs of a `Mixture`.

    Attributes:
        logits: (B, C), the prediction.
        branches: (B, M, C), the logits of every branch.
        weights: (B, M), the weight of every branch; they sum to 1.
    """

    logits: Tensor
    branches: Tensor
    weights: Tensor


class Mixture(FrameClassifier):
    """A weighted mean of the logits of M classifiers, trained together with the weights.

    logits = sum_m w_m logits_m, where the weights depend on the video::

        w = softmax(W BN(mean over the frames x) + b)

    or, with ``weights="static"``, the softmax of M learned numbers. Frames are checked, normalised
    and noised once for all branches.

    `training_loss` is the criterion of the mix, plus that of every branch, plus, with a
    `distillation` lambda above 0, a term that pulls the branches towards the mix::

        lambda * sum_m KL(softmax(logits / T) || softmax(logits_m / T))

    summed over the classes and averaged over the batch, with gradients for both sides.

    The reference's mean includes padding, so the weights of a video depend on how far it is padded.
    By default only its own frames count; `padded_mean` is for weights trained with the reference.
    The paper says only that the weighting is trained.

    Source: the paper, section 3.1 and Figure 1; reference NeXtVLAD code, nextvlad.py, lines
    187-324 (which has 1e-8 inside the logarithms of the KL), and train.py, lines 299-301.

    Args:
        branches: the classifiers, with the same classes, feature sizes and normalization, and
            without noise of their own. They also work alone.
        weights: ``input`` or ``static``.
        padded_mean: whether padded frames enter the mean over the frames (reference: they do).
        temperature: the T of the distillation.
        distillation: the weight lambda of the distillation; 0 leaves it out. The reference's
            final models have T = 3 and lambda = T^2 = 9.
        noise: see `FrameClassifier`.
        batch_norm_momentum: momentum of the batch normalisation before the weights.

    Raises:
        TypeError: a branch is not a `FrameClassifier`.
        ValueError: there is no branch, the branches do not fit together, or another argument is out
            of range.

    Example:
        >>> from pyseg.nn import AttentionGRU, NeXtVLADClassifier
        >>> sizes = {"feature_sizes": (64, 16), "hidden_size": 32, "reduction": 4}
        >>> model = Mixture([
        ...     NeXtVLADClassifier(10, clusters=8, groups=4, **sizes),
        ...     AttentionGRU(10, gru_size=32, attention_size=16, **sizes),
        ... ]).eval()
        >>> frames = torch.randint(0, 256, (2, 12, 80), dtype=torch.uint8)
        >>> model(frames, torch.tensor([12, 5])).shape
        torch.Size([2, 10])
        >>> model.outputs(frames, torch.tensor([12, 5])).weights.shape
        torch.Size([2, 2])
    """

    # `reads_bytes` stays False: every branch would dequantise them again.

    def __init__(
        self,
        branches: Sequence[FrameClassifier],
        *,
        weights: Weighting = "input",
        padded_mean: bool = False,
        temperature: float = 1.0,
        distillation: float = 0.0,
        noise: float = 0.0,
        batch_norm_momentum: float = 0.001,
    ) -> None:
        branches = tuple(branches)
        _check(branches)
        if weights not in get_args(Weighting):
            raise ArgumentError(
                f"weights: expected one of {', '.join(get_args(Weighting))}; found {weights!r}"
            )
        if not 0.0 < temperature < float("inf"):
            raise ArgumentError(
                f"temperature: expected a finite number above 0, found {temperature}"
            )
        if not 0.0 <= distillation < float("inf"):
            raise ArgumentError(
                f"distillation: expected a finite number of at least 0, found {distillation}"
            )
        first = branches[0]
        super().__init__(
            first.num_classes,
            feature_sizes=first.feature_sizes,
            normalization=first.normalization.convention,
            eigenvalues=first.normalization.eigenvalues,
            ranges=first.normalization.ranges,
            mean=first.normalization.mean,
            deviation=first.normalization.deviation,
            noise=noise,
        )
        self.weights: Weighting = weights
        self.padded_mean = padded_mean
        self.temperature = temperature
        self.distillation = distillation
        self.branches = nn.ModuleList(branches)
        if weights == "input":
            width = sum(self.feature_sizes)
            self.gate_norm = BatchNorm(width, momentum=batch_norm_momentum, unbiased=True)
            self.gate = he_linear(width, len(branches))
        else:
            self.gate_logits = nn.Parameter(torch.zeros(len(branches)))

    def outputs(
        self, frames: Tensor | np.ndarray, num_frames: Integers | None = None
    ) -> MixtureOutputs:
        """Classifies a padded batch; returns the branches too.

        Args:
            frames: see `forward`.
            num_frames: see `forward`.

        Returns:
            The mix, the logits of the branches, and their weights.

        Raises:
            TypeError: see `forward`.
            ValueError: see `forward`.
        """
        return self._mix(*self.prepare(frames, num_frames))

    def classify(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Classifies prepared frames, see `FrameClassifier.classify`."""
        return self._mix(x, mask).logits

    def training_loss(
        self,
        frames: Tensor | np.ndarray,
        num_frames: Integers | None,
        criterion: Callable[[Tensor], Tensor],
    ) -> Tensor:
        """Returns the loss to minimise: of the mix, of every branch, and the distillation.

        Args:
            frames: see `forward`.
            num_frames: see `forward`.
            criterion: the loss of (B, C) logits.

        Returns:
            A scalar.
        """
        logits, branches, _ = self.outputs(frames, num_frames)
        loss = criterion(logits)
        for branch in branches.unbind(1):
            loss = loss + criterion(branch)
        if self.distillation > 0.0:
            teacher = functional.log_softmax(logits.unsqueeze(1) / self.temperature, dim=-1)
            branches = branches.to(logits.dtype)  # float32 under autocast
            students = functional.log_softmax(branches / self.temperature, dim=-1)
            divergence = functional.kl_div(
                students, teacher.expand_as(students), reduction="batchmean", log_target=True
            )
            loss = loss + self.distillation * divergence
        return loss

    def _mix(self, x: Tensor, mask: Tensor | None) -> MixtureOutputs:
        # The branches' products with the same frames are not merged: one product with all weights
        # is at best 2 % faster, and concatenating the weights costs more.
        logits = [cast(FrameClassifier, branch).classify(x, mask) for branch in self.branches]
        branches = torch.stack(logits).transpose(0, 1)  # each branch contiguous
        weights = self._weigh(x, mask)
        # Not a matrix product: autocast would round the logits.
        return MixtureOutputs((weights.unsqueeze(-1) * branches).sum(1), branches, weights)

    def _weigh(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns (B, M), in the dtype of the parameters."""
        if self.weights == "static":
            return self.gate_logits.softmax(0).expand(x.shape[0], -1)
        with torch.autocast(x.device.type, enabled=False):
            return self.gate(self.gate_norm(self._mean(x, mask))).softmax(-1)

    def _mean(self, x: Tensor, mask: Tensor | None) -> Tensor:
        """Returns the mean over the frames, (B, N); 0 where there are none."""
        if mask is None:
            mask = torch.ones(x.shape[:2], dtype=torch.bool, device=x.device)
        counted = torch.ones_like(mask) if self.padded_mean else mask
        rows = counted.to(x.dtype).unsqueeze(1)
        return torch.bmm(rows, x).squeeze(1) / rows.sum(2).clamp(min=1.0)

    def extra_repr(self) -> str:
        """Returns the options for `repr`."""
        return (
            f"weights={self.weights!r}, padded_mean={self.padded_mean}, "
            f"temperature={self.temperature}, distillation={self.distillation}"
        )


def _check(branches: Sequence[FrameClassifier]) -> None:
    """Raises where branches do not fit together."""
    if not branches:
        raise ArgumentError("branches: expected at least one classifier, found none")
    for index, branch in enumerate(branches):
        if not isinstance(branch, FrameClassifier):
            raise TypeError(
                f"branches: expected classifiers of frames, found {type(branch).__name__} "
                f"at index {index}"
            )
        if branch.noise.sigma != 0.0:
            raise ArgumentError(
                f"branches: expected no noise, as the mixture adds it once for all; found "
                f"{branch.noise.sigma} at index {index}"
            )
        for name, expected, found in (
            ("num_classes", branches[0].num_classes, branch.num_classes),
            ("feature_sizes", branches[0].feature_sizes, branch.feature_sizes),
            (
                "normalization",
                branches[0].normalization.convention,
                branch.normalization.convention,
            ),
            ("ranges", branches[0].normalization.ranges, branch.normalization.ranges),
        ):
            if found != expected:
                raise ArgumentError(
                    f"branches: expected the same {name} in all, found {expected!r} at index 0 "
                    f"and {found!r} at index {index}"
                )
        buffers = dict(branch.normalization.named_buffers())
        for name, ours in branches[0].normalization.named_buffers():
            if ours.device.type != "meta" and not torch.equal(ours, buffers[name]):  # it has values
                raise ArgumentError(
                    f"branches: expected the same {name} in all, found others at index {index}"
                )
