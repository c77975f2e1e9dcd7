"""What the compiler makes of a launch, for GPUs that need not be there.

``compiling`` compiles it; the tools that take machine code apart ship inside Triton's package.

Run as ``python -m invbench.ops.triton_gpu.inspection``, it compiles every configuration of ``SHIPPED`` at the stages of
RedNet-50 and prints what the code needs, as a table or as JSON.
"""

from __future__ import annotations

import argparse
import json
import re
import subprocess
import sys
import tempfile
from collections import Counter
from collections.abc import Sequence
from dataclasses import asdict, dataclass
from itertools import product
from pathlib import Path

import torch
import triton

from invbench.ops.triton_gpu import sass
from invbench.ops.triton_gpu.compiling import TARGETS, Target, compile_launch, in_compilers
from invbench.ops.triton_gpu.launching import Launch
from invbench.ops.triton_gpu.shipped import SHIPPED, STAGES, Stage
from invbench.spec import DTYPES

WIDE = re.compile(
    r"\b(?:ld|st)\.global\S*\.v\d|\bcp\.async\.c[ag]\.\S+ [^;]*, 0x10\b"  # PTX
    r"|\b(?:global|buffer|flat)_(?:load|store)_(?:dwordx|b)(?:[234]|64|96|128)\b"  # AMD
)


@dataclass(frozen=True, slots=True)
class Code:
    """What a launch was compiled to.

    ``registers`` and ``spilled_bytes`` (of stack or scratch memory) are those of a thread; ``spilled_registers`` the
    vector registers that the AMD compiler spilled, also to others (scalar ones that it keeps in lanes of a vector
    register do not count); ``wide_accesses`` are loads and stores of global memory that are vectors, or on AMD at
    least 8 bytes. ``sass`` is the listing of the machine code, empty where it is AMD's.
    """

    target: Target
    registers: int
    spilled_bytes: int
    spilled_registers: int
    shared_bytes: int
    num_warps: int
    wide_accesses: int
    sass: str

    @property
    def spills(self) -> bool:
        """Whether registers did not suffice."""
        return self.spilled_bytes > 0 or self.spilled_registers > 0


def code_of(launch: Launch, target: Target) -> Code:
    """Compile a launch, and take its code apart; refused as by ``compile_launch``."""
    compiled = compile_launch(launch, target)
    if isinstance(target, str):
        assembly = compiled.asm["amdgcn"]

        def noted(key: str) -> int:
            return max(int(count) for count in re.findall(rf"^\s+\.{key}:\s+(\d+)", assembly, re.MULTILINE))

        registers, spilled_bytes = noted("vgpr_count"), noted("private_segment_fixed_size")
        spilled_registers, listing = noted("vgpr_spill_count"), ""
    else:
        assembly, listing = compiled.asm["ptx"], _nvidia_tool("nvdisasm", "-c", compiled.asm["cubin"])
        usage = _nvidia_tool("cuobjdump", "-res-usage", compiled.asm["cubin"])
        registers, spilled_bytes = (max(map(int, re.findall(rf"\b{word}:(\d+)", usage))) for word in ("REG", "STACK"))
        spilled_registers = 0  # not said: the stack has them
    return Code(
        target=target,
        registers=registers,
        spilled_bytes=spilled_bytes,
        spilled_registers=spilled_registers,
        shared_bytes=compiled.metadata.shared,
        num_warps=compiled.metadata.num_warps,
        wide_accesses=len(WIDE.findall(assembly)),
        sass=listing,
    )


def _nvidia_tool(tool: str, option: str, cubin: bytes) -> str:
    path = Path(triton.__file__).parent / "backends" / "nvidia" / "bin" / tool
    with tempfile.NamedTemporaryFile(suffix=".cubin") as file:
        file.write(cubin)
        file.flush()
        command = [str(path), option, file.name]
        return subprocess.run(command, capture_output=True, text=True, check=True).stdout  # noqa: S603 -- Triton's own


def executed_instructions(code: Code, trips: Sequence[float]) -> float:
    """Warp instructions that one warp executes, never fewer than it does; ``trips`` as in ``sass`` (NVIDIA only)."""
    return sass.executed_instructions(code.sass, trips)


def instruction_mix(code: Code) -> Counter[str]:
    """How often each opcode stands in the code, loops counted once (NVIDIA only)."""
    return sass.instruction_mix(code.sass)


def thread_instructions(executed: float, num_warps: int, pairs: float) -> float:
    """Thread instructions for each (position, group) pair.

    executed: warp instructions of one warp. pairs: the pairs that one program computes, of which it may share some.
    """
    return executed * 32 * num_warps / pairs


@dataclass(frozen=True, slots=True)
class Row:
    """One line of the table.

    ``thread_instructions`` for each (position, group), and ``asked_over_least``, bytes over the fewest that would do,
    are None where they are not counted. ``triton`` is the compiler's version.
    """

    kernel: str
    stage: str
    dtype: str
    target: Target
    registers: int
    spilled_bytes: int
    spilled_registers: int
    shared_bytes: int
    wide_accesses: int
    thread_instructions: float | None
    asked_over_least: float | None
    triton: str = triton.__version__


def row_of(case: tuple[str, Stage, str, Target]) -> Row:
    """What a shipped configuration, given by its name, needs at a stage, for a dtype and a target."""
    name, stage, dtype, target = case
    shipped = next(shipped for shipped in SHIPPED if shipped.name == name)
    launch = shipped.launch(getattr(torch, dtype), stage, target)
    code, trips = code_of(launch, target), shipped.trips(launch)
    count = None
    if code.sass and trips:
        executed = executed_instructions(code, trips)
        count = thread_instructions(executed, code.num_warps, stage.pairs / launch.programs)
    return Row(
        name, str(stage), dtype, target, code.registers, code.spilled_bytes, code.spilled_registers,
        code.shared_bytes, code.wide_accesses, count,
        shipped.asked_over_least(getattr(torch, dtype), stage, target),
    )  # fmt: skip


def as_table(rows: Sequence[Row]) -> str:
    """Plain text, a line for each row."""
    lines = [[name.replace("_", " ") for name in asdict(rows[0])]]
    for row in rows:
        values = asdict(row).values()
        lines.append(["-" if v is None else f"{v:.4g}" if isinstance(v, float) else str(v) for v in values])
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    return "\n".join("  ".join(map(str.ljust, line, widths)).rstrip() for line in lines)


def main(arguments: Sequence[str] | None = None) -> None:
    """Print what the code of every shipped configuration needs."""
    parser = argparse.ArgumentParser(prog="python -m invbench.ops.triton_gpu.inspection", description=main.__doc__)
    as_target: dict[str, Target] = {str(target): target for target in TARGETS}
    parser.add_argument("--target", nargs="+", choices=as_target, default=list(as_target), help="GPUs (default: all)")
    parser.add_argument("--dtype", nargs="+", choices=DTYPES, default=["bfloat16"])
    parser.add_argument("--kernel", default="", metavar="NAME", help="those whose name begins so (default: all)")
    parser.add_argument("--json", action="store_true", help="JSON Lines instead of a table")
    chosen = parser.parse_args(arguments)
    targets = [as_target[name] for name in chosen.target]
    cases = [
        (shipped.name, *case)
        for shipped in SHIPPED
        for case in product(STAGES, [dtype for dtype in chosen.dtype if dtype in shipped.dtypes], targets)
        if shipped.name.startswith(chosen.kernel)
    ]
    if not cases:
        parser.error(f"--kernel {chosen.kernel}: no kernel begins so; got of: {', '.join(s.name for s in SHIPPED)}")
    rows = in_compilers(row_of, cases)
    lines = (json.dumps(asdict(row)) for row in rows)
    sys.stdout.write(("\n".join(lines) if chosen.json else as_table(rows)) + "\n")


if __name__ == "__main__":
    main()
