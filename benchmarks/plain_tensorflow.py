"""Models in plain TensorFlow, for comparison in the benchmarks on a CPU.

Import it only if `measure.tensorflow` finds TensorFlow.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import plain
from measure import tensorflow
from torch import Tensor, nn

from pyseg.nn import NeXtVLAD

tf: Any = tensorflow()


def variable(tensor: Tensor, trainable: bool = True) -> Any:
    return tf.Variable(tensor.detach().numpy(), trainable=trainable)


class Linear(tf.Module):
    def __init__(self, linear: nn.Linear) -> None:
        super().__init__()
        self.weight = variable(linear.weight.T)
        self.bias = None if linear.bias is None else variable(linear.bias)

    def __call__(self, x: Any) -> Any:
        return x @ self.weight if self.bias is None else x @ self.weight + self.bias


class BatchNorm(tf.Module):
    def __init__(self, norm: Any) -> None:
        super().__init__()
        self.scale, self.shift = variable(norm.weight), variable(norm.bias)
        self.mean, self.variance = (
            variable(tensor, trainable=False) for tensor in (norm.running_mean, norm.running_var)
        )
        self.eps, self.momentum = norm.eps, norm.momentum

    def __call__(self, x: Any, training: bool) -> Any:
        mean, variance = self.mean, self.variance
        if training:
            mean, variance = tf.nn.moments(x, [0])
            self.mean.assign_sub(self.momentum * (self.mean - mean))
            self.variance.assign_sub(self.momentum * (self.variance - variance))
        return tf.nn.batch_normalization(x, mean, variance, self.shift, self.scale, self.eps)


class PlainNeXtVLAD(tf.Module):
    """The layer in plain TensorFlow, with copies of the weights of `layer`."""

    def __init__(self, layer: NeXtVLAD | plain.PlainNeXtVLAD) -> None:
        super().__init__()
        self.expand, self.attention = Linear(layer.expand), Linear(layer.attention)
        self.assign, self.centers = Linear(layer.assign), variable(layer.centers)
        self.groups, self.clusters = layer.groups, layer.clusters
        self.assign_norm, self.norm = BatchNorm(layer.assign_norm), BatchNorm(layer.norm)

    def __call__(self, frames: Any, mask: Any | None = None, *, training: bool) -> Any:
        batch, length, size = frames.shape
        expanded = self.expand(tf.reshape(frames, [-1, size]))
        attention = tf.reshape(tf.sigmoid(self.attention(expanded)), [batch, length, -1])
        if mask is not None:
            attention *= mask
        attention = tf.reshape(attention, [batch, -1, 1])
        assignment = self.assign_norm(self.assign(expanded), training)
        weights = tf.nn.softmax(tf.reshape(assignment, [batch, -1, self.clusters])) * attention
        rows = tf.reshape(expanded, [batch, length * self.groups, -1])
        vlad = tf.matmul(rows, weights, transpose_a=True)
        vlad -= self.centers * tf.reduce_sum(weights, 1, keepdims=True)
        vlad = tf.nn.l2_normalize(vlad, 1)
        return self.norm(tf.reshape(vlad, [batch, -1]), training)


class PlainClassifier(tf.Module):
    """The classifier in plain TensorFlow, with copies of the weights of `model`."""

    def __init__(self, model: plain.PlainClassifier) -> None:
        super().__init__()
        self.sizes, self.rate = list(model.sizes), model.dropout.p
        self.branches = [PlainNeXtVLAD(branch) for branch in model.branches]
        self.hidden, self.head = Linear(model.hidden), Linear(model.head)
        self.squeeze, self.excite = Linear(model.squeeze), Linear(model.excite)
        self.hidden_norm, self.gate_norm = BatchNorm(model.hidden_norm), BatchNorm(model.gate_norm)

    def __call__(self, frames: Any, num_frames: Any, *, training: bool) -> Any:
        mask = tf.sequence_mask(num_frames, frames.shape[1], tf.float32)[:, :, None]
        x = (tf.cast(frames, tf.float32) * (4.0 / 255.0) + (4.0 / 512.0 - 2.0)) * mask
        parts = zip(self.branches, tf.split(x, self.sizes, -1), strict=True)
        aggregates = tf.concat([branch(x, mask, training=training) for branch, x in parts], -1)
        if training:
            aggregates = tf.nn.dropout(aggregates, self.rate)
        hidden = self.hidden_norm(self.hidden(aggregates), training)
        gate = self.excite(tf.nn.relu(self.gate_norm(self.squeeze(hidden), training)))
        return self.head(hidden * tf.sigmoid(gate))


def layer_step(layer: NeXtVLAD, frames: Tensor, grad: Tensor | None) -> Callable[[], object]:
    """Returns the layer's output, or with `grad` the gradients of its weights, as a tf.function."""
    model = PlainNeXtVLAD(layer)
    x, g = tf.constant(frames.numpy()), None if grad is None else tf.constant(grad.numpy())

    @tf.function
    def step(x: Any, g: Any | None) -> Any:
        if g is None:
            return [model(x, training=False)]
        with tf.GradientTape() as tape:
            loss = tf.reduce_sum(model(x, training=True) * g)
        return tape.gradient(loss, model.trainable_variables)

    return lambda: step(x, g)[0].numpy()


def training_step(
    classifier: plain.PlainClassifier,
    frames: Tensor,
    num_frames: Tensor,
    targets: Tensor,
    learning_rate: float,
) -> Callable[[], float]:
    """Returns a training step with Adam, as a tf.function that returns the loss before the step."""
    model = PlainClassifier(classifier)
    # The one of TensorFlow's two Adams whose update is a single operation.
    optimizer = tf.compat.v1.train.AdamOptimizer(learning_rate)
    x, count, y = (tf.constant(tensor.numpy()) for tensor in (frames, num_frames, targets))

    @tf.function
    def step(x: Any, count: Any, y: Any) -> Any:
        with tf.GradientTape() as tape:
            logits = model(x, count, training=True)
            entropy = tf.nn.sigmoid_cross_entropy_with_logits(labels=y, logits=logits)
            loss = tf.reduce_sum(entropy) / len(frames)
        variables = model.trainable_variables
        optimizer.apply_gradients(zip(tape.gradient(loss, variables), variables, strict=True))
        return loss

    return lambda: float(step(x, count, y).numpy())
