"""NVIDIA machine code, as ``nvdisasm -c`` lists it: its instructions, its loops, and how many of them a warp executes.

The count is of instructions issued: a predicated one takes its turn whether or not its predicate holds. It never
counts too few: where the code branches forward, it takes the longest way. Loops run as often as the caller says, for
that is rarely in the code. Only what lies on a way from the entry to an exit counts, so neither the padding behind the
code does, nor the branch to itself that ends it as a trap, nor a branch that ends in such a trap.
"""

from __future__ import annotations

import re
from collections import Counter
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from functools import cache, cached_property
from graphlib import CycleError, TopologicalSorter
from itertools import pairwise

from invbench.spec import InvbenchError

INSTRUCTION = re.compile(r"\s*/\*([0-9a-f]+)\*/\s+(?:@(!?\w+)\s+)?([A-Z]\w*(?:\.\w+)*)\s*([^;]*?)\s*;")
LABEL = re.compile(r"([.$\w]+):\s*$")
NAME = re.compile(r"[.$\w]+")
JUMPS = ("BRA", "BRX", "BRXU", "JMP", "JMX", "JMXU")


@dataclass(frozen=True, slots=True)
class Instruction:
    """One line of a listing; ``address`` in bytes, ``guard`` the predicate that it runs under, or empty."""

    address: int
    guard: str
    opcode: str
    operands: str

    @property
    def kind(self) -> str:
        """The opcode without its modifiers: LDG of LDG.E.128."""
        return self.opcode.partition(".")[0]


@dataclass(frozen=True, slots=True)
class Loop:
    """A natural loop: the blocks from which its ``latches`` jump back to its ``header``, which all ways in lead to.

    A whole function is one that never repeats.
    """

    header: int
    blocks: frozenset[int]
    latches: frozenset[int] = frozenset()

    def __contains__(self, block: int) -> bool:
        return block in self.blocks


@dataclass(frozen=True)
class Program:
    """A kernel and the subroutines in its listing; blocks are called by the index of their first instruction."""

    instructions: tuple[Instruction, ...]
    labels: dict[str, int]  # the index of the instruction that follows
    entry: int = 0

    @classmethod
    def parse(cls, listing: str) -> Program:
        """From a listing with labels; InvbenchError where there is no instruction in it."""
        instructions: list[Instruction] = []
        labels: dict[str, int] = {}
        entry = 0
        for line in listing.splitlines():
            if found := INSTRUCTION.match(line):
                address, guard, opcode, operands = found.groups()
                instructions.append(Instruction(int(address, 16), guard or "", opcode, operands))
            elif found := LABEL.match(line):
                labels[found[1]] = len(instructions)
            elif "STO_CUDA_ENTRY" in line:
                entry = len(instructions)
        if not instructions:
            raise InvbenchError(f"expected a listing by nvdisasm -c: got no instruction in {listing[:60]!r}")
        return cls(tuple(instructions), labels, entry)

    @cached_property
    def blocks(self) -> dict[int, range]:
        """The indices of each block's instructions: all run, in turn, once its first does."""
        starts = {self.entry, *(label for label in self.labels.values() if label < len(self.instructions))}
        for index, instruction in enumerate(self.instructions):
            if instruction.kind in (*JUMPS, "CALL", "RET", "EXIT", "BSYNC"):
                starts.add(index + 1)
        ends = sorted(starts | {len(self.instructions)})
        return {start: range(start, end) for start, end in pairwise(ends)}

    @cached_property
    def functions(self) -> dict[int, Loop]:
        """The kernel and the subroutines that it calls, by the block that each begins with."""
        functions: dict[int, Loop] = {}
        new = [self.entry]
        while new:
            entry = new.pop()
            if entry not in functions:
                functions[entry] = Loop(entry, frozenset(self._reachable(entry)))
                new += [callee for block in functions[entry].blocks for callee in self._callees(block)]
        if any(self._last(block).kind == "RET" for block in functions[self.entry].blocks):
            raise InvbenchError("cannot follow this code: its entry returns, as only subroutines do")
        return functions

    @cached_property
    def loops(self) -> tuple[Loop, ...]:
        """All loops, those of subroutines too, in the order of their headers' addresses."""
        found = (loop for function in self.functions.values() for loop in self._loops_of(function))
        return tuple(sorted(found, key=lambda loop: loop.header))

    def executed(self, trips: Sequence[float]) -> float:
        """Instructions that a warp executes from the entry to an exit; see ``executed_instructions``."""
        if len(trips) != len(self.loops):
            headers = ", ".join(f"{self.instructions[loop.header].address:#x}" for loop in self.loops) or "none"
            raise InvbenchError(
                f"expected a trip count for each loop, in the order of their addresses ({headers}): got {len(trips)}"
            )
        return self._longest(self.functions[self.entry], dict(zip(self.loops, trips, strict=True)))

    def _longest(self, whole: Loop, trips: dict[Loop, float]) -> float:
        """Instructions on the longest way through a function."""
        inside = sorted((loop for loop in trips if loop.header in whole), key=lambda loop: -len(loop.blocks))
        before: dict[int, set[int]] = {block: set() for block in whole.blocks}
        for block in whole.blocks:
            for successor in self._successors(block):
                if not any(loop.header == successor and block in loop.latches for loop in inside):
                    before[successor].add(block)
        # A branch to itself without a way out is a trap.
        before = {block: previous - {block} for block, previous in before.items()}

        callees = {callee for block in whole.blocks for callee in self._callees(block)}
        called = {callee: self._longest(self.functions[callee], trips) for callee in callees}

        def weight(block: int) -> float:
            return len(self.blocks[block]) + sum(called[callee] for callee in self._callees(block))

        @cache
        def until(block: int, region: Loop) -> float:
            """From the region's header to the block's first instruction, along the longest way inside the region."""
            if block == region.header:
                return 0
            return max(through(previous, region) for previous in before[block] if previous in region)

        @cache
        def through(block: int, region: Loop) -> float:
            """Likewise to behind the block's last instruction, when loops inside the region have run their course."""
            smaller = (loop for loop in inside if len(loop.blocks) < len(region.blocks) or region is whole)
            loop = next((loop for loop in smaller if block in loop), None)
            if loop is None:
                return until(block, region) + weight(block)
            iteration = max(through(latch, loop) for latch in loop.latches)
            # The last iteration ends at the block that leaves the loop; trips below 1 say that not all warps enter it.
            repeated, last = max(trips[loop] - 1, 0), min(trips[loop], 1)
            return until(loop.header, region) + repeated * iteration + last * through(block, loop)

        try:
            order = list(TopologicalSorter(before).static_order())
        except CycleError as error:
            raise InvbenchError(f"this code has a loop that is entered in two places, near {error.args[1]}") from error
        # In this order, so that the recursion stays as shallow as a loop.
        ways = {block: through(block, whole) for block in order}
        return max((ways[block] for block in order if self._last(block).kind in ("EXIT", "RET")), default=0)

    def _loops_of(self, function: Loop) -> Iterator[Loop]:
        for header in sorted(function.blocks):
            # The header dominates what cannot be reached around it.
            around = self._reachable(function.header, without=header)
            latches = {b for b in function.blocks if b not in around and header in self._successors(b)}
            blocks, new = {header}, latches - {header}
            while new:
                blocks |= new
                new = {b for b in function.blocks - blocks if new & set(self._successors(b))}
            exits = any(set(self._successors(b)) - blocks or self._last(b).kind in ("EXIT", "RET") for b in blocks)
            if latches and exits:
                yield Loop(header, frozenset(blocks), frozenset(latches))

    def _reachable(self, entry: int, without: int | None = None) -> set[int]:
        seen: set[int] = set()
        new = [entry]
        while new:
            block = new.pop()
            if block not in seen and block != without:
                seen.add(block)
                new += self._successors(block)
        return seen

    def _last(self, block: int) -> Instruction:
        return self.instructions[self.blocks[block][-1]]

    def _targets(self, instruction: Instruction) -> list[int]:
        names = [name for name in NAME.findall(instruction.operands) if name in self.labels]
        if not names:
            where = f"{instruction.opcode} {instruction.operands} at {instruction.address:#x}"
            raise InvbenchError(f"cannot follow {where}: it names no label of the listing")
        return [self.labels[name] for name in names]

    def _is_call(self, instruction: Instruction) -> bool:
        """Whether it calls a subroutine, which has a name: some compilers leave loops by a call that never returns."""
        return instruction.kind == "CALL" and "`(.L" not in instruction.operands

    def _successors(self, block: int) -> tuple[int, ...]:
        """The blocks that may follow this one within its function."""
        last, following = self._last(block), self.blocks[block].stop
        targets: Iterable[int] = ()
        falls_through = True
        if last.kind in ("EXIT", "RET"):
            falls_through = bool(last.guard)
        elif last.opcode.startswith("BRA.DIV"):
            pass  # taken where a warp's lanes have parted, to bring them together one by one: Triton's never part
        elif last.kind in JUMPS:
            targets = self._targets(last)
            # The condition is a guard, or stands before the label: BRA.U UP0, `(.L_x_2)
            falls_through = bool(last.guard) or "," in last.operands.partition("(")[0]
        elif last.kind == "CALL" and not self._is_call(last):
            targets, falls_through = self._targets(last), bool(last.guard)
        elif last.kind == "BSYNC":
            # Lanes that wait here go on where the BSSY of this barrier says.
            barrier = last.operands.split(",")[0]
            for earlier in reversed(self.instructions[: self.blocks[block].stop]):
                if earlier.kind == "BSSY" and earlier.operands.split(",")[0] == barrier:
                    targets = [target for target in self._targets(earlier) if target >= following]
                    falls_through = not targets
                    break
        return (*targets, *((following,) if falls_through and following in self.blocks else ()))

    def _callees(self, block: int) -> list[int]:
        """The subroutine that the block's last instruction calls, if it calls one."""
        last = self._last(block)
        return self._targets(last) if self._is_call(last) else []


def executed_instructions(listing: str, trips: Sequence[float]) -> float:
    """Warp instructions that one warp executes from the kernel's entry to its exit, never fewer than it does.

    ``trips``: how often each loop's first instruction runs, in the order of these instructions' addresses: an outer
    loop comes before those inside it, and an inner one's trips are for each iteration of the outer. A ``for`` of seven
    iterations has 7, a ``while`` that looks at its condition first 8. Refused with InvbenchError, which says where the
    loops are, when it has another length.
    """
    return Program.parse(listing).executed(trips)


def instruction_mix(listing: str) -> Counter[str]:
    """How often each opcode, without its modifiers, stands in the code that can be reached; loops count once."""
    program = Program.parse(listing)
    reached = {block for function in program.functions.values() for block in function.blocks}
    return Counter(program.instructions[index].kind for block in reached for index in program.blocks[block])
