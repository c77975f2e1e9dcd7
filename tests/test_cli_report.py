"""``invbench report`` and ``invbench compare``: files in, text and files out, one line for each bad input."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from checks import checked, slower
from sweeps import OTHER, sweep

from invbench import cli
from invbench.report import FORMATS
from invbench.results import ResultSet


def run(arguments: list[str], monkeypatch: pytest.MonkeyPatch) -> int:
    monkeypatch.setattr(sys, "argv", ["invbench", *arguments])
    with pytest.raises(SystemExit) as stop:
        cli.main()
    return int(stop.value.code or 0)


@pytest.fixture
def files(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.setattr(cli.gc, "freeze", lambda: None)
    monkeypatch.chdir(tmp_path)
    documents = {
        "a.json": sweep({"K": [3]}), "b.json": sweep({"K": [5, 7]}), "other.json": sweep({"K": [3]}, environment=OTHER),
        "check.json": checked(slower()),
    }  # fmt: skip
    for name, results in documents.items():
        (tmp_path / name).write_text(results.to_json())
    (tmp_path / "text.json").write_text("not JSON")
    (tmp_path / "binary.json").write_bytes(b"\xff\xfe\x00")
    (tmp_path / "half.json").write_text('{"schema": 1, "results": []}')
    (tmp_path / "future.json").write_text('{"schema": 2}')
    (tmp_path / "broken.jsonl").write_text("{}\n")
    return tmp_path


@pytest.mark.parametrize("name", FORMATS)
def test_each_format_goes_to_standard_output(name: str, files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(["report", "a.json", "b.json", "--format", name], monkeypatch) == 0
    printed = capsys.readouterr()
    assert printed.err == ""
    if name == "json":
        read = ResultSet.from_json(printed.out)
        assert len(read.points()) == 3
        assert read.command == "invbench report a.json b.json --format json"


@pytest.mark.parametrize("name", FORMATS)
def test_checks_and_rows_are_told_together(name: str, files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(["report", "check.json", "--format", name], monkeypatch) == 0
    alone = capsys.readouterr().out
    assert run(["report", "check.json", "a.json", "--format", name], monkeypatch) == 0
    both = capsys.readouterr().out
    assert "FAIL" in alone
    assert "FAIL" in both
    assert "separable" not in alone
    assert "separable" in both or name == "github"  # whose rows failed only


def test_one_file_keeps_its_command(files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(["report", "a.json", "--format", "json"], monkeypatch) == 0
    assert json.loads(capsys.readouterr().out)["command"] == "invbench sweep"


@pytest.mark.parametrize("suffix", [".txt", ".json", ".csv", ".md", ".html", ".parquet", ".xml"])
def test_output_by_suffix_leaves_standard_output_empty(suffix: str, files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(["report", "a.json", "--output", f"out{suffix}"], monkeypatch) == 0
    assert capsys.readouterr().out == ""
    assert (files / f"out{suffix}").stat().st_size > 500


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["report"], "FILE"),
        (["report", "nope.json"], "nope.json"),
        (["report", "."], "."),
        (["report", "a.json", "text.json"], "text.json"),
        (["report", "binary.json"], "binary.json"),
        (["report", "half.json"], "half.json"),
        (["report", "future.json"], "future.json"),
        (["report", "broken.jsonl"], "broken.jsonl"),
        (["report", "nope.jsonl"], "nope.jsonl"),
        (["report", "a.json", "--format", "xls"], "--format"),
        (["report", "a.json", "--format", "parquet"], "--output"),
        (["report", "a.json", "--output", "a.xls"], ".parquet"),
        (["report", "a.json", "--output", "no/a.csv"], "--output"),
        (["compare"], "A and B"),
        (["compare", "a.json"], "A and B"),
        (["compare", "a.json", "nope.json"], "nope.json"),
        (["compare", "a.json", "b.json", "--format", "parquet"], "--format"),
        (["compare", "a.json", "b.json", "--format", "junit"], "--format"),
        (["compare", "a.json", "b.json", "--output", "a.parquet"], "--output"),
        (["compare", "a.json", "b.json", "--output", "a.xml"], "--output"),
    ],
    ids=" ".join,
)
def test_bad_input_is_one_line(arguments: list[str], words: str, files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(arguments, monkeypatch) == 2
    printed = capsys.readouterr()
    assert printed.out == ""
    assert printed.err.count("\n") == 1
    assert words in printed.err


@pytest.mark.parametrize(("other", "code"), [("a.json", 0), ("b.json", 0), ("other.json", 5)])
def test_compare_exit_codes(other: str, code: int, files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(["compare", "a.json", other], monkeypatch) == code
    assert "B against A" in capsys.readouterr().out


def test_compare_writes_a_file(files: Path, monkeypatch: Any, capsys: Any) -> None:
    assert run(["compare", "a.json", "b.json", "--output", "c.html"], monkeypatch) == 0
    assert capsys.readouterr().out == ""
    assert "invbench compare" in (files / "c.html").read_text()


def test_parquet_without_pyarrow_says_what_to_install(files: Path, monkeypatch: Any, capsys: Any) -> None:
    monkeypatch.setitem(sys.modules, "pyarrow", None)
    assert run(["report", "a.json", "--output", "a.parquet"], monkeypatch) == 2
    assert "pip install 'invbench[report]'" in capsys.readouterr().err
    assert not (files / "a.parquet").exists()


def test_reporting_imports_no_torch(files: Path) -> None:
    program = (
        "import sys; from invbench import cli\n"
        "sys.argv = ['invbench', 'report', 'a.json', 'b.json', '--output', 'x.html']\n"
        "try: cli.main()\n"
        "except SystemExit as stop: print(stop.code, *{'torch', 'numba', 'triton'} & set(sys.modules))\n"
    )
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, cwd=files, timeout=120)
    assert (done.stdout.strip(), done.stderr) == ("0", "")
