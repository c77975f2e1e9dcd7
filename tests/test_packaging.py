"""What is installed: dependencies, typing, the console script, lazy imports, and optional libraries that are broken."""

from __future__ import annotations

import importlib.metadata
import importlib.resources
import json
import os
import re
import subprocess
import sys
import tomllib
from pathlib import Path
from typing import Any

import pytest

import invbench

ROOT = Path(__file__).parents[1]
PROJECT: dict[str, Any] = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]


def requirement(text: str) -> tuple[str, str, str]:
    """Name, version bound and marker."""
    wanted, _, marker = text.partition(";")
    found = re.fullmatch(r"([\w.-]+)(.*)", wanted.strip())
    assert found
    return found[1], found[2].strip(), marker.strip()


REQUIREMENTS = {name: (bound, marker) for name, bound, marker in map(requirement, PROJECT["dependencies"])}


@pytest.mark.parametrize(
    "name", ["torch", "numpy", "numba", "typer", "rich", "pandas", "psutil", "filelock", "nvidia-ml-py", "triton"]
)
def test_dependency(name: str) -> None:
    bound, marker = REQUIREMENTS[name]
    assert bound.startswith(">=")
    # Triton has wheels for Linux only.
    assert re.sub(r"[\s'\"]", "", marker) == ("sys_platform==linux" if name == "triton" else "")


def test_dependencies_are_these_and_no_others() -> None:
    assert len(REQUIREMENTS) == 10
    assert REQUIREMENTS["torch"][0] == ">=2.6"


def test_the_extra_for_tests_has_what_the_tests_import() -> None:
    names = {requirement(text)[0] for text in PROJECT["optional-dependencies"]["test"]}
    assert names == {"invbench", "pytest", "pytest-xdist", "hypothesis", "expecttest", "selenium"}
    assert PROJECT["optional-dependencies"]["test"][0] == "invbench[report,train,cluster]"


def test_the_extra_for_reports_has_what_plots_parquet_and_change_points_need() -> None:
    names = {requirement(text)[0] for text in PROJECT["optional-dependencies"]["report"]}
    assert names == {"bokeh", "pyarrow", "ruptures"}
    for name in ("page.js", "plots.js", "scatter.js", "curves.js", "history.js", "style.css"):
        assert importlib.resources.files("invbench.report.web").joinpath(name).is_file()


def test_the_extra_for_training_has_what_the_digits_need() -> None:
    assert {requirement(text)[0] for text in PROJECT["optional-dependencies"]["train"]} == {"scikit-learn"}


def test_the_extra_for_clusters_is_ray_alone() -> None:
    assert {requirement(text)[0] for text in PROJECT["optional-dependencies"]["cluster"]} == {"ray"}


def test_installed_metadata() -> None:
    assert importlib.metadata.version("invbench") == invbench.__version__
    (script,) = (
        entry for entry in importlib.metadata.entry_points(group="console_scripts") if entry.name == "invbench"
    )
    assert script.value == "invbench.cli:main"
    assert callable(script.load())


def test_types_are_shipped() -> None:
    assert importlib.resources.files("invbench").joinpath("py.typed").is_file()
    package_data = tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["package-data"]
    assert "py.typed" in package_data["invbench"]


def test_every_package_is_shipped() -> None:
    listed = set(tomllib.loads((ROOT / "pyproject.toml").read_text())["tool"]["setuptools"]["packages"])
    found = {".".join(file.parent.relative_to(ROOT).parts) for file in (ROOT / "invbench").rglob("__init__.py")}
    assert listed == {*found, "invbench.profiles"}


# --- Imports, each in a process of its own ---


def fresh(*arguments: str, path: Path | None = None) -> subprocess.CompletedProcess[str]:
    environment = {k: v for k, v in os.environ.items() if k not in ("TRITON_INTERPRET", "PYTHONPATH", "COLUMNS")}
    if path:
        environment["PYTHONPATH"] = str(path)
    return subprocess.run([sys.executable, *arguments], capture_output=True, text=True, timeout=240, env=environment)


@pytest.mark.parametrize(
    "module",
    [
        "invbench",
        "invbench.spec",
        "invbench.results",
        "invbench.verdict",
        "invbench.report",
        "invbench.cli",
        "invbench.ops",
        "invbench.training.data_sets",
    ],
)
def test_telling_imports_neither_torch_nor_pandas(module: str) -> None:
    done = fresh("-c", f"import sys, {module}; print(*{{'torch', 'pandas', 'numba', 'triton'}} & set(sys.modules))")
    assert (done.stdout.strip(), done.stderr, done.returncode) == ("", "", 0)


def test_reading_and_rendering_a_document_imports_no_torch() -> None:
    program = (
        f"import sys; sys.path.insert(0, {str(ROOT / 'tests')!r}); import types; "
        "from invbench.results import Result, ResultSet; from invbench.report import FORMATS; "
        "from invbench.spec import Case, LayerSpec; "
        "text = ResultSet((Result('involution', 'naive', Case(1, 9, 9, LayerSpec(16, 3))),), '', '', '').to_json(); "
        "[render(ResultSet.from_json(text)) for render in FORMATS.values()]; print('torch' in sys.modules)"
    )
    done = fresh("-c", program)
    assert (done.stdout.strip(), done.stderr) == ("False", "")


def test_public_names_are_there_and_unknown_ones_are_attribute_errors() -> None:
    assert {"Involution2d", "involution2d", "__version__"} <= set(invbench.__all__)
    assert callable(invbench.involution2d)
    assert isinstance(invbench.Involution2d, type)
    with pytest.raises(AttributeError, match="nonsense"):
        _ = invbench.nonsense
    assert not hasattr(invbench.ops, "nonsense")


def broken(folder: Path, name: str, statement: str) -> None:
    (folder / f"{name}.py").write_text(statement + "\n")


@pytest.mark.parametrize(
    "statement",
    [
        "raise ImportError('libllvm.so: cannot open shared object file\\nmore')",
        "raise SystemError('initialization failed')",
        "raise AttributeError('module has no attribute: wrong version')",
    ],
    ids=["import error", "system error", "attribute error"],
)
def test_a_broken_library_makes_its_backend_unavailable(statement: str, tmp_path: Path) -> None:
    broken(tmp_path, "numba", statement)
    broken(tmp_path, "triton", statement)
    done = fresh("-m", "invbench", "backends", "--format", "json", path=tmp_path)
    assert (done.returncode, done.stderr) == (0, "")
    rows = {row["name"]: row for row in json.loads(done.stdout)}
    words = statement.split("'")[1].partition("\\n")[0]
    for name in ("numba", "triton"):
        assert rows[name]["available"] == []
        assert words in rows[name]["unavailable"]["cpu"]
    assert "cpu" in rows["naive"]["available"]


def test_op_goes_on_without_a_broken_library(tmp_path: Path) -> None:
    # A real run, as tiny as it can be: Numba is broken here and in the processes that measure memory.
    broken(tmp_path, "numba", "raise ImportError('broken on purpose')")
    point = ["--N=1", "--C=16", "--H=9", "--W=9", "--K=3", "--threads=1", "--device=cpu"]
    how = ["--backend=naive", "--backend=numba", "--budget=0.1", "--quiet", "--format=json"]
    done = fresh("-m", "invbench", "op", *point, *how, path=tmp_path)
    assert done.returncode == 2, done.stderr  # it was asked for by name
    assert done.stderr == ""
    rows = {row["backend"]: row for row in json.loads(done.stdout)["results"]}
    assert rows["numba"]["status"] == "unavailable"
    assert "broken on purpose" in rows["numba"]["reason"]
    assert rows["naive"]["status"] == "ok"
    assert rows["naive"]["memory"]["method"] == ("vmhwm" if sys.platform == "linux" else None)


def test_a_broken_backend_asked_for_alone_is_2_and_one_line(tmp_path: Path) -> None:
    broken(tmp_path, "numba", "raise ImportError('broken on purpose')")
    done = fresh("-m", "invbench", "op", "--device", "cpu", "--backend", "numba", "--quiet", path=tmp_path)
    assert done.returncode == 2
    assert done.stdout == ""
    assert done.stderr.count("\n") == 1
    assert "--backend numba" in done.stderr
    assert "broken on purpose" in done.stderr


def test_an_unwritable_compiler_cache_costs_only_its_backend(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    environment = {**os.environ, "TORCHINDUCTOR_CACHE_DIR": str(tmp_path / "file" / "cache")}
    program = """
import torch
from invbench import Involution2d
Involution2d(1, 1, backend="naive").eval()(torch.ones(1, 1, 1, 1))
"""
    done = subprocess.run([sys.executable, "-c", program], env=environment, capture_output=True, text=True)
    assert done.returncode == 0, done.stderr
