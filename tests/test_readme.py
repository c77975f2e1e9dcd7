"""The README says what is true: its table is a committed result, its commands and options exist."""

from __future__ import annotations

import json
import os
import re
import subprocess
import sys
from collections import defaultdict
from pathlib import Path
from typing import Any

import pytest

from invbench.ops import BACKENDS
from invbench.report import FORMATS
from invbench.results import ResultSet

ROOT = Path(__file__).parents[1]
README = (ROOT / "README.md").read_text(encoding="utf-8")
RESULTS = sorted((ROOT / "profiles" / "results").rglob("*.json"))


def test_table_is_rendered_from_a_committed_result() -> None:
    shown = re.findall(r"<!-- result: (\S+) -->\n(.*?)\n<!-- end of result -->", README, re.DOTALL)
    assert shown
    for path, text in shown:
        stored = ResultSet.from_json((ROOT / path).read_text(encoding="utf-8"))
        assert text.strip() == FORMATS["markdown"](stored).strip(), f"render {path} into README.md again"


def test_the_table_of_trained_networks_is_rendered_from_a_committed_result() -> None:
    path, table = re.search(r"<!-- trained: (\S+) -->\n(.*?)\n<!-- end of trained -->", README, re.DOTALL).groups()
    stored = ResultSet.from_json((ROOT / path).read_text(encoding="utf-8"))
    assert table in FORMATS["markdown"](stored), f"render {path} into README.md again"


def test_compiled_figures_are_those_of_the_committed_file() -> None:
    path = re.search(r"<!-- compiled: (\S+) -->", README)[1]
    rows = [json.loads(line) for line in (ROOT / path).read_text(encoding="utf-8").splitlines()]
    found: dict[str, dict[str, Any]] = defaultdict(dict)
    for row in rows:
        if row["target"] == 90:
            found[row["stage"]][row["kernel"]] = row
    shown = re.findall(
        r"^\| stage (\d), (\S+) \| (\d+) \| ([\d-]+) \| ([\d.]+) \| (\d+) \| (\d+) \|$", README, re.MULTILINE
    )
    assert [stage for _, stage, *_ in shown] == list(found)
    for number, stage, forward, _, asked, grad_x, others in shown:
        counts = {kernel: row["thread_instructions"] for kernel, row in found[stage].items()}
        # At stage 1, grad_hidden comes with grad_span.
        rest = counts["span grad_span"] + (counts["span grad_hidden"] if number != "1" else 0)
        assert forward == f"{counts['span forward']:.0f}"
        assert asked == f"{found[stage]['span forward']['asked_over_least']:.2f}"
        assert (grad_x, others) == (f"{counts['span grad_x']:.0f}", f"{rest:.0f}")


@pytest.mark.parametrize("path", RESULTS, ids=lambda path: path.stem)
@pytest.mark.parametrize("name", FORMATS)
def test_committed_results_render(path: Path, name: str) -> None:
    stored = ResultSet.from_json(path.read_text(encoding="utf-8"))
    assert FORMATS[name](stored)
    assert stored.command.startswith("invbench ")
    commit = stored.environment["commit"]
    assert commit
    assert not commit.endswith("-dirty"), "measure at a commit that others can check out"


@pytest.mark.parametrize("marker", ["main job", "tests"])
def test_commands_that_ci_runs_are_there(marker: str) -> None:
    assert re.search(rf"^<!-- {marker} -->\n```sh\n.+\n```$", README, re.MULTILINE)


def test_every_backend_is_listed() -> None:
    assert set(re.findall(r"^\| `([\w-]+)` \|", README, re.MULTILINE)) == set(BACKENDS)


def test_the_workflow_for_ci_runs_commands_that_there_are(tmp_path: Path) -> None:
    """Each line that runs the program, by a shell as GitHub does, up to the first thing that is not there."""
    workflow = README.split("<!-- workflow -->\n```yaml\n")[1].split("```")[0]
    lines = [line.partition("run: ")[2] for line in workflow.splitlines() if "run: invbench" in line]
    assert len(lines) == 2
    (tmp_path / "bin").mkdir()
    program = tmp_path / "bin" / "invbench"
    program.write_text(f'#!/bin/sh\nexec {sys.executable} -m invbench "$@"\n')
    program.chmod(0o755)
    environment = {
        **os.environ, "PATH": f"{program.parent}:{os.environ['PATH']}", "PYTHONPATH": str(ROOT),
        "GITHUB_BASE_REF": "main",
    }  # fmt: skip
    for line, words in zip(lines, ("no profile 'no-such'", "latency.json"), strict=True):
        command = line.replace("check ci", "check no-such")
        done = subprocess.run(
            ["bash", "-e", "-c", command], cwd=tmp_path, env=environment, capture_output=True, text=True, timeout=60
        )
        assert words in done.stderr
        assert "no such option" not in done.stderr.lower()
