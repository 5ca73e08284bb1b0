"""Calls pyseg's fused aggregation from another project: a NetVLAD layer for image descriptors.

    python examples/python/netvlad.py

NetVLAD is the op with one group and an attention of ones. Nothing else of pyseg is needed; without
a compiled kernel, the same call runs in plain PyTorch.
"""

from __future__ import annotations

import torch
from torch import Tensor, nn

import pyseg


class NetVLAD(nn.Module):
    """Pools the local descriptors of an image (Arandjelovic et al., CVPR 2016).

    Example:
        >>> import torch
        >>> NetVLAD(width=32, clusters=8)(torch.randn(2, 49, 32)).shape
        torch.Size([2, 256])
    """

    def __init__(self, width: int, clusters: int) -> None:
        """Creates the layer for descriptors of size ``width``."""
        super().__init__()
        self.assign = nn.Linear(width, clusters)
        self.centers = nn.Parameter(torch.randn(width, clusters) / width**0.5)

    def forward(self, descriptors: Tensor) -> Tensor:
        """Returns (B, F * K) for descriptors (B, T, F)."""
        features = descriptors.unsqueeze(2)  # one group
        attention = descriptors.new_ones(features.shape[:3])
        assignment = self.assign(features)
        vlad = pyseg.ops.vlad_aggregate(features, assignment, attention, self.centers)
        return nn.functional.normalize(vlad.flatten(1), dim=1)


def main() -> None:
    """Trains the layer to classify two kinds of images by their descriptors."""
    torch.manual_seed(0)
    directions = torch.randn(2, 32)
    kinds = torch.arange(128) % 2
    # Of 49 descriptors of an image, the first 5 determine its kind.
    images = torch.randn(128, 49, 32)
    images[:, :5] += 3 * directions[kinds].unsqueeze(1)
    model = nn.Sequential(NetVLAD(32, 8), nn.Linear(256, 2))
    optimizer = torch.optim.Adam(model.parameters(), lr=1e-2)
    for step in range(30):
        loss = nn.functional.cross_entropy(model(images), kinds)
        optimizer.zero_grad()
        loss.backward()
        optimizer.step()
        if step % 10 == 0:
            print(f"step {step}: loss {loss.item():.3f}")
    accuracy = (model(images).argmax(1) == kinds).float().mean().item()
    print(f"accuracy {accuracy:.2f}")


if __name__ == "__main__":
    main()
