"""How each number reads: units, and ratios in words."""

from __future__ import annotations

from invbench.results.quantities import Interval

MISSING = "-"
# A ratio this close to 1 is neither faster nor slower.
SAME = 0.005


def three_digits(value: float) -> str:
    """A number with three significant digits and no exponent."""
    exponent = int(f"{value:.2e}".partition("e")[2])
    return f"{value:.{max(0, 2 - exponent)}f}"


def rounded(value: float) -> float:
    """A number at the precision of ``three_digits``, by which its unit is chosen."""
    return float(f"{value:.2e}")


def printable(text: str) -> str:
    """Text without control characters, which a terminal would obey."""
    return "".join(character if character.isprintable() else " " for character in text)


def seconds(value: float, like: float | None = None) -> str:
    """A time in the unit that suits it, or that suits another."""
    shown = rounded(1e6 * (like or value)) / 1e6
    scale, unit = next((s for s in ((1.0, "s"), (1e-3, "ms")) if shown >= s[0]), (1e-6, "us"))
    return f"{three_digits(value / scale)} {unit}"


def seconds_with_interval(interval: Interval) -> str:
    """``1.23 ms [1.20, 1.27]``: the median and its interval in one unit."""
    low, high = (seconds(value, like=interval.median).split()[0] for value in (interval.low, interval.high))
    return f"{seconds(interval.median)} [{low}, {high}]"


def size(value: float) -> str:
    """Bytes in binary units."""
    for unit in ("B", "KiB", "MiB"):
        if float(three_digits(value)) < 1024:
            return f"{three_digits(value)} {unit}" if unit != "B" else f"{value:.0f} B"
        value /= 1024
    return f"{three_digits(value)} GiB"


def count(value: float) -> str:
    """A count of things, in thousands, millions or billions where that is shorter."""
    if value < 10_000:
        return f"{value:.0f}"
    scale, unit = next(s for s in ((1e9, "G"), (1e6, "M"), (1e3, "k")) if rounded(value) >= s[0])
    return f"{three_digits(value / scale)} {unit}"


def four_digits(value: float) -> str:
    """A count to be compared with another one: whole below a million, else with four significant digits."""
    if value < 1e6:
        return f"{value:,.0f}"
    scale, unit = (1e9, "G") if float(f"{value:.3e}") >= 1e9 else (1e6, "M")
    shown = float(f"{value / scale:.3e}")
    return f"{shown:.{3 - len(str(int(shown))) + 1}f} {unit}"


def times(ratio: float | None) -> str:
    """`` (0.25x)``, or nothing."""
    return "" if ratio is None else f" ({three_digits(ratio)}x)"


def faster_or_slower(ratio: float) -> str:
    """A latency ratio in words: ``2.40x faster``."""
    if abs(ratio - 1) < SAME:
        return "1.00x"
    return f"{three_digits(1 / ratio)}x faster" if ratio < 1 else f"{three_digits(ratio)}x slower"


def percent(share: float) -> str:
    """A share in a sentence: ``5 %``, ``8.3 %``."""
    return f"{round(100 * share, 1):g} %"


def plural(number: int, noun: str) -> str:
    """``1 point``, ``2 points``."""
    return f"{number} {noun}{'s' * (number != 1)}"


def spoken(parts: list[str]) -> str:
    """``a``, ``a and b``, ``a, b and c``."""
    return " and ".join(filter(None, [", ".join(parts[:-1]), parts[-1]])) if parts else ""
