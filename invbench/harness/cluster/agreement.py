"""Is a sweep over a cluster the same as one without? ``python -m invbench.harness.cluster.agreement PLAIN CLUSTER``.

From the journals of the same points, without Ray and with it: the share of rows whose ratios agree, which is that their
95 % intervals overlap; and what Ray adds to a point. A node's points end one after the other: between two ends, what is
not the second point's own time was spent on handing it over, once there is a measuring process. Two journals without
Ray show how far sweeps agree at all: without ``--launches`` a row's interval is of one process, and processes differ.
"""

from __future__ import annotations

import argparse
import itertools
import statistics
import sys
from collections.abc import Iterable
from pathlib import Path

from invbench.results import Result, ResultSet, machine_class
from invbench.results.journal import Entry, read_document, read_entries
from invbench.results.quantities import Interval
from invbench.spec import InvbenchError

LEAST_SHARE = 0.9
MOST_SECONDS = 1.0


def overheads(entries: Iterable[Entry]) -> list[float]:
    """Seconds that each point of a cluster took besides measuring, but for the first of each node."""
    by_node: dict[str, list[tuple[float, float]]] = {}
    for entry in entries:
        if entry.span:
            by_node.setdefault(entry.span.node, []).append((entry.span.end, entry.seconds["wall"]))
    pairs = (pair for points in by_node.values() for pair in itertools.pairwise(sorted(points)))
    return [end - last - wall for (last, _), (end, wall) in pairs]


def agreement(plain: ResultSet, cluster: ResultSet) -> tuple[int, list[str]]:
    """How many rows have a ratio in both, and, of those whose intervals do not overlap, a line each."""
    count, apart = 0, []
    others = {_identity(cluster, row): row for row in cluster.results}
    for row in plain.results:
        one, other = _ratio(row), _ratio(others.get(_identity(plain, row)))
        if one is None or other is None:
            continue
        count += 1
        if one.low > other.high or other.low > one.high:
            apart.append(f"{_name(row)}: {_told(one)} in the first, {_told(other)} in the second")
    return count, sorted(apart)


def _identity(results: ResultSet, row: Result) -> tuple[object, ...]:
    """What makes a row of one document the same as one of another: its point, its class of machine and its name."""
    return row.case, machine_class(results.environment_of(row)), row.baseline, row.name


def _ratio(row: Result | None) -> Interval | None:
    """A row's ratio, but for the baseline's own, which is 1 whatever happens."""
    found = row.ratio.latency if row is not None and row.ratio is not None else None
    return None if found is None or found.low == found.high == 1.0 else found


def _name(row: Result) -> str:
    case = row.case.to_dict()
    fields = (f"{name}={case[name]}" for name in ("N", "C", "H", "W", "K", "mode", "dtype") if name in case)
    return f"{' '.join(fields)} {' '.join(row.name).strip()}"


def _told(ratio: Interval) -> str:
    return f"{ratio.median:.3g} [{ratio.low:.3g}, {ratio.high:.3g}]"


def main(arguments: list[str] | None = None) -> int:
    """Print both findings; 0 if ratios agree in 90 % of rows and a point costs at most a second besides; 2 if nothing
    can be compared."""
    parser = argparse.ArgumentParser(prog="python -m invbench.harness.cluster.agreement", description=__doc__)
    parser.add_argument("plain", type=Path, help="the journal of a sweep without Ray")
    parser.add_argument("cluster", type=Path, help="that of the same sweep with --ray, or once more without")
    chosen = parser.parse_args(arguments)
    try:
        count, apart = agreement(read_document(chosen.plain), read_document(chosen.cluster))
        added = overheads(read_entries(chosen.cluster))
    except InvbenchError as error:
        sys.stderr.write(f"{error}\n")
        return 2
    if not count:
        sys.stdout.write("nothing to compare: no row has a ratio in both\n")
        return 2
    share = 1 - len(apart) / count
    lines = [
        *apart,
        f"ratios agree within their intervals in {count - len(apart)} of {count} rows ({share:.1%})",
    ]
    if added:
        lines.append(
            f"besides measuring a point takes {statistics.median(added):.3f} s, and at most {max(added):.3f} s, of "
            f"{len(added)} on warm workers"
        )
    sys.stdout.write("\n".join(lines) + "\n")
    return int(share < LEAST_SHARE or max(added, default=0.0) > MOST_SECONDS)


if __name__ == "__main__":
    sys.exit(main())
