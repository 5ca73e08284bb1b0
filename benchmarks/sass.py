"""Machine instructions of the CUDA kernels: what they cost, told without a GPU.

    python benchmarks/sass.py

`parse` reads the instructions and loops of kernels from cuobjdump's output; cmake/check_cuda.py
keeps them in csrc/cuda/resources.
"""

from __future__ import annotations

import re
from dataclasses import dataclass, field

# A line of csrc/cuda/resources, as cmake/check_cuda.py writes it.
LINE = re.compile(
    r"(?P<arch>sm_\d+): (?P<registers>\d+) registers, (?P<shared>\d+) B shared, "
    r"(?P<stack>\d+) B stack, (?P<spilled>\d+) B spilled, "
    r"instructions (?P<instructions>[\d+() ]+): (?P<name>.*)"
)
_FUNCTION = re.compile(r"^\s*Function : (\S+)$", re.M)
_INSTRUCTION = re.compile(
    r"^\s*/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?([A-Z][\w.]*)([^;]*);", re.M
)
_BRANCH_TARGET = re.compile(r"0x([0-9a-f]+)\s*$")
_MATRIX_PRODUCT = re.compile(r"^[A-Z]*MMA\b")


@dataclass
class Loop:
    """A loop, or a whole kernel.

    Attributes:
        instructions: Its instructions, without those of loops in it. Instructions that a branch may
            skip count.
        products: The matrix products among them (HMMA, HGMMA).
        loops: The loops in it, in the order of their addresses.
    """

    instructions: int = 0
    products: int = 0
    loops: list[Loop] = field(default_factory=list)

    def __str__(self) -> str:
        """Returns its notation: 40+8(12 7(3)) has 40 instructions and 8 products, and two loops."""
        inner = f"({' '.join(map(str, self.loops))})" if self.loops else ""
        return f"{self.instructions}{f'+{self.products}' if self.products else ''}{inner}"

    def total(self) -> int:
        """Returns the instructions and products, with those of loops in it, each counted once."""
        return self.instructions + self.products + sum(loop.total() for loop in self.loops)


def parse(listing: str) -> dict[str, Loop]:
    """Returns the kernels of ``cuobjdump -sass``, by their symbols.

    A loop is what a backward branch encloses; branches to the same place make one loop.
    """
    parts = _FUNCTION.split(listing)
    return {name: _kernel(code) for name, code in zip(parts[1::2], parts[2::2], strict=True)}


def _kernel(code: str) -> Loop:
    instructions = [(int(at, 16), name, rest) for at, name, rest in _INSTRUCTION.findall(code)]
    ends: dict[int, int] = {}  # the last address of the loop that begins at an address
    for at, name, rest in instructions:
        target = _BRANCH_TARGET.search(rest)
        if name.startswith("BRA") and target and int(target[1], 16) < at:
            ends[int(target[1], 16)] = at
    kernel = Loop()
    open_loops = [(kernel, instructions[-1][0] if instructions else 0)]
    for at, name, _ in instructions:
        while at > open_loops[-1][1]:
            open_loops.pop()
        if at in ends:
            loop = Loop()
            open_loops[-1][0].loops.append(loop)
            open_loops.append((loop, min(ends[at], open_loops[-1][1])))
        if _MATRIX_PRODUCT.match(name):
            open_loops[-1][0].products += 1
        elif name != "NOP":
            open_loops[-1][0].instructions += 1
    return kernel


def read(notation: str) -> Loop:
    """Returns the loop of a notation, see `Loop.__str__`."""
    open_loops = [Loop()]
    for token in re.findall(r"\d+(?:\+\d+)?|[()]", notation):
        if token == "(":
            open_loops.append(open_loops[-1].loops[-1])
        elif token == ")":
            open_loops.pop()
        else:
            instructions, _, products = token.partition("+")
            open_loops[-1].loops.append(Loop(int(instructions), int(products or 0)))
    return open_loops[0].loops[0]
