"""Kernels compiled for GPUs that aren't there: what is counted, and that every fault is seen."""

from __future__ import annotations

from dataclasses import replace

import pytest
import torch
from common import mostly_slow, shared

pytest.importorskip("triton")

import gpu_kernels

from mishkit.lab.code.gpu import (
    ALU,
    FLOAT64,
    FMA,
    HEAVY,
    ISSUE,
    LOCAL,
    NARROW,
    SPECIAL,
    TARGETS,
    UNSEEN,
    VECTOR,
    Access,
    Code,
    Job,
    compile_all,
    nvidia_units,
    parse_amd,
    parse_nvidia,
)
from mishkit.lab.code.roofline import A100, B200, GPUS, H100, roofline

GOOD = [("relu", "whole", "float32"), ("exp", "whole", "float32"), ("exp", "whole", "bfloat16")]
FAULTY = {
    ("in_float64", "whole"): FLOAT64,
    ("exp", "spilled"): LOCAL,
    ("exp", "unaligned"): NARROW,
    ("exp", "masked"): NARROW,
    ("exp", "repeated"): UNSEEN,
}
ROOFED = ("exp", "whole", "bfloat16")
MOSTLY = ("sm_80", "gfx942")
INDUCTOR = [("F.mish", "forward"), ("F.mish", "backward")]
OTHERS = [("exp", "packed"), ("rounded", "whole"), ("exp", "broken"), ("exp", "none")]


@pytest.fixture(scope="module")
def compiled(tmp_path_factory: pytest.TempPathFactory) -> dict[Job, Code | str | None]:
    return shared(tmp_path_factory, "gpu_code", compiled_kernels)  # type: ignore[no-any-return]


def compiled_kernels() -> dict[Job, Code | str | None]:
    jobs = [Job(*kernel, target) for kernel in GOOD for target in MOSTLY]
    jobs += [Job(*kernel, "bfloat16", target) for kernel in (*FAULTY, *OTHERS) for target in MOSTLY]
    jobs += [Job(*ROOFED, gpu.target) for gpu in GPUS if gpu.target not in MOSTLY]
    jobs += [Job(*kernel, "bfloat16", "sm_80") for kernel in INDUCTOR]
    return dict(
        compile_all(jobs, gpu_kernels.build, processes=1)
    )  # starting a second would take longer


def code(compiled: dict[Job, Code | str | None], *job: str) -> Code:
    outcome = compiled[Job(*job)]
    assert isinstance(outcome, Code), outcome
    return outcome


@pytest.mark.parametrize("target", mostly_slow(TARGETS, MOSTLY))
@pytest.mark.parametrize("kernel", GOOD, ids="-".join)
def test_what_a_good_kernel_costs(
    kernel: tuple[str, str, str], target: str, request: pytest.FixtureRequest
) -> None:
    function, _, dtype = kernel
    if target in MOSTLY:
        cost = code(request.getfixturevalue("compiled"), *kernel, target)
    else:
        cost = code(dict(compile_all([Job(*kernel, target)], gpu_kernels.build)), *kernel, target)
    assert cost.faults == {}
    size = 4 if dtype == "float32" else 2
    assert cost.elements == 32 / size
    # The main path alone: all of a thread's elements, loaded and stored once.
    assert cost.accesses == {Access(False, 128, False): 2, Access(True, 128, False): 2}
    assert cost.special == (1 if function == "exp" else 0)
    assert 3 < cost.instructions < 25
    assert 8 < cost.registers < 128 and cost.shared == 0


@pytest.mark.parametrize("target", MOSTLY)
@pytest.mark.parametrize("kernel", FAULTY, ids="-".join)
def test_faults_are_seen(
    kernel: tuple[str, str], target: str, compiled: dict[Job, Code | str | None]
) -> None:
    faults = code(compiled, *kernel, "bfloat16", target).faults.keys()
    assert FAULTY[kernel] in faults
    assert faults <= {FAULTY[kernel], UNSEEN}  # a mask is a branch on AMD's GPUs


@pytest.mark.parametrize("target", MOSTLY)
def test_packed_sides_may_be_narrow(target: str, compiled: dict[Job, Code | str | None]) -> None:
    cost = code(compiled, "exp", "packed", "bfloat16", target)
    assert cost.accesses[Access(True, 16, False)] == 1  # 16 elements a thread, a bit each
    assert cost.faults == {}
    assert replace(cost, narrow_allowance=8).faults.keys() == {NARROW}
    assert replace(cost, bytes_per_element=4).faults.keys() == {UNSEEN}


@pytest.mark.parametrize("target", MOSTLY)
def test_slow_ways_are_left_out(target: str, compiled: dict[Job, Code | str | None]) -> None:
    cost = code(compiled, "rounded", "whole", "bfloat16", target)
    assert cost.faults == {}  # no call
    assert cost.special == 2


@pytest.mark.parametrize("target", MOSTLY)
def test_kernels_that_fail_and_that_are_not(
    target: str, compiled: dict[Job, Code | str | None]
) -> None:
    outcome = compiled[Job("exp", "broken", "bfloat16", target)]
    assert isinstance(outcome, str) and outcome.startswith("CompilationError: ")
    assert compiled[Job("exp", "none", "bfloat16", target)] is None


@pytest.mark.skipif(not torch.__version__.startswith("2.13."), reason="inductor has changed")
def test_inductors_kernels(compiled: dict[Job, Code | str | None]) -> None:
    for kernel, tensors in zip(INDUCTOR, (2, 3), strict=True):
        cost = code(compiled, *kernel, "bfloat16", "sm_80")
        assert cost.faults.keys() <= {UNSEEN}  # hyperbolic tangents branch
        assert cost.bytes_per_element == 2 * tensors
        # An exponential, a logarithm's division, a hyperbolic tangent: nobody's hand wrote this.
        assert cost.special >= 2 and cost.instructions > 30


def test_units() -> None:
    assert nvidia_units("FFMA.FTZ", "sm_80") == {ISSUE: 1, FMA: 1}
    assert nvidia_units("FFMA2", "sm_100") == {ISSUE: 1, FMA: 2}
    assert nvidia_units("IMAD.U32", "sm_90") == {ISSUE: 1, FMA: 1, HEAVY: 1}
    assert nvidia_units("F2FP.BF16.PACK_AB", "sm_80") == {ISSUE: 1, ALU: 1}
    assert nvidia_units("MUFU.EX2", "sm_80") == {ISSUE: 1, SPECIAL: 1}
    assert nvidia_units("LDG.E.128", "sm_80") == {ISSUE: 1}


NVIDIA = """
 /*0000*/ S2R R0, SR_TID.X ;
 /*0010*/ {guard} BRA 0x{to:02x} ;
 /*0020*/ LDG.E.128 R4, [R2.64] ;
 /*0030*/ FMUL R4, R4, R4 ;
 /*0040*/ STG.E.128 [R2.64], R4 ;
 /*0050*/ EXIT ;
 /*0060*/ @!P1 LDG.E.U16 R4, [R2.64] ;
 /*0070*/ @P2 EXIT ;
 /*0080*/ STG.E.U16 [R2.64], R4 ;
 /*0090*/ EXIT ;
 /*00a0*/ BRA 0xa0;
 /*00b0*/ NOP;
"""


def test_the_main_path() -> None:
    path, count, has_loop = parse_nvidia(NVIDIA.format(guard="@P0", to=0x60)).main_path()
    assert [i.opcode for i in path] == ["S2R", "BRA", "LDG.E.128", "FMUL", "STG.E.128", "EXIT"]
    assert count == len(path) and not has_loop
    # Without a condition only the tail is left, to its end.
    path, *_ = parse_nvidia(NVIDIA.format(guard="", to=0x60)).main_path()
    assert [i.opcode for i in path][-2:] == ["STG.E.U16", "EXIT"]
    assert len(path) == 6
    assert parse_nvidia(NVIDIA.format(guard="@P0", to=0)).main_path().has_loop
    # A branch around the multiplication: it is as cheap as it gets, or costs both sides.
    around = NVIDIA.replace("FMUL R4, R4, R4", "@P3 BRA 0x40").format(guard="@P0", to=0x60)
    around = around.replace("/*0040*/", "/*0038*/ FMUL R4, R4, R4 ;\n /*0040*/")
    path, count, _ = parse_nvidia(around).main_path()
    assert len(path) == 6 and count == 7


def test_the_main_path_of_amd() -> None:
    # Both ways come together and part again, as LLVM has it. No path that stores twice is taken.
    program = parse_amd(
        """
        .type   kernel,@function
kernel:
        s_cbranch_vccnz .LBB0_2
; %bb.1:
        v_exp_f32_e32 v1, v1
        global_store_dwordx4 v[8:9], v[4:7], off
.LBB0_2:
        s_cbranch_vccnz .LBB0_4
        s_and_saveexec_b64 s[0:1], vcc
        s_cbranch_execz .LBB0_4
        global_store_short v[8:9], v4, off
.LBB0_4:
        s_endpgm
.Lfunc_end0:
"""
    )
    path, count, has_loop = program.main_path()
    assert [i.opcode for i in path] == [
        "s_cbranch_vccnz",
        "v_exp_f32_e32",
        "global_store_dwordx4",
        "s_cbranch_vccnz",
        "s_endpgm",
    ]
    assert count == len(path) and not has_loop


def test_roofline(compiled: dict[Job, Code | str | None]) -> None:
    some = code(compiled, "exp", "whole", "float32", "sm_80")
    # 64 multiply-adds an element take a clock; A100's memory moves 13.4 bytes in it.
    busy = replace(some, operations={FMA: 64, ISSUE: 64}, bytes_per_element=8)
    assert roofline(busy, A100) == (pytest.approx(2039e9 / (108 * 1.4106e9) / 8, rel=1e-3), FMA)
    busy = replace(busy, operations={FMA: 64, SPECIAL: 32})
    assert roofline(busy, A100).unit == SPECIAL
    with pytest.raises(ValueError, match="sm_80 does not run on H100"):
        roofline(some, H100)
    for gpu in GPUS:
        cost = code(compiled, *ROOFED, gpu.target)
        assert 0 < roofline(cost, gpu).ratio < 1
        assert gpu.name != "MI300X" or roofline(cost, gpu).unit == VECTOR


def test_published_clocks() -> None:
    """The peaks of the data sheets belong to the clocks that are known."""
    assert A100.clock == pytest.approx(1.41, abs=0.005)
    assert H100.clock == pytest.approx(1.98, abs=0.005)
    assert B200.clock == pytest.approx(1.965, abs=0.02)
