"""The k best segments of every class, kept where a model's scores are: on a GPU."""

from __future__ import annotations

from typing import TypeGuard

import numpy as np
import torch
from torch import Tensor

from pyseg.errors import ArgumentError

_INFINITY, _MINUS_ZERO = 0x7F800000, -(2**31)  # bits of float32
_REST = 2**31 - 1  # all bits but the sign
_NONE = 2**63 - 1  # the key of a pair that is left out: no number has it
_LEAST_NUMBER = ~_INFINITY << 32  # the least key of a number: infinity
_COLLECTED = 2**27  # scores that wait to be ranked
_LEAST_ROOM = 2**12  # segments
_RANKED = 2**24  # keys that are ranked together, whose memory is temporary


class DeviceKeys:
    """Keys of segments on a device: scores of float32 above segment ids, in signed 64 bits.

    They are those of `pyseg.metrics.TopKPerClass` with the highest bit inverted, as torch compares
    signed numbers only: the smaller the better. A NaN is better than any number, so that none is
    lost before `take` finds it.

    A block of scores is copied behind those that wait. When there is no room for it, `torch.topk`
    ranks all of them together with the best so far. Nothing of this waits for the device. Memory is
    at most 16 k C bytes (the best before and after), 5 bytes for each of `_COLLECTED` scores, and
    64 bytes for each of `_RANKED` keys.

    Args:
        num_classes: The number of classes C.
        k: How many segments of each class are kept.
        device: The device.
    """

    def __init__(self, num_classes: int, k: int, device: torch.device) -> None:
        self.num_classes = num_classes
        self.k = k
        self.device = device
        self._best = torch.empty(num_classes, 0, dtype=torch.int64, device=device)
        self._room = _room(num_classes, k)
        self._scores = torch.empty(0, num_classes, device=device)
        self._ids = torch.empty(0, dtype=torch.int64, device=device)
        self._mask: Tensor | None = None
        self._count = 0

    @staticmethod
    def fit(num_classes: int, k: int, device: torch.device) -> bool:
        """Returns whether the keys would take at most half of the device's free memory."""
        if device.type != "cuda":
            return True
        kept, waiting = num_classes * k, num_classes * _room(num_classes, k)
        bytes_needed = 16 * kept + 5 * waiting + 64 * min(_RANKED, kept + waiting)
        return bytes_needed <= torch.cuda.mem_get_info(device)[0] // 2

    def is_near(self, values: object) -> TypeGuard[Tensor]:
        """Returns whether values are a tensor on the device."""
        if not isinstance(values, Tensor) or values.device.type != self.device.type:
            return False
        return self.device.index in (None, values.device.index)

    @torch.inference_mode()
    def add(
        self, ids: np.ndarray | range, scores: Tensor, candidates: Tensor | None = None
    ) -> None:
        """Adds a block of segments.

        Args:
            ids: (S,) uint32; a range is written without a copy from the host.
            scores: (S, C), on the device.
            candidates: (S, C) bool, on the device: which pairs may be ranked; None: all.
        """
        rows = len(scores)
        if self._count + rows > len(self._scores):
            self._make_room(rows)
        place = slice(self._count, self._count + rows)
        if candidates is not None and self._mask is None:
            self._mask = torch.ones(self._scores.shape, dtype=torch.bool, device=self.device)
        if self._mask is not None:
            self._mask[place] = True if candidates is None else candidates
        self._scores[place] = scores
        if isinstance(ids, range):
            torch.arange(ids.start, ids.stop, ids.step, out=self._ids[place])
        else:
            self._ids[place] = torch.from_numpy(ids.astype(np.int64)).to(self.device)
        self._count += rows

    def _make_room(self, rows: int) -> None:
        """Ranks what waits, and makes room for so many rows."""
        room = len(self._scores)
        if self._count + rows <= self._room:  # few segments need little memory
            room = min(self._room, max(2 * room, self._count + rows))
        else:
            self._rank()
            room = max(self._room, rows)
        if room <= len(self._scores):
            return
        kept = slice(0, self._count)
        scores = torch.empty(room, self.num_classes, device=self.device)
        ids = torch.empty(room, dtype=torch.int64, device=self.device)
        scores[kept], ids[kept] = self._scores[kept], self._ids[kept]
        if self._mask is not None:
            mask = torch.ones(scores.shape, dtype=torch.bool, device=self.device)
            mask[kept] = self._mask[kept]
            self._mask = mask
        self._scores, self._ids = scores, ids

    def _rank(self) -> None:
        """Ranks the scores that wait, after which none does."""
        count, before = self._count, self._best.shape[1]
        if not count:
            return
        width = min(self.k, before + count)
        best = self._best
        if width > before:
            best = torch.empty(self.num_classes, width, dtype=torch.int64, device=self.device)
        classes = max(1, _RANKED // (before + count))
        for first in range(0, self.num_classes, classes):
            part = slice(first, first + classes)
            keys = torch.cat((self._best[part], self._keys(part)), dim=1)
            if width < keys.shape[1]:
                keys = keys.topk(width, dim=1, largest=False, sorted=False).values
            best[part] = keys
        self._best, self._count = best, 0

    def _keys(self, classes: slice) -> Tensor:
        """Returns the keys (classes, rows) of the scores that wait."""
        bits = self._scores[: self._count, classes].t().contiguous().view(torch.int32)
        nan = (bits & _REST) > _INFINITY
        bits = torch.where(nan, _REST, bits.masked_fill_(bits == _MINUS_ZERO, 0))
        falling = bits ^ ~((bits >> 31) & _REST)
        keys = (falling.long() << 32) | self._ids[: self._count]
        if self._mask is None:
            return keys
        kept = self._mask[: self._count, classes].t() | nan  # a NaN is an error in any pair
        return torch.where(kept, keys, _NONE)

    @torch.inference_mode()
    def take(self) -> list[np.ndarray]:
        """Returns the keys of each class as `TopKPerClass` keeps them, uint64 in any order.

        Afterwards there are none here. This waits for the device.

        Raises:
            ValueError: One of the scores is a NaN.
        """
        self._rank()
        best = self._best
        self._best = best[:, :0].clone()
        if best.shape[1]:
            self._refuse_nan(best)
        classes = max(1, _RANKED // max(1, best.shape[1]))
        taken = []
        for part in best.split(classes):
            flipped = (part ^ torch.iinfo(torch.int64).min).cpu().numpy().view(np.uint64)
            taken += [keys[keys != 2**64 - 1] for keys in flipped]
        return taken

    def _refuse_nan(self, best: Tensor) -> None:
        first = best.amin(dim=1)
        wrong = (first < _LEAST_NUMBER).nonzero()
        if len(wrong):
            label = int(wrong[0])
            segment = int(first[label]) & (2**32 - 1)
            raise ArgumentError(
                f"scores: expected numbers, found NaN for segment {segment} and class {label}"
            )


def _room(num_classes: int, k: int) -> int:
    """Returns how many segments wait to be ranked, at most."""
    return min(max(k, _LEAST_ROOM), max(1, _COLLECTED // num_classes))
