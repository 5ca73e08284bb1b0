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
