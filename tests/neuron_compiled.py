"""Compiles the APTx layer's Triton kernels without a GPU, and prints what came out as JSON.

For a target as "sm_80" or "gfx942" and a dtype, kernels of the largest tiles: bytes on the
stack, instructions of float64, and those of the innermost loop a term, special ones apart.
"""

from __future__ import annotations

import json
import re
import subprocess
import sys
import tempfile
from pathlib import Path
from typing import Any

import torch
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource

from mishkit.backends._triton_neuron import Build, builds

TOOLS = Path(triton.__file__).parent / "backends" / "nvidia" / "bin"
LARGEST = {
    torch.float32: ("forward_8", "input_32", "parameters_of_chunk"),
    # A dtype is a matter of loading and storing; here each number serves the fewest terms.
    torch.bfloat16: ("input_32",),
    torch.float16: ("input_32",),
}


def compiled(build: Build, target: str) -> Any:
    """As for tensors that are aligned and have sizes in sixteens, which most have."""
    aligned = {
        (place,): [["tt.divisibility", 16]]
        for place, (name, kind) in enumerate(build.signature.items())
        if kind.startswith("*") or name in ("dims_in", "dims_out")
    }
    source = ASTSource(build.kernel, build.signature, build.constants, aligned)
    is_nvidia = target.startswith("sm_")
    gpu = GPUTarget("cuda", int(target[3:]), 32) if is_nvidia else GPUTarget("hip", target, 64)
    return triton.compile(source, target=gpu, options={"num_warps": build.warps})


def nvidia(code: bytes) -> tuple[list[tuple[int, str]], int]:
    """Instructions, each with its address, and bytes on the stack."""
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(code)
        file.flush()
        run = [str(TOOLS / "cuobjdump"), "-sass", "-res-usage", file.name]
        done = subprocess.run(run, capture_output=True, text=True, check=True)
    text = done.stdout + done.stderr
    lines = re.finditer(r"/\*([0-9a-f]{4,})\*/\s+(?:@!?U?P\w+\s+)?(.*?);", text)
    stack = re.search(r"STACK:(\d+)", text)
    assert stack
    return [(int(m[1], 16), m[2].strip()) for m in lines], int(stack[1])


def innermost(code: list[tuple[int, str]]) -> list[str]:
    """The instructions of the loop with the most exponentials that has no loop in it."""
    loops = []
    for at, text in code:
        back = re.search(r"^BRA.*?0x([0-9a-f]+)", text)
        if back and int(back[1], 16) < at:
            loops.append((int(back[1], 16), at))
    bodies = [
        [text for at, text in code if begin <= at <= end]
        for begin, end in loops
        if not any(o != (begin, end) and begin <= o[0] and o[1] <= end for o in loops)
    ]
    return max(bodies, key=lambda body: sum("MUFU.EX2" in text for text in body))


def seen(build: Build, target: str) -> dict[str, float]:
    kernel = compiled(build, target)
    if not target.startswith("sm_"):
        text = kernel.asm["amdgcn"]
        scratch = re.search(r"\.private_segment_fixed_size: (\d+)", text)
        assert scratch
        code = [line.split()[0] for line in text.splitlines() if re.match(r"\s+[vs]_", line)]
        terms = sum(name.startswith("v_exp_f32") for name in code)
        special = sum(name.startswith(("v_exp_f32", "v_rcp_f32")) for name in code)
        doubles = sum("_f64" in name for name in code)
        return {
            "stack": int(scratch[1]),
            "doubles": doubles,
            "special": special / terms,
            "instructions": len(code) / terms,
        }
    code, stack = nvidia(kernel.asm["cubin"])
    loop = innermost(code)
    terms = sum("MUFU.EX2" in text for text in loop)
    special = sum(text.startswith("MUFU") for text in loop)
    # DADD and its like, and conversions.
    doubles = sum(bool(re.match(r"D[A-Z]+|.*\bF64", text)) for _, text in code) - sum(
        text.startswith("DEPBAR") for _, text in code
    )
    return {
        "stack": stack,
        "doubles": doubles,
        "special": special / terms,
        "instructions": len(loop) / terms,
    }


if __name__ == "__main__":
    by_kernel = {}
    for target in sys.argv[1:]:
        for dtype, names in LARGEST.items():
            for build in builds(dtype):
                if build.name in names:
                    name = str(dtype).removeprefix("torch.")
                    by_kernel[f"{target} {name} {build.name}"] = seen(build, target)
    print(json.dumps(by_kernel))
