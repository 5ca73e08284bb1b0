"""The instruction counts of CUDA kernels, from a listing as cuobjdump prints it."""

from __future__ import annotations

import runpy
from pathlib import Path

import pytest
import sass

ROOT = Path(__file__).resolve().parents[2]
check = runpy.run_path(str(ROOT / "cmake" / "check_cuda.py"))

LISTING = """
		Function : _Z5firstv
        /*0000*/                   MOV R1, c[0x0][0x28] ;             /* 0x00000a00ff017b82 */
                                                                      /* 0x000ff00000000800 */
        /*0010*/              @!P0 BRA 0x60 ;                         /* 0x00000010000c8947 */
        /*0020*/                   HMMA.16816.F32.BF16 R4, R8, R12, R4 ;
        /*0030*/                   IADD3 R0, R0, 0x1, RZ ;
        /*0040*/               @P1 BRA 0x30 ;                         /* 0xfffffff000d08947 */
        /*0050*/          @!UP1 UIADD3 UR4, UR4, 0x1, URZ ;
        /*0060*/               @P2 BRA 0x20 ;                         /* 0xfffffffc00608947 */
        /*0070*/                   FADD R1, R1, R1 ;
        /*0080*/               @P2 BRA 0x70 ;
        /*0090*/                   EXIT ;
        /*00a0*/                   BRA 0xa0;
        /*00b0*/                   NOP;
		Function : _Z6secondv
        /*0000*/                   EXIT ;
"""


def test_loops_are_what_backward_branches_enclose():
    kernels = sass.parse(LISTING)
    # 0x00, 0x10, 0x90, 0xa0 | the outer loop: 0x50, 0x60 and a product; the inner one; the last
    assert {name: str(kernel) for name, kernel in kernels.items()} == {
        "_Z5firstv": "4(2+1(2) 2)",
        "_Z6secondv": "1",
    }


@pytest.mark.parametrize("notation", ["7", "4(2+1(2) 2)", "40+8(12 7(3(1+1)) 2)"])
def test_notations_are_read_again(notation):
    assert str(sass.read(notation)) == notation


def line(instructions: str, name: str = "kernel<float>") -> str:
    return (
        f"sm_90: 80 registers, 0 B shared, 0 B stack, 0 B spilled, "
        f"instructions {instructions}: {name}\n"
    )


def test_more_instructions_in_loops_are_worse():
    before = line("100(50(10) 20)") + line("9(9)", "other")
    assert check["worse"](before, line("400(51(10) 20)") + line("9(90)", "new one")) == []
    assert check["worse"](before, line("100(50(12) 20)") + line("9(9)", "other")) == [
        "sm_90: kernel<float>: 80 instructions in loops before, 82 now"
    ]


def test_every_kept_line_is_understood():
    files = sorted((ROOT / "csrc" / "cuda" / "resources").glob("*.txt"))
    assert files
    for file in files:
        head, *lines, last = file.read_text().splitlines()
        assert [text for text in lines if not sass.LINE.fullmatch(text)] == []
        assert ", nvcc " in head
        assert "linked" in last, file.name


def test_trips_weight_loops_and_what_is_in_them():
    kernel = sass.read("100(8 40+8(12 7(3)) 2)")
    # 10 times 40 + 8, and twice each time 12; 7 and 3 never, 2 every second time
    assert sass.count(kernel, (1, 0, (10, 2, 0), 0.5)) == (100 + 10 * (48 + 2 * 12) + 1, 80)


def test_committed_counts_make_a_table():
    text = sass.table()
    assert text.count("\n") == 1 + sum(len(entry.trips) for entry in sass.ENTRIES)
    assert {line.count("|") for line in text.splitlines()} == {14}
    for title in ("vlad_aggregate", "vlad_aggregate's backward"):
        assert f"| {title} | row | sm_90 |" in text


@pytest.mark.parametrize("loops", ["100(50)", "100(50(10 20) 3)", "100(50(10(7)) 3)"])
def test_an_entry_that_does_not_fit_is_an_error(tmp_path, loops):
    trips = {"sm_90": ((2, 5), 0)}
    entry = sass.Entry("title", "kernel<float>", "row", units=2, bytes=8, trips=trips, shared=1024)
    (tmp_path / "all.txt").write_text("digest\n" + line("100(50(10) 3+1(9))"))
    # 2 (50 + 5 10) instructions for 2 rows; 80 registers a thread leave 3 blocks of 8 warps
    assert "| 1,024 | 24 | 100 | 0.0 | 8 |" in sass.table(tmp_path, [entry])
    (tmp_path / "all.txt").write_text("digest\n" + line(loops))
    message = f"sm_90: kernel<float>: its loops are now {loops}, .* up to date"
    with pytest.raises(ValueError, match=message.replace("(", r"\(").replace(")", r"\)")):
        sass.table(tmp_path, [entry])


def test_an_entry_of_an_unknown_kernel_is_an_error(tmp_path):
    entry = sass.Entry("title", "other", "row", units=1, bytes=8, trips={"sm_80": ()})
    with pytest.raises(ValueError, match=r"sm_80: .* no kernel other"):
        sass.table(tmp_path, [entry])
