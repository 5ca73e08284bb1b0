"""Machine instructions of the CUDA kernels: what they cost, told without a GPU.

    python benchmarks/sass.py

`parse` reads the instructions and loops of kernels from cuobjdump's output; cmake/check_cuda.py
keeps them in csrc/cuda/resources. From those files the command above prints a table of the main
kernels in bfloat16: the instructions and bytes of a unit of work, and the times that a GPU's issue
slots, tensor cores and memory need for it. The largest of the three is a bound.

These are predictions; nothing is measured. They leave out every latency, so also what few warps
cannot hide, the wavefronts and bank conflicts of shared memory, the throughput of exponentials and
conversions, the code before and after the main loop unless an entry counts it, and the cache: bytes
are those that a kernel asks for. Instructions that a branch may skip count in full, where an entry
does not say otherwise.
"""

from __future__ import annotations

import argparse
import re
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

RESOURCES = Path(__file__).resolve().parent.parent / "csrc" / "cuda" / "resources"

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


@dataclass(frozen=True)
class Machine:
    """A GPU.

    Attributes:
        multiprocessors: Each has four schedulers, which issue one instruction a cycle.
        clock: In GHz, the highest.
        bandwidth: Of memory, in TB/s.
        product_cycles: For which mma.m16n8k16 keeps a scheduler's tensor core busy.
        shared: Bytes of a multiprocessor's shared memory.
    """

    multiprocessors: int
    clock: float
    bandwidth: float
    product_cycles: int
    shared: int

    def warps(self, registers: int, shared: int, threads: int) -> int:
        """Returns how many warps of a kernel a multiprocessor holds, see CUDA's occupancy rules."""
        warps = threads // 32
        of_warp = -(-registers * 32 // 256) * 256  # registers are allocated in such units
        return warps * min(64 // warps, 65536 // of_warp // warps, self.shared // (shared + 1024))

    def nanoseconds(self, cycles: float) -> float:
        """Returns the time of so many cycles of one scheduler, spread over all of them."""
        return cycles / (4 * self.multiprocessors * self.clock)


# Multiprocessors, clocks and the bandwidth of the A100 are those of NVIDIA's data sheets of H100
# and H200 SXM, and A100 SXM 40 GB. Their dense rates of bfloat16, 989 and 312 TFLOP/s, are those of
# the cycles of a product. Of the H200's 4.8 TB/s a copy is assumed to reach 4.0.
MACHINES = {
    "sm_90": Machine(132, 1.755, 4.0, 4, 228 * 1024),
    "sm_80": Machine(108, 1.41, 1.6, 8, 164 * 1024),
}

# How often a loop runs each time that the loop around it runs, on average over the warps of a
# block: a number for a loop without loops in it, else a tuple of the number and the trips of those,
# in the order of the notation. 0 stands for a loop with all that is in it.
Trips = float | tuple[Any, ...]


@dataclass(frozen=True)
class Entry:
    """A kernel of the table.

    Attributes:
        title: Of its row.
        kernel: Its name in csrc/cuda/resources.
        unit: Of work.
        units: That a warp does while the trips run, on average.
        bytes: Of global memory for a unit, read and written.
        trips: Of the kernel's loops, by architecture. What belongs to no unit is 0.
        outside: How often the instructions outside of loops run for a unit.
        threads: Of a block.
        shared: Bytes of dynamic shared memory.
    """

    title: str
    kernel: str
    unit: str
    units: float
    bytes: float
    trips: dict[str, tuple[Trips, ...]]
    outside: float = 0
    threads: int = 256
    shared: int = 0


# The aggregations have the sizes of benchmarks/bench_vlad.py: B = 80, T = 300, G = 8, F = 288 and
# K = 112, with a batch normalisation from the batch. A row is one group of a frame.
_SCORES, _FEATURES, _MATRIX = 2 * 112, 2 * 288, 288 * 112


def _soft_assign(
    title: str, kernel: str, size: float, shares: tuple[float, float], shared: int = 0
) -> Entry:
    """Returns an entry of soft_assign.cuh, where a warp takes two rows at a time.

    Args:
        size: Bytes of a row.
        shares: Of the loop's instructions, on sm_90 and sm_80, that serve this order of weights: by
            the loops of kernels that were compiled for one of the two orders alone.
    """
    trips: dict[str, tuple[Trips, ...]] = {
        arch: (share,) for arch, share in zip(MACHINES, shares, strict=True)
    }
    name = f"pyseg::gpu::soft_assign_{kernel}".replace(
        "<", "<pyseg::gpu::RowPlan<__nv_bfloat16, 16, 1>"
    )
    return Entry(title, name, "row", 2, size, trips, shared=shared)


def _forward(softmax: Trips) -> tuple[Trips, ...]:
    """Returns the trips for a chunk of 32 rows, which 12 warps share.

    `softmax`: of one of the two places of the softmax. 8 warps have rows of it, 4 in each place.
    Behind them are the tiles of the mass, which 7 warps have, and 12 loops for numbers of other
    tiles. Half of the warps have 3 x 3 and half 3 x 4 of those. A loop over tiles has two steps.
    """
    unaligned = 0
    chunk = (1, unaligned, unaligned, softmax, 2 * 7 / 12, *[0] * 10, 2 / 2, 2 / 2, softmax)
    return (*[0] * 7, chunk, *[0] * 4)


def _backward(videos: float) -> tuple[Trips, ...]:
    """Returns the trips for a warp's 16 rows.

    `videos`: how many d a block prepares for every chunk of 8 warps. A thread has 16 rows of d. The
    first product takes three units of features at a time, of nine, the second one two, then one.
    """
    other_slice = 0
    chunk = (1 / videos, (1, other_slice, 3), (1, other_slice, 4, 1))
    return (*[0] * 4, (videos, 16 / 2, (1, 16), chunk), 0)


ENTRIES = [
    # A block takes 256 columns of 64 frames; 8 * 112 columns fill 3.5 blocks of 4. 15% of the
    # instructions are those for rows that are not aligned.
    Entry(
        "moments",
        "pyseg::gpu::moments_kernel<__nv_bfloat16, 8>",
        "row",
        64 * 8 / 4 / 8,
        _SCORES + 8 * 112 / 64,
        dict.fromkeys(MACHINES, (1,)),
        outside=0.85,
    ),
    _soft_assign("soft_assign", "kernel< >", 2 * _SCORES + 2, (142 / 193, 136 / 190)),
    _soft_assign(
        "soft_assign, by cluster", "kernel< >", 2 * _SCORES + 2, (173 / 193, 170 / 190), 8704
    ),
    _soft_assign(
        "its backward: sums",
        "backward_kernel<, (pyseg::gpu::Pass)1>",
        2 * _SCORES + 4,
        (225 / 283, 213 / 269),
    ),
    _soft_assign(
        "its backward: sums, by cluster",
        "backward_kernel<, (pyseg::gpu::Pass)1>",
        2 * _SCORES + 4,
        (276 / 283, 262 / 269),
        8704,
    ),
    _soft_assign(
        "its backward: statistics",
        "backward_kernel<, (pyseg::gpu::Pass)2>",
        3 * _SCORES + 3,
        (243 / 299, 234 / 290),
    ),
    _soft_assign(
        "its backward: statistics, by cluster",
        "backward_kernel<, (pyseg::gpu::Pass)2>",
        3 * _SCORES + 3,
        (294 / 299, 285 / 290),
        8704,
    ),
    # Where divergent warps return to after a shuffle looks like a loop. Sums of 800 rows are
    # written.
    Entry(
        "vlad_aggregate",
        "pyseg::gpu::vlad_aggregate_mma_kernel<__nv_bfloat16, 6>",
        "row",
        32 / 12,
        _FEATURES + _SCORES + 2 + 4 * _MATRIX / 800,
        {"sm_90": _forward((1 / 3, 1)), "sm_80": _forward((1 / 3, (1, 1)))},
        threads=384,
        shared=139808,
    ),
    # 80 videos of 19 chunks in 127 or 102 blocks: blocks begin a video 200 or 176 times, for which
    # they read gradient and output twice, and the centers. The assignment is read twice.
    *(
        Entry(
            "vlad_aggregate's backward",
            "pyseg::gpu::vlad_backward_mma_kernel<__nv_bfloat16, 7, true>",
            "row",
            16,
            2 * _FEATURES + 3 * _SCORES + 4 + 5 * 2 * _MATRIX * begun / (80 * 2400),
            {arch: _backward(begun / (80 * 19))},
            shared=147200,
        )
        for arch, begun in (("sm_90", 200), ("sm_80", 176))
    ),
    # One rating a row, of a class with 3 relations. Paths for places that are not whole count too.
    Entry(
        "rated_bce, 3,862 classes",
        "pyseg::gpu::rated_bce::rows_kernel<__nv_bfloat16>",
        "row",
        1 / 8,
        2 * 2 * 3862 + 3 * 12,
        dict.fromkeys(MACHINES, ((1, (1, 1), 1 / 8), 0, 0)),
        outside=1,
    ),
    # A thread takes 8 columns of 4 frames at a time.
    Entry(
        "dequantize, 1,152 features",
        "pyseg::gpu::dequantize::dequantize_kernel<__nv_bfloat16, 8>",
        "frame",
        4 * 256 / 1152,
        3 * 1152 + 1,
        dict.fromkeys(MACHINES, (1,)),
    ),
]


def count(loop: Loop, trips: Trips) -> tuple[float, float]:
    """Returns the instructions, and among them the products, that run in the trips of a loop.

    Raises:
        ValueError: The trips are those of other loops.
    """
    if trips == 0:
        return 0, 0
    times, *inner = trips if isinstance(trips, tuple) else (trips,)
    instructions, products = float(loop.instructions + loop.products), float(loop.products)
    for part, its_trips in zip(loop.loops, inner, strict=True):
        counts = count(part, its_trips)
        instructions, products = instructions + counts[0], products + counts[1]
    return times * instructions, times * products


def kept(folder: Path) -> dict[tuple[str, str], dict[str, str]]:
    """Returns the lines of csrc/cuda/resources, by architecture and kernel."""
    lines = "".join(file.read_text() for file in sorted(folder.glob("*.txt"))).splitlines()
    found = (match.groupdict() for match in map(LINE.fullmatch, lines) if match)
    return {(line["arch"], line["name"]): line for line in found}


def table(folder: Path = RESOURCES, entries: list[Entry] = ENTRIES) -> str:
    """Returns the predictions for all entries as a Markdown table.

    Raises:
        ValueError: A kernel is unknown, or has other loops than its entry.
    """
    lines = kept(folder)
    rows = [
        "| kernel | unit | | registers | shared memory | warps | instructions | products | bytes "
        "| issue | tensor cores | memory | issue / memory |",
        "| --- " * 13 + "|",
    ]
    for entry in entries:
        for arch, trips in entry.trips.items():
            line, machine = lines.get((arch, entry.kernel)), MACHINES[arch]
            if line is None:
                raise ValueError(f"{arch}: csrc/cuda/resources has no kernel {entry.kernel}")
            kernel = read(line["instructions"])
            try:
                instructions, products = count(kernel, (1, *trips))
            except ValueError as error:
                raise ValueError(
                    f"{arch}: {entry.kernel}: its loops are now {line['instructions']}, which the "
                    f"trips {trips} do not fit: bring its entry in benchmarks/sass.py up to date"
                ) from error
            instructions -= (1 - entry.outside) * kernel.instructions
            instructions, products = instructions / entry.units, products / entry.units
            shared = int(line["shared"]) + entry.shared
            issue, memory = machine.nanoseconds(instructions), entry.bytes / machine.bandwidth / 1e3
            cells = [entry.title, entry.unit, arch, line["registers"], f"{shared:,}"]
            cells += [str(machine.warps(int(line["registers"]), shared, entry.threads))]
            cells += [f"{instructions:,.0f}", f"{products:.1f}", f"{entry.bytes:,.0f}"]
            tensor = machine.nanoseconds(machine.product_cycles * products)
            cells += [f"{time:.3g} ns" for time in (issue, tensor, memory)]
            rows.append(f"| {' | '.join(cells)} | {issue / memory:.2f} |")
    return "\n".join(rows)


if __name__ == "__main__":
    argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    ).parse_args()
    try:
        print(table())
    except ValueError as error:
        sys.exit(str(error))
