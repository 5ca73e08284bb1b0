"""What a step of training does: loss, gradients, optimizer, moving average."""

from __future__ import annotations

import copy
from collections.abc import Mapping
from typing import Any

import torch
from torch import Tensor, nn

from pyseg import distributed
from pyseg._precision import Precision
from pyseg.config import StageConfig, TrainConfig
from pyseg.errors import UserError
from pyseg.nn import FrameClassifier, l2_penalty, learning_rate_groups


class Step(nn.Module):
    """Model and loss as one module, so that both are compiled and distributed together."""

    model: FrameClassifier
    loss: nn.Module

    def __init__(self, model: FrameClassifier, loss: nn.Module, l2: float) -> None:
        super().__init__()
        self.model = model
        self.loss = loss
        self.l2 = l2

    def forward(
        self, frames: Tensor, num_frames: Tensor, offsets: Tensor, classes: Tensor, scores: Tensor
    ) -> Tensor:
        """Returns the loss of a batch, with the L2 penalty."""

        def criterion(logits: Tensor) -> Tensor:
            loss = self.loss(logits, offsets, classes, scores)
            if not isinstance(loss, Tensor) or loss.dim() or not loss.requires_grad:
                kind = f"shape {tuple(loss.shape)}" if isinstance(loss, Tensor) else type(loss)
                raise UserError(
                    f"{type(self.loss).__name__}: expected a loss that is a scalar tensor with a "
                    f"gradient, found {kind}"
                )
            return loss

        loss = self.model.training_loss(frames, num_frames, criterion)
        return loss + l2_penalty(self.model, self.l2) if self.l2 else loss


class Optimization:
    """A model that is being trained, and all that a step changes beside its weights.

    Unless the precision is "fp16", nothing in a step waits for a GPU.

    Args:
        model: The model, on its device.
        loss: The loss, likewise.
        config: The options of the stage.
        options: The options of the run, of which precision and compile count.

    Attributes:
        average: The model with the moving average of the weights, if there is one.

    Example:
        >>> import numpy as np
        >>> from pyseg import models
        >>> from pyseg.data import Example, collate
        >>> from pyseg.training import Loss
        >>> example = Example("v", np.zeros((5, 1152), np.uint8), np.array([2]), np.ones(1))
        >>> model = models.create("mlp", num_classes=3)
        >>> optimization = Optimization(model, Loss(), StageConfig(1, 1e-3), TrainConfig())
        >>> losses = [float(optimization.step(*collate([example]).tensors)) for _ in range(9)]
        >>> losses[-1] < losses[0]
        True
    """

    def __init__(
        self, model: FrameClassifier, loss: nn.Module, config: StageConfig, options: TrainConfig
    ) -> None:
        self._model = model
        self._loss = loss
        self._config = config
        self._device = next(model.parameters()).device
        self._precision = Precision(options.precision or "fp32")
        # First, before the weights are copied: it broadcasts those of the first process.
        step = distributed.parallel(Step(model, loss, config.l2))
        self._loss_of = torch.compile(step) if options.compile else step
        groups = learning_rate_groups(model)
        self._factors = [factor for factor, _ in groups]
        # fused: one pass over the weights instead of a dozen, which would be half of a short step.
        self._optimizer = torch.optim.Adam([{"params": each} for _, each in groups], fused=True)
        self.set_rate(config.learning_rate)
        self._scaler = torch.amp.GradScaler(
            self._device.type, enabled=self._precision.name == "fp16"
        )
        self.average = copy.deepcopy(model) if config.ema else None
        self._averages = False  # whether the average is of later weights than the first ones

    def keep_rate_on_device(self) -> None:
        """Makes the learning rate a tensor: a CUDA graph would hold a number for good."""
        for group in self._optimizer.param_groups:
            group["lr"] = torch.tensor(float(group["lr"]), device=self._device)
            group["capturable"] = True

    def set_rate(self, rate: float) -> None:
        """Sets the learning rate of the next step, from which some parameters' may differ.

        Args:
            rate: The rate of all parameters that no module has a factor for, see
                `pyseg.nn.learning_rate_groups`.
        """
        for group, factor in zip(self._optimizer.param_groups, self._factors, strict=True):
            if isinstance(group["lr"], Tensor):
                group["lr"].fill_(rate * factor)
            else:
                group["lr"] = rate * factor

    def step(self, *tensors: Tensor) -> Tensor:
        """Takes a step on `pyseg.data.Batch.tensors`; returns the loss, without a gradient."""
        loss = self.forward(*tensors)
        self.update(loss)
        return loss.detach()

    def forward(self, *tensors: Tensor) -> Tensor:
        """Returns the loss of `pyseg.data.Batch.tensors`, the first half of a step."""
        self._optimizer.zero_grad(set_to_none=True)
        with self._precision.autocast(self._device):
            loss: Tensor = self._loss_of(*tensors)
        return loss

    def update(self, loss: Tensor) -> None:
        """Changes the weights and their moving average, the second half of a step."""
        self._scaler.scale(loss).backward()
        if self._config.clip_norm is not None:
            self._scaler.unscale_(self._optimizer)
            torch.nn.utils.clip_grad_norm_(self._model.parameters(), self._config.clip_norm)
        self._scaler.step(self._optimizer)
        self._scaler.update()
        if self.average is not None:
            self._update_average(self.average)

    @torch.no_grad()
    def _update_average(self, average: FrameClassifier) -> None:
        """Moves the average towards the weights; it starts with those after the first step."""
        share = 1.0 - self._config.ema if self._averages else 1.0
        torch._foreach_lerp_(list(average.parameters()), list(self._model.parameters()), share)
        for own, latest in zip(average.buffers(), self._model.buffers(), strict=True):
            own.copy_(latest)
        self._averages = True

    def state(self) -> dict[str, Any]:
        """Returns what a checkpoint stores of it."""
        return {
            "model": self._model.state_dict(),
            "loss": self._loss.state_dict(),
            "optimizer": self._optimizer.state_dict(),
            "scaler": self._scaler.state_dict(),
            "average": None if self.average is None else self.average.state_dict(),
            "averages": self._averages,
        }

    def restore(self, state: Mapping[str, Any]) -> None:
        """Restores `state`, also that of another device."""
        self._model.load_state_dict(state["model"])
        self._loss.load_state_dict(state["loss"])
        own = [(group["lr"], group["capturable"]) for group in self._optimizer.param_groups]
        self._optimizer.load_state_dict(state["optimizer"])
        for group, (rate, capturable) in zip(self._optimizer.param_groups, own, strict=True):
            group["lr"], group["capturable"] = rate, capturable
        self._scaler.load_state_dict(state["scaler"])
        if self.average is not None:
            self.average.load_state_dict(state["average"])
        self._averages = state["averages"]
