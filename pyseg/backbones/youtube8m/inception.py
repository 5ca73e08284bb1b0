"""Inception-v3 as TensorFlow published it on 2015-12-05, up to its last pooling.

The graph differs from torchvision's Inception in its weights, in its 1,008 classes, in average
pooling, which leaves padding out of the count, and in its last block, which pools the maximum.
Modules have the names of torchvision's, as the state dict of pytorch-fid has them.

Sources: Szegedy et al., "Rethinking the Inception Architecture for Computer Vision" (2016); the
graph ``classify_image_graph_def.pb``.
"""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Sequence
from typing import NamedTuple

import torch
from torch import Tensor, nn
from torch.nn import functional

SIZE = 299
WIDTH = 2048
CLASSES = 1008
"""Outputs of its classifier ``fc``, by which its weights are told from those of others."""


class Pool(NamedTuple):
    """Pooling over 3x3 places."""

    kind: str  # "average" or "max"
    stride: int = 1

    def __call__(self, x: Tensor) -> Tensor:
        """Returns the pooled maps."""
        padding = 1 if self.stride == 1 else 0
        if self.kind == "max":
            return functional.max_pool2d(x, 3, self.stride, padding)
        return functional.avg_pool2d(x, 3, self.stride, padding, count_include_pad=False)


class Layer(NamedTuple):
    """A convolution of a block: the name of its module, its width, and its kernel."""

    name: str
    width: int
    kernel: tuple[int, int] = (1, 1)
    stride: int = 1


Step = Pool | Layer | tuple[Layer, Layer]  # a pair gets the same input, and ends its branch
Branch = Sequence[Step]

_3X3, _5X5, _1X3, _3X1, _1X7, _7X1 = (3, 3), (5, 5), (1, 3), (3, 1), (1, 7), (7, 1)


def _block_5(pooled: int) -> tuple[Branch, ...]:
    return (
        [Layer("branch1x1", 64)],
        [Layer("branch5x5_1", 48), Layer("branch5x5_2", 64, _5X5)],
        [
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, _3X3),
            Layer("branch3x3dbl_3", 96, _3X3),
        ],
        [Pool("average"), Layer("branch_pool", pooled)],
    )


def _block_6a() -> tuple[Branch, ...]:
    return (
        [Layer("branch3x3", 384, _3X3, 2)],
        [
            Layer("branch3x3dbl_1", 64),
            Layer("branch3x3dbl_2", 96, _3X3),
            Layer("branch3x3dbl_3", 96, _3X3, 2),
        ],
        [Pool("max", 2)],
    )


def _block_6(width: int) -> tuple[Branch, ...]:
    return (
        [Layer("branch1x1", 192)],
        [
            Layer("branch7x7_1", width),
            Layer("branch7x7_2", width, _1X7),
            Layer("branch7x7_3", 192, _7X1),
        ],
        [
            Layer("branch7x7dbl_1", width),
            Layer("branch7x7dbl_2", width, _7X1),
            Layer("branch7x7dbl_3", width, _1X7),
            Layer("branch7x7dbl_4", width, _7X1),
            Layer("branch7x7dbl_5", 192, _1X7),
        ],
        [Pool("average"), Layer("branch_pool", 192)],
    )


def _block_7a() -> tuple[Branch, ...]:
    return (
        [Layer("branch3x3_1", 192), Layer("branch3x3_2", 320, _3X3, 2)],
        [
            Layer("branch7x7x3_1", 192),
            Layer("branch7x7x3_2", 192, _1X7),
            Layer("branch7x7x3_3", 192, _7X1),
            Layer("branch7x7x3_4", 192, _3X3, 2),
        ],
        [Pool("max", 2)],
    )


def _block_7(pool: str) -> tuple[Branch, ...]:
    return (
        [Layer("branch1x1", 320)],
        [
            Layer("branch3x3_1", 384),
            (Layer("branch3x3_2a", 384, _1X3), Layer("branch3x3_2b", 384, _3X1)),
        ],
        [
            Layer("branch3x3dbl_1", 448),
            Layer("branch3x3dbl_2", 384, _3X3),
            (Layer("branch3x3dbl_3a", 384, _1X3), Layer("branch3x3dbl_3b", 384, _3X1)),
        ],
        [Pool(pool), Layer("branch_pool", 192)],
    )


_STEM = ("Conv2d_1a_3x3", "Conv2d_2a_3x3", "Conv2d_2b_3x3", "Conv2d_3b_1x1", "Conv2d_4a_3x3")

_BLOCKS: dict[str, tuple[Branch, ...]] = {
    "Mixed_5b": _block_5(32),
    "Mixed_5c": _block_5(64),
    "Mixed_5d": _block_5(64),
    "Mixed_6a": _block_6a(),
    "Mixed_6b": _block_6(128),
    "Mixed_6c": _block_6(160),
    "Mixed_6d": _block_6(160),
    "Mixed_6e": _block_6(192),
    "Mixed_7a": _block_7a(),
    "Mixed_7b": _block_7("average"),
    "Mixed_7c": _block_7("max"),
}


class ConvNorm(nn.Module):
    """Convolution, batch norm and ReLU."""

    def __init__(
        self, channels: int, width: int, kernel: tuple[int, int], stride: int, padded: bool
    ) -> None:
        """Makes the layer; a padded one keeps height and width."""
        super().__init__()
        padding = (kernel[0] // 2, kernel[1] // 2) if padded else (0, 0)
        self.conv = nn.Conv2d(channels, width, kernel, stride, padding, bias=False)
        self.bn = nn.BatchNorm2d(width, eps=1e-3)

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maps (B, width, H, W) of maps (B, channels, H, W)."""
        return functional.relu(self.bn(self.conv(x)))


class Mixed(nn.Module):
    """A block: branches that get the same input, and whose outputs are put side by side."""

    def __init__(self, channels: int, branches: Sequence[Branch]) -> None:
        """Makes the block for maps of `channels`."""
        super().__init__()
        self._branches = branches
        self.width = 0
        for branch in branches:
            width = channels
            for step in branch:
                if isinstance(step, Pool):
                    continue
                pair = (step,) if isinstance(step, Layer) else step
                for layer in pair:
                    padded = layer.stride == 1
                    self.add_module(layer.name, ConvNorm(width, *layer[1:], padded))
                width = sum(layer.width for layer in pair)
            self.width += width

    def forward(self, x: Tensor) -> Tensor:
        """Returns the maps (B, width, H, W) of maps (B, channels, H, W)."""
        return torch.cat([part for branch in self._branches for part in self._run(branch, x)], 1)

    def _run(self, branch: Branch, x: Tensor) -> list[Tensor]:
        parts = [x]
        for step in branch:
            if isinstance(step, Pool):
                parts = [step(parts[0])]
            else:
                pair = (step,) if isinstance(step, Layer) else step
                parts = [self.get_submodule(layer.name)(parts[0]) for layer in pair]
        return parts


class Inception(nn.Module):
    """The network, from an image to the 2,048 values that its graph calls ``pool_3``."""

    def __init__(self) -> None:
        """Makes the network with random weights, in inference mode."""
        super().__init__()
        channels = 3
        for name, width, stride, padded in zip(
            _STEM, (32, 32, 64, 80, 192), (2, 1, 1, 1, 1), (0, 0, 1, 0, 0), strict=True
        ):
            kernel = (1, 1) if name.endswith("1x1") else _3X3
            self.add_module(name, ConvNorm(channels, width, kernel, stride, bool(padded)))
            channels = width
        for name, branches in _BLOCKS.items():
            block = Mixed(channels, branches)
            self.add_module(name, block)
            channels = block.width
        self.eval().requires_grad_(False)

    def forward(self, images: Tensor) -> Tensor:
        """Returns the features (B, 2048), all >= 0.

        Args:
            images: (B, 3, 299, 299) RGB, as `prepare` makes them.
        """
        x = images
        for name, module in self.named_children():
            x = module(x)
            if name in ("Conv2d_2b_3x3", "Conv2d_4a_3x3"):
                x = functional.max_pool2d(x, 3, 2)
        return x.mean((2, 3))


def prepare(images: Tensor) -> Tensor:
    """Returns the network's input (B, 3, 299, 299) for images (B, H, W, 3) uint8 RGB of any size.

    Images are stretched to 299x299, without regard to their aspect, and scaled to [-1, 1). In
    memory, the channels of a pixel stay side by side, which is the fastest order for CPUs.

    Example:
        >>> prepare(torch.full((1, 480, 640, 3), 64, dtype=torch.uint8)).unique()
        tensor([-0.5000])
    """
    return (resize(images, SIZE).permute(0, 3, 1, 2) - 128) / 128


def resize(images: Tensor, size: int) -> Tensor:
    """Returns images (B, H, W, 3) resized to (B, size, size, 3), as float32.

    This is ``ResizeBilinear`` of TensorFlow 1: the value at place i is interpolated between the
    two pixels around i * H / size, so that places are not centers of pixels, and pixels between
    are left out where an image shrinks.

    Example:
        >>> image = torch.tensor([[0, 10], [20, 30]], dtype=torch.uint8).reshape(1, 2, 2, 1)
        >>> resize(image, 4)[0, :, :, 0]
        tensor([[ 0.,  5., 10., 10.],
                [10., 15., 20., 20.],
                [20., 25., 30., 30.],
                [20., 25., 30., 30.]])
    """
    top, bottom, down = _places(images.shape[1], size, images.device)
    left, right, along = _places(images.shape[2], size, images.device)
    along = along[:, None]
    rows = []
    for row in (top[:, None], bottom[:, None]):
        start, end = images[:, row, left].float(), images[:, row, right].float()
        rows.append(start + (end - start) * along)
    return rows[0] + (rows[1] - rows[0]) * down[:, None, None]


def _places(length: int, size: int, device: torch.device) -> tuple[Tensor, Tensor, Tensor]:
    """Returns the pixels before and after each place, and how far it lies between them."""
    step = torch.tensor(length, dtype=torch.float32) / size
    at = torch.arange(size, dtype=torch.float32) * step
    before = at.long()
    after = (before + 1).clamp_max(length - 1)
    return before.to(device), after.to(device), (at - before).to(device)


def graph_names() -> Iterator[tuple[str, str]]:
    """Yields the name of every `ConvNorm`, and of its scope in ``classify_image_graph_def.pb``.

    Example:
        >>> names = dict(graph_names())
        >>> names["Conv2d_2a_3x3"], names["Mixed_5b.branch3x3dbl_2"], names["Mixed_7c.branch_pool"]
        ('conv_1', 'mixed/tower_1/conv_1', 'mixed_10/tower_2/conv')
    """
    for number, name in enumerate(_STEM):
        yield name, _numbered("conv", number)
    for number, (block, branches) in enumerate(_BLOCKS.items()):
        towers = itertools.count()
        for branch in branches:
            scope = _numbered("mixed", number)
            if len(branch) > 1:
                scope += "/" + _numbered("tower", next(towers))
            layers = [step for step in branch if not isinstance(step, Pool)]
            for place, step in enumerate(layers):
                if isinstance(step, Layer):
                    yield f"{block}.{step.name}", f"{scope}/{_numbered('conv', place)}"
                else:
                    for which, layer in enumerate(step):
                        yield f"{block}.{layer.name}", f"{scope}/mixed/{_numbered('conv', which)}"


def _numbered(name: str, number: int) -> str:
    return f"{name}_{number}" if number else name
