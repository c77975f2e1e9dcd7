"""How the work of the span and banded kernels is cut into programs, and how many bytes of memory these ask for."""

from __future__ import annotations

import functools
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass

import triton

from invbench.ops.library import Window

LINE = 16  # columns of x that a program moves on by: with a stride of 2, it computes half as many positions
WIDTH = 16  # channels of a unit
WARPS_EACH = 8  # warps that keep a multiprocessor busy

FORWARD, GRAD_X, GRAD_HIDDEN, GRAD_SPAN = KERNELS = ("forward", "grad_x", "grad_hidden", "grad_span")
# With the weight given.
BANDED_FORWARD, BANDED_GRAD_X, BANDED_GRAD_WEIGHT = BANDED = ("forward of weight", "grad_x of weight", "grad_weight")

# The most hidden channels with which a warp of 64 lanes, and one of the gradients of hidden and span, keeps a group's
# span in registers or in shared memory, beside what else it keeps there; with more, it would spill.
KEPT_CHANNELS = 16
# The most registers of a thread for what a warp of 32 lanes keeps of window rows: of x or sums, and of the span.
KEPT_REGISTERS = 112
# Likewise for what a warp of grad_span keeps: sums for the span and the bias, and x.
SUM_REGISTERS = 144
MOST_PARTS = 8  # of a window's rows
MOST_WARPS = 8  # of a program
MOST_ASKED = 1.5  # times the least bytes, for the default cut of the forward pass, where a cut asks for as little


@dataclass(frozen=True, slots=True)
class Chip:
    """What kernels need to know of a GPU: its multiprocessors, the lanes of a warp, and NVIDIA's compute capability (10
    times the major number and the minor one; 0 of others)."""

    multiprocessors: int = 132
    lanes: int = 32
    capability: int = 90

    @property
    def is_short_of_registers(self) -> bool:
        """Whether the compiler needs more of them for the same code, as it does for NVIDIA's generation before."""
        return 0 < self.capability < 90

    @property
    def rounds_pairs(self) -> bool:
        """Whether one PTX instruction rounds two float32 to 16 bits."""
        return self.lanes == 32 and self.capability >= 80


@dataclass(frozen=True, slots=True)
class Problem:
    """The sizes of one aggregate whose weight is made of r hidden channels, or given: then r is 0."""

    N: int
    C: int
    H: int
    W: int
    H_out: int
    W_out: int
    G: int
    r: int
    window: Window

    @property
    def group_channels(self) -> int:
        """Channels that share one weight."""
        return self.C // self.G

    @property
    def blocks(self) -> int:
        """Units of a group."""
        return triton.cdiv(self.group_channels, WIDTH)

    @property
    def units(self) -> int:
        """Units of all groups."""
        return self.G * self.blocks

    @property
    def slots(self) -> int:
        """Columns for the taps of a window row: a power of two above K."""
        return max(8, triton.next_power_of_2(self.window.K + 1))

    @property
    def columns(self) -> int:
        """Columns of x that a line's windows read, as a power of two."""
        return triton.next_power_of_2(LINE - self.window.stride + self.window.K)

    @property
    def positions(self) -> int:
        """Positions of y in a line."""
        return LINE // self.window.stride

    @property
    def hidden_channels(self) -> int:
        """r as matrix units count it: a power of two, 16 at least."""
        return max(16, triton.next_power_of_2(self.r))

    @property
    def images(self) -> int:
        """Images of every d-th row and column, d being the dilation."""
        return self.N * self.window.dilation**2

    def residues(self, size: int) -> list[int]:
        """The sizes of the images of every d-th row (or column) of one of this size."""
        d = self.window.dilation
        return [triton.cdiv(size - first, d) for first in range(d)]


@dataclass(frozen=True, slots=True)
class Tile:
    """What one program computes: ``units``, and ``rows`` of a line (of each strip in it, where it is folded), of
    ``images`` (forward only)."""

    units: int
    rows: int
    images: int = 1


@dataclass(frozen=True, slots=True)
class Cut:
    """A problem cut into tiles for one of ``KERNELS`` or ``BANDED``, on a chip."""

    kernel: str
    problem: Problem
    tile: Tile
    chip: Chip = Chip()

    @property
    def unit_blocks(self) -> int:
        """Blocks of units, of which a program has one; those of grad_hidden have one after the other."""
        return self.problem.units // self.tile.units

    @property
    def of_x(self) -> bool:
        """Whether tiles are pixels of grad_x, not positions of y."""
        return self.kernel in (GRAD_X, BANDED_GRAD_X)

    @property
    def margin(self) -> int:
        """Columns by which the first line begins before the image, so that a window of stride 2 can begin with it."""
        window = self.problem.window
        return (window.stride - 1) * (window.K // 2 % 2) if self.of_x else 0

    @property
    def alone(self) -> bool:
        """Whether a line is the only one of its image, so that windows on no other positions meet it."""
        return self.problem.window.stride == 1 and max(self.problem.residues(self.problem.W)) <= LINE

    @property
    def fold(self) -> int:
        """Strips that lie side by side in a line: 2 where the image is so narrow that windows on half of a line's
        positions read half of its columns, and of more than a row."""
        p = self.problem
        is_narrow = max(p.residues(p.W)) <= LINE // 2 and max(p.residues(p.H)) > 1
        return 2 if is_narrow and p.window.stride == 1 and p.slots == LINE // 2 else 1

    @property
    def parts(self) -> int:
        """Parts of a window's rows, each for a warp of its own: as many as it takes for registers to suffice."""
        p, R = self.problem, self.problem.hidden_channels
        if self.chip.lanes == 64 and self.kernel == FORWARD:
            return 4 if R > 64 else 1
        is_wide, skips = p.slots > 8, p.window.stride > 1
        if self.kernel == GRAD_SPAN:
            each, most = R * p.slots // 32 + p.slots // 2 + 8, SUM_REGISTERS - 24 * skips
        elif self.kernel in (FORWARD, GRAD_X) and self.chip.lanes == 32:
            # Wide windows, strides and folded lines take more of them elsewhere.
            each, most = self._row_registers, KEPT_REGISTERS - 32 * is_wide - 8 * (self.fold - 1)
        else:
            return 1
        parts = 1
        while parts < MOST_PARTS and self._rows_of(parts) * each > most:
            parts *= 2
        return parts

    @property
    def part_rows(self) -> int:
        """Window rows of a part."""
        return self._rows_of(self.parts)

    @property
    def _row_registers(self) -> int:
        """Registers of a thread for what a warp of 32 lanes keeps of one window row."""
        return self.problem.hidden_channels * self.problem.slots // 64 + 8

    def _rows_of(self, parts: int) -> int:
        K, stride = self.problem.window.K, self.problem.window.stride
        # At least as many as a warp reads anew for a row of y; for grad_x, as many as rows of y can lie apart.
        return K if parts == 1 else triton.cdiv(triton.cdiv(K, parts), stride) * stride

    @property
    def lines(self) -> int:
        """Lines side by side."""
        if self.of_x:
            return triton.cdiv(max(self.problem.residues(self.problem.W)) + self.margin, LINE)
        return triton.cdiv(max(self.problem.residues(self.problem.W_out)), self.problem.positions)

    @property
    def strips(self) -> int:
        """Strips one below the other; of those in a folded line, one."""
        rows = self.problem.H if self.of_x else self.problem.H_out
        return triton.cdiv(max(self.problem.residues(rows)), self.tile.rows * self.fold)

    @property
    def places(self) -> int:
        """Strips of all lines of all images."""
        images = triton.cdiv(self.problem.N, self.tile.images) * self.problem.window.dilation**2
        return self.lines * self.strips * images

    @property
    def keeps_span(self) -> bool:
        """Whether a warp keeps what it needs of the span in registers."""
        R = self.problem.hidden_channels
        if self.kernel in (GRAD_HIDDEN, GRAD_SPAN) or self.chip.lanes != 32:
            return R <= KEPT_CHANNELS
        return self.part_rows * self._row_registers <= KEPT_REGISTERS

    @property
    def with_hidden(self) -> bool:
        """Whether programs of grad_span, which have all units then, write grad_hidden, too: not those of folded lines,
        which would spill."""
        return self.kernel == GRAD_SPAN and self.keeps_span and self.unit_blocks == 1 and self.fold == 1

    @property
    def num_warps(self) -> int:
        """Warps of a program: one for each unit and part, or more where one alone would spill."""
        if self.chip.lanes == 64 and self.problem.hidden_channels > 64 and self.kernel == GRAD_X:
            return 4 * self.tile.units
        return self.tile.units * self.parts

    @property
    def rows_at_once(self) -> int:
        """Rows that a trip of the forward pass' loop computes, more than one where registers suffice."""
        return 2 if self.tile.rows % 2 == 0 and self.chip.lanes == 32 and self.problem.slots == 8 else 1

    @property
    def in_thirds(self) -> bool:
        """Whether the windows on a line read columns that three stretches of eight have, not two or four."""
        p = self.problem
        return self.fold == 1 and p.slots == 8 and LINE < LINE - p.window.stride + p.window.K <= LINE + 8

    @property
    def programs(self) -> int:
        """Programs to launch; for grad_span those of one share."""
        if self.kernel == GRAD_SPAN:
            return self.unit_blocks
        return self.places * (1 if self.kernel == GRAD_HIDDEN else self.unit_blocks)

    def asked(self, size: int, parameter_size: int, shares: int = 1) -> Counter[str]:
        """Bytes that a launch asks for, by tensor, each load and store counted.

        size: bytes of a number of x, hidden, y and their gradients. parameter_size: of span and bias. shares: of
        grad_span.
        """
        p, K = self.problem, self.problem.window.K
        image, of_x, of_y = p.N * size, self._asked_of_x(), sum(p.residues(p.H_out)) * sum(p.residues(p.W_out))
        if self.kernel in BANDED:
            # Positions' weights, once for each unit.
            read = self._asked_for_x() if self.of_x else of_y
            given = image * p.units * K * K * read
            if self.of_x:
                written = sum(p.residues(p.H)) * sum(p.residues(p.W))
                return Counter(grad_y=image * p.C * read, weight=given, grad_x=image * p.C * written)
            names = ("y", "weight") if self.kernel == BANDED_FORWARD else ("grad_y", "grad_weight")
            return Counter({"x": image * p.C * of_x, names[0]: image * p.C * of_y, names[1]: given})
        taps = p.units * K * K * parameter_size  # of bias, once for each unit
        if self.kernel == GRAD_X:
            of_y = self._asked_for_x()
            steps = self.lines * p.images * sum(end - first for first, end in self.walks_for_x())
            written = sum(p.residues(p.H)) * sum(p.residues(p.W))
            return Counter(
                grad_y=image * p.C * of_y, hidden=image * p.r * of_y * self.unit_blocks, grad_x=image * p.C * written,
                span=self._span_times(steps) * taps * p.r, bias=self._span_times(steps) * taps,
            )  # fmt: skip
        if self.kernel == GRAD_HIDDEN:
            return Counter(
                x=image * p.C * of_x, grad_y=image * p.C * of_y, grad_hidden=image * p.r * of_y,
                span=self.places * (1 if self.keeps_span else self.tile.rows) * taps * p.r,
            )  # fmt: skip
        if self.kernel == GRAD_SPAN:
            found = shares * p.units * K * K * 4
            asked = Counter(
                x=image * p.C * of_x, grad_y=image * p.C * of_y * self.parts,
                hidden=image * p.r * of_y * self.unit_blocks, grad_span=found * p.r, grad_bias=found,
            )  # fmt: skip
            if self.with_hidden:
                asked.update(grad_hidden=image * p.r * of_y, span=shares * taps * p.r)
            return asked
        times = self._span_times(self.lines * self.strips * p.images * self.tile.rows)
        return Counter(
            x=image * p.C * of_x, hidden=image * p.r * of_y * self.unit_blocks, y=image * p.C * of_y,
            span=times * taps * p.r, bias=times * taps,
        )  # fmt: skip

    def _span_times(self, rows: int) -> int:
        """How often the span is read: by each program, or for each of its rows."""
        return self.places if self.keeps_span else rows

    def _part_tops(self) -> list[int]:
        """The first window row of each part."""
        return [part * self.part_rows for part in range(self.parts)]

    def _asked_of_x(self) -> int:
        """Pixels of a whole image that programs with positions of y ask for, of one channel."""
        p, stride, K = self.problem, self.problem.window.stride, self.problem.window.K
        height, width = (self.tile.rows - 1) * stride + self.part_rows, LINE - stride + K
        strips = range(self.strips * self.fold)
        tops = [strip * self.tile.rows * stride - K // 2 + u for strip in strips for u in self._part_tops()]
        lefts = [line * LINE - K // 2 for line in range(self.lines)]
        rows = sum(_inside(top, top + height, size) for size in p.residues(p.H) for top in tops)
        return rows * sum(_inside(left, left + width, size) for size in p.residues(p.W) for left in lefts)

    def _asked_for_x(self) -> int:
        """Positions of a whole y that programs with pixels of grad_x ask for, of one channel."""
        p, stride, K = self.problem, self.problem.window.stride, self.problem.window.K
        lefts = [(line * LINE - self.margin + K // 2 - (K - 1)) // stride for line in range(self.lines)]
        width = triton.cdiv(LINE + K - 1, stride)
        folds = [fold * self.tile.rows for fold in range(self.fold)]
        belows = [below - u // stride for below in folds for u in self._part_tops()]
        walks = [(first + below, end + below) for first, end in self.walks_for_x() for below in belows]
        rows = sum(_inside(first, end, size) for size in p.residues(p.H_out) for first, end in walks)
        return rows * sum(_inside(left, left + width, size) for size in p.residues(p.W_out) for left in lefts)

    def walks_for_x(self) -> list[tuple[int, int]]:
        """The rows of y, from the first to before the second, that programs of each strip of grad_x walk down."""
        stride, K, rows = self.problem.window.stride, self.problem.window.K, self.tile.rows
        tops = [strip * rows * self.fold for strip in range(self.strips)]
        last = self.part_rows - 1
        return [((top + K // 2 - last) // stride, (top + rows - 1 + K // 2) // stride + 1) for top in tops]


def _inside(first: int, end: int, size: int) -> int:
    """How much of [first, end) lies in [0, size)."""
    return max(0, min(end, size) - max(first, 0))


@functools.lru_cache(maxsize=4096)
def default_cut(kernel: str, problem: Problem, chip: Chip) -> Cut:
    """The cut of the least ``cost``; of equals the one with more units, whose loads are longer.

    The forward pass has one that asks for at most ``MOST_ASKED`` times the least bytes, where any cut does: fewer
    programs then read the span less often, even if they leave multiprocessors idle.
    """
    least = 2 * problem.N * (problem.C * (problem.H * problem.W + problem.H_out * problem.W_out))
    least += 2 * problem.N * problem.r * problem.H_out * problem.W_out

    def rank(cut: Cut) -> tuple[bool, float, int]:
        is_greedy = kernel == FORWARD and cut.asked(2, 2).total() > MOST_ASKED * least
        return is_greedy, cost(cut), -cut.tile.units

    return min(cuts(kernel, problem, chip), key=rank)


def cost(cut: Cut) -> float:
    """Bytes that a launch asks for, stretched as far as it does not keep the multiprocessors busy.

    Too few warps are taken to stretch the time in proportion.
    """
    warps = cut.programs * cut.num_warps
    if cut.kernel == GRAD_SPAN:  # shares make as many programs as are needed
        warps *= cut.places
    return sum(cut.asked(2, 2).values()) * max(1.0, cut.chip.multiprocessors * WARPS_EACH / warps)


def cuts(kernel: str, problem: Problem, chip: Chip) -> Iterator[Cut]:
    """All cuts worth a try: up to 8 units, strips that halve the image again and again, up to 8 small images."""
    # Programs of many registers have few warps; of more, compilers would also spill a few so that one more has room.
    is_folded = Cut(kernel, problem, Tile(1, 1), chip).fold > 1
    most = MOST_WARPS if chip.lanes == 32 and kernel != GRAD_HIDDEN else MOST_WARPS // 2
    if kernel == BANDED_GRAD_WEIGHT and is_folded:
        most = min(most, 4)
    if chip.is_short_of_registers and kernel in (FORWARD, BANDED_FORWARD):
        most = min(most, 2 if kernel == BANDED_FORWARD and is_folded else 4)
    if chip.lanes == 64 and problem.hidden_channels > 64 and kernel in (FORWARD, GRAD_X):
        most = 1
    most = max(1, most // Cut(kernel, problem, Tile(1, 1), chip).parts)
    choices = [units for units in (1, 2, 4, 8) if units <= most and problem.units % units == 0]
    if kernel == GRAD_SPAN and Cut(kernel, problem, Tile(choices[-1], 1), chip).with_hidden:
        choices = choices[-1:]
    if kernel == GRAD_HIDDEN:
        # Sums of all rows stay in registers: 16 numbers for each thread and 32 hidden channels.
        highest, sums = 4 if problem.slots == 8 else 3, 96 if chip.is_short_of_registers else 128
        if problem.window.K > 11:
            highest, sums = 2, 64
        rows = min(highest, sums // problem.hidden_channels) // problem.window.stride
        yield Cut(kernel, problem, Tile(choices[-1], max(1, rows)), chip)
        return
    of_x = kernel in (GRAD_X, BANDED_GRAD_X)
    whole = max(problem.residues(problem.H if of_x else problem.H_out))
    whole = triton.cdiv(whole, Cut(kernel, problem, Tile(1, 1), chip).fold)
    for units in choices:
        rows = whole
        while True:
            # Strips of grad_x begin where a window of stride 2 can.
            step = problem.window.stride if of_x else 1
            for images in (1, 2, 4, 8) if kernel == FORWARD and rows == whole else (1,):
                yield Cut(kernel, problem, Tile(units, triton.cdiv(rows, step) * step, images), chip)
            if rows <= max(2, problem.window.K // 2):
                break
            rows = triton.cdiv(rows, 2)


def shares_of(cut: Cut) -> int:
    """Programs among which the tiles of grad_span are shared out: as many as twice the warps that keep busy."""
    wanted = triton.cdiv(2 * cut.chip.multiprocessors * WARPS_EACH, cut.programs * cut.num_warps)
    # Each with as many tiles as the others, but for the last.
    return triton.cdiv(cut.places, triton.cdiv(cut.places, wanted))
