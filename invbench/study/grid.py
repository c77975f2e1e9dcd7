"""Which points a sweep has: axes as products or as listed cases, what follows from others, and what is left out."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from invbench.spec import (
    BASELINES,
    CASE_FIELDS,
    DTYPES,
    LAYOUTS,
    PADDING_MODES,
    Case,
    InvbenchError,
    LayerSpec,
    Mode,
    Scope,
    require_choice,
    require_positive,
)
from invbench.study.expression import Expression

NUMBERS = ("N", "C", "H", "W", "K", "G", "group_channels", "stride", "dilation", "reduction", "threads")
CHOICES: dict[str, tuple[str, ...]] = {
    "padding_mode": PADDING_MODES, "dtype": DTYPES, "layout": LAYOUTS, "mode": tuple(map(str, Mode)),
    "scope": tuple(map(str, Scope)), "baseline": BASELINES,
}  # fmt: skip
AXES = (*NUMBERS, *CHOICES)
"""Every axis but the device, which is a place to measure as well: see ``Grid.points``."""

DEFAULTS = {
    "N": 8, "C": 256, "K": 7, "stride": 1, "dilation": 1, "reduction": 4, "padding_mode": "zeros", "dtype": "float32",
    "layout": "channels_last", "mode": "forward", "scope": "layer", "baseline": "conv2d",
}  # fmt: skip
SIDE = 28
GROUP_CHANNELS = 16
MOST_POINTS = 100_000

Values = tuple[int | str, ...]
Axes = Mapping[str, Values]

FIELDS = (*CASE_FIELDS, "group_channels", "baseline")
"""What a constraint or a filter may name."""


@dataclass(frozen=True, slots=True)
class GridPoint:
    """One point of a sweep: a case, and the baseline (None for no ratios) that its ratios are to."""

    case: Case
    baseline: str | None

    @property
    def fields(self) -> dict[str, Any]:
        """What constraints and filters see."""
        group_channels = self.case.layer.group_channels
        return {**self.case.to_dict(), "group_channels": group_channels, "baseline": self.baseline or "none"}


@dataclass(frozen=True, slots=True)
class Refused:
    """A combination of the axes that is no layer or fits no image, and why."""

    fields: Mapping[str, Any]
    reason: str


@dataclass(frozen=True)
class Grid:
    """The points of a sweep.

    axes: values by name; the points are their product. cases: axes that go together; each is a product of its own, with
    its values before those of ``axes``. by_device: axes that replace ``axes`` on a type of device. constraints: a
    ``NAME = ...`` gives a field that has no axis its value; everything else, and every condition of ``filters``, leaves
    out the points for which it does not hold.
    """

    axes: Axes = field(default_factory=dict)
    cases: tuple[Axes, ...] = ({},)
    by_device: Mapping[str, Axes] = field(default_factory=dict)
    constraints: tuple[Expression, ...] = ()
    filters: tuple[Expression, ...] = ()

    def with_axes(self, axes: Axes, filters: tuple[Expression, ...] = ()) -> Grid:
        """The grid with other values for some axes, wherever it had any, and more filters.

        Where a constraint makes H and W follow each other and only one of them is given, the other follows it; where
        both are given, the constraint goes.
        """
        replaced = _names_of(axes)
        sides = replaced & set(_SQUARE)
        follows = [c for c in self.constraints if c.definition and c.definition[0] in _SQUARE]
        replaced |= set(_SQUARE) if sides and follows else set()
        kept = [c for c in self.constraints if c not in follows or len(sides) < len(_SQUARE)]
        cases = tuple(dict.fromkeys(tuple(_without(case, replaced).items()) for case in self.cases))
        return Grid(
            {**_without(self.axes, replaced), **axes}, tuple(dict(case) for case in cases),
            {device: _without(old, replaced) for device, old in self.by_device.items()},
            tuple(c for c in kept if not (c.definition and c.definition[0] in replaced - set(_SQUARE))),
            (*self.filters, *filters),
        )  # fmt: skip

    def points(self, devices: tuple[str, ...], threads: int) -> tuple[list[GridPoint], list[Refused]]:
        """The points on each type of device, none twice, and the combinations that are none.

        threads: for points that name none. A combination for which a constraint has no value is none. Raises
        InvbenchError for a filter that has no value, and for more than ``MOST_POINTS`` combinations.
        """
        points: dict[GridPoint, None] = {}
        refused: list[Refused] = []
        for device in devices:
            for given in self._products(device):
                fields = {**given, "device": device}
                try:
                    point = _point(self._completed(fields, threads))
                except InvbenchError as error:
                    refused.append(Refused(fields, str(error)))
                    continue
                if point is not None and all(keep(point.fields) for keep in self.filters):
                    points[point] = None
        return list(points), refused

    def _products(self, device: str) -> Iterator[dict[str, Any]]:
        """Every combination of the axes' values, before anything follows from anything."""
        kind = device.partition(":")[0]
        own = _replaced(self.axes, self.by_device.get(kind, {}))
        tables = [_replaced(own, case) for case in self.cases]
        count = sum(_product_size(table) for table in tables)
        if count > MOST_POINTS:
            raise InvbenchError(f"the axes have {count} combinations: at most {MOST_POINTS} are taken; shorten an axis")
        for table in tables:
            names = [name for name in AXES if name in table]
            for values in itertools.product(*(table[name] for name in names)):
                yield dict(zip(names, values, strict=True))

    def _completed(self, fields: dict[str, Any], threads: int) -> dict[str, Any] | None:
        """All fields of a combination, by its constraints and the defaults; None where a constraint leaves it out."""
        known = _Fields(fields, threads)
        for constraint in self.constraints:
            definition = constraint.definition
            if definition is not None and not known.has(definition[0]):
                name, value = definition
                known.set(name, value(known), constraint.text)
            elif not constraint(known):
                return None
        return {name: known[name] for name in (*CASE_FIELDS, "baseline")}


_SAME = {"G": ("G", "group_channels"), "group_channels": ("G", "group_channels")}
_SQUARE = ("H", "W")


class _Fields(dict[str, Any]):
    """A combination's fields; those that nothing gives have the interface's defaults."""

    def __init__(self, given: Mapping[str, Any], threads: int) -> None:
        super().__init__(given)
        self._threads = threads

    def has(self, name: str) -> bool:
        """Whether the axes give the field, also under its other name."""
        return any(other in self.keys() for other in _SAME.get(name, (name,)))

    def set(self, name: str, value: Any, source: str) -> None:
        """Give a field what a constraint says."""
        if isinstance(value, float) and name in NUMBERS:
            if not value.is_integer():
                raise InvbenchError(f"{name} must be a whole number: got {value:g} by {source!r}; try //")
            value = int(value)
        try:
            self[name] = check_value(name, value)
        except InvbenchError as error:
            raise InvbenchError(f"{error} (by {source!r})") from error

    def __missing__(self, name: str) -> Any:
        if name == "group_channels":
            return self["C"] // self["G"]
        if name == "G":
            return self._groups()
        if name in _SQUARE:  # the other side, where only one is given
            return next((self[side] for side in _SQUARE if side in self.keys()), SIDE)
        return self._threads if name == "threads" else DEFAULTS[name]

    def _groups(self) -> int:
        if "group_channels" not in self.keys():
            return max(1, int(self["C"]) // GROUP_CHANNELS)
        size = self["group_channels"]
        if self["C"] % size:
            raise InvbenchError(f"group_channels must divide C: got C={self['C']} and {size}; try 1")
        return int(self["C"]) // int(size)


def _point(fields: dict[str, Any] | None) -> GridPoint | None:
    if fields is None:
        return None
    baseline = fields.pop("baseline")
    return GridPoint(Case.from_dict(fields), None if baseline == "none" else baseline)


def _product_size(table: Axes) -> int:
    size = 1
    for values in table.values():
        size *= len(values)
    return size


def _names_of(axes: Axes) -> set[str]:
    """The axes that some axes replace: their own, and other names of the same."""
    return {name for axis in axes for name in _SAME.get(axis, (axis,))}


def _without(axes: Axes, names: set[str]) -> dict[str, Values]:
    return {name: values for name, values in axes.items() if name not in names}


def _replaced(axes: Axes, others: Axes) -> dict[str, Values]:
    """Axes, with those of others in their place."""
    return {**_without(axes, _names_of(others)), **others}


def parse_axis(name: str, text: str) -> Values:
    """The values of an axis: a comma list of words, or of whole numbers and ranges ``first:last:step``, end included.

    Raises InvbenchError that names the axis, what it got, and what it takes.
    """
    values = [value for item in text.split(",") for value in _parse_item(name, item.strip())]
    return tuple(dict.fromkeys(values))


def check_value(name: str, value: int | str) -> int | str:
    """The value, if the axis can have it; raises InvbenchError if not."""
    if name in CHOICES:
        require_choice(name, str(value), CHOICES[name])
    else:
        require_positive(name, value)
        if name == "K":
            LayerSpec(C=1, K=int(value))
    return value


def _parse_item(name: str, item: str) -> list[int | str]:
    if name in CHOICES:
        return [check_value(name, item)]
    parts = item.split(":")
    try:
        numbers = [int(part) for part in parts]
    except ValueError:
        numbers = []
    if len(numbers) not in (1, 2, 3) or (len(numbers) == 3 and numbers[2] < 1):
        raise InvbenchError(
            f"{name} takes whole numbers, comma lists and ranges first:last:step: got {item!r}; try {name}=7:56:7"
        )
    if len(numbers) == 1:
        return [check_value(name, numbers[0])]
    first, last, step = (*numbers, 1)[:3]
    if last < first:
        raise InvbenchError(f"{name} takes ranges whose first is not above their last: got {item!r}; swap the two")
    count = (last - first) // step + 1
    if count > MOST_POINTS:
        raise InvbenchError(f"{name} takes ranges of at most {MOST_POINTS} values: got {item!r}, {count}; shorten it")
    return [check_value(name, value) for value in range(first, last + 1, step)]
