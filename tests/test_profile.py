"""Profiles: what TOML may say, what it is refused for by file, line and key, and those that are shipped."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from invbench import cli
from invbench.ops import BACKENDS
from invbench.spec import InvbenchError
from invbench.study import profile
from invbench.study.expression import Expression
from invbench.study.grid import FIELDS
from invbench.study.limits import CaseLimits, Limits

WHOLE = """
description = "everything"
budget = 6
precision = 1.5
timeout = 60.0
launches = 7
clock = "eager"
cache = "cold"
backend = ["numba", "unfold", "numba"]
subject = "package.module:factory"
constraints = ["W = H", "G = C / 16"]

[axes]
C = [64, "128:256:128"]
H = 7
mode = ["forward", "train"]
dtype = "float32,float16"

[on.cuda]
N = [64, 256]

[[cases]]
K = 3

[[cases]] # with a word
K = "7,11"

[check]
latency = "4%"
memory = "0.5 %"
visible = "20%"
launches = 5
quads = 3

[[check.cases]] # training is noisier
where = "mode = train"
latency = "8%"

[[check.cases]]
where = "mode = train and C = 64"
latency = "9%"
kept = "1%"
"""


def test_a_whole_profile() -> None:
    read = profile.parse(WHOLE, "whole", "whole.toml")
    assert (read.name, read.description) == ("whole", "everything")
    assert (read.budget, read.precision, read.timeout, read.clock, read.cache) == (6.0, 1.5, 60.0, "eager", "cold")
    assert read.launches == 7  # not those of the check
    assert (read.backends, read.subjects) == (("numba", "unfold"), ("package.module:factory",))
    assert read.grid.axes["C"] == (64, 128, 256)
    assert read.grid.axes["dtype"] == ("float32", "float16")
    assert read.grid.cases == ({"K": (3,)}, {"K": (7, 11)})
    assert read.grid.by_device == {"cuda": {"N": (64, 256)}}
    training = CaseLimits(Expression("mode = train", FIELDS), {"latency": 0.08})
    small = CaseLimits(Expression("mode = train and C = 64", FIELDS), {"latency": 0.09, "kept": 0.01})
    assert read.limits == Limits({"latency": 0.04, "memory": 0.005}, 0.2, 5, 3, (training, small))
    found, refused = read.grid.points(("cpu", "cuda"), 2)
    assert (len(found), refused) == (3 * 3 * 4 * (1 + 2), [])
    assert {(point.case.H == point.case.W, point.case.layer.group_channels) for point in found} == {(True, 16)}


def test_an_empty_profile_is_the_usual_point() -> None:
    read = profile.parse("", "empty", "empty.toml")
    assert read == profile.Profile("empty")
    assert len(read.grid.points(("cpu",), 1)[0]) == 1


@pytest.mark.parametrize(
    ("text", "limits"),
    [
        ("[check]\n", Limits()),
        ('check = {latency = "4%", launches = 15, quads = 1}', Limits({"latency": 0.04}, launches=15, quads=1)),
        ('check.flop = "1%"\ncheck.visible = "6%"', Limits({"flop": 0.01}, visible=0.06)),
        ('[check]\nlatency = "20%"\nvisible = "30%"', Limits({"latency": 0.2}, visible=0.3)),
        ('[check]\nlatency = "1%"\nvisible = "4%"', Limits({"latency": 0.01}, visible=0.04)),
        ("[check]\nquads = 4\nlaunches = 4", Limits(launches=4, quads=4)),
    ],
)
def test_limits_of_a_check(text: str, limits: Limits) -> None:
    assert profile.parse(text, "my", "my.toml").limits == limits


BAD: dict[str, tuple[str, str, str]] = {
    # what: the text, where it is wrong (line: key), and words of the reason
    "no TOML": ("budget = 2\n[axes\n", "2: ", "not TOML"),
    "no TOML at its end": ("budget = 2\n[axes]\nC = [1", "3: ", "not TOML"),
    "a key twice": ("budget = 2\nbudget = 3\n", "2: ", "not TOML"),
    "a number of many digits": (f"budget = {'9' * 5000}\n", "1: ", "not TOML"),
    "too deep": (f"budget = {'[' * 5000}{']' * 5000}\n", "1: ", "not TOML"),
    "unknown key": ("budget = 2\nbugdet = 3\n", "2: bugdet", "did you mean budget?"),
    "unknown table on the first line": ("[foo]\nx = 1\n", "1: foo", "take one of description"),
    "unknown table": ("budget = 2\n\n[foo]\nx = 1\n", "3: foo", "no such key"),
    "a typo of a table": ("\n\n[axis]\nC = 3\n", "3: axis", "did you mean axes?"),
    "unknown type of device": ("budget = 2\n[on.cpu]\nN = 1\n[on.tpu]\nN = 1\n", "4: on.tpu", "no such key"),
    "unknown axis": ("[axes]\nC = 64\nS = 2\n", "3: axes.S", "no such key"),
    "a device as an axis": ('[axes]\nC = 64\ndevice = "cpu"\n', "3: axes.device", "no such key"),
    "unknown axis of a device": ("[axes]\nC = 64\n[on.cuda]\nc = 3\n", "4: on.cuda.c", "no such key"),
    "the second case": ("[[cases]] # one\nC = 64\n[[cases]] # two\nC = 0\n", "4: cases.C", "at least 1"),
    "an inline table": ("budget = 2\naxes = {N = 1, C = 0}\n", "2: axes.C", "at least 1"),
    "a dotted key": ("budget = 2\naxes.N = 1\naxes.C = 0\n", "3: axes.C", "at least 1"),
    "a quoted key": ('[axes]\n"C" = 0\n', "2: axes.C", "at least 1"),
    "a list over lines": ("[axes]\nN = 1\n\nC = [ # why\n 64,\n 0,\n]\nK = 3\n", "4: axes.C", "at least 1"),
    "a name that comes before": ("description = '''\nC = 3\n'''\n[axes]\nC = 0\n", "5: axes.C", "at least 1"),
    "cases in a list": ("cases = [\n {C = 64},\n {C = 0},\n]\n", "1: cases.C", "at least 1"),
    "axes that are none": ("axes = [1]\n", "1: axes", "takes a table"),
    "axes twice": ("[[axes]]\nC = 3\n", "1: axes", "takes a table"),
    "on that is none": ("budget = 1\non = 3\n", "2: on", "takes a table"),
    "a device that is no table": ("[on]\ncpu = 3\n", "2: on.cpu", "takes a table"),
    "cases that are none": ("cases = 3\n", "1: cases", "[[cases]]"),
    "one case": ("[cases]\nC = 3\n", "1: cases", "[[cases]]"),
    "no cases": ("cases = []\n", "1: cases", "[[cases]]"),
    "an axis without values": ("[axes]\nC = []\n", "2: axes.C", "at least one value"),
    "an axis without text": ('[axes]\nC = ""\n', "2: axes.C", "whole numbers"),
    "a range backwards": ('[axes]\nC = "9:1"\n', "2: axes.C", "swap"),
    "a truth as a number": ("[axes]\nC = true\n", "2: axes.C", "got C=True"),
    "a fraction": ("[axes]\nC = 1.5\n", "2: axes.C", "got C=1.5"),
    "infinity": ("[axes]\nC = inf\n", "2: axes.C", "got C=inf"),
    "a date": ("[axes]\nC = 2024-01-01\n", "2: axes.C", "whole number"),
    "a list in a list": ("[axes]\nC = [[1]]\n", "2: axes.C", "got C=[1]"),
    "a table as a value": ("[axes]\nC = {a = 1}\n", "2: axes.C", "whole number"),
    "an even window": ("[axes]\nK = [3, 4]\n", "2: axes.K", "odd"),
    "a number as a word": ("[axes]\nlayout = 3\n", "2: axes.layout", "takes words"),
    "an unknown word": ('[axes]\nlayout = "channel_last"\n', "2: axes.layout", "channels_last"),
    "an unknown baseline": ('[axes]\nbaseline = "conv"\n', "2: axes.baseline", "conv2d-3x3"),
    "G twice": ("[axes]\nG = 4\ngroup_channels = 16\n", "3: axes.group_channels", "give one"),
    "budget of 0": ("\nbudget = 0\n", "2: budget", "above 0"),
    "budget in words": ('budget = "6"\n', "1: budget", "above 0"),
    "endless budget": ("budget = inf\n", "1: budget", "above 0"),
    "no budget": ("budget = nan\n", "1: budget", "above 0"),
    "budget of 400 digits": (f"budget = {'9' * 400}\n", "1: budget", "below 1e+09"),
    "budget that is true": ("budget = true\n", "1: budget", "above 0"),
    "unknown clock": ('clock = "sun"\n', "1: clock", "eager"),
    "unknown cache": ('cache = "warm"\n', "1: cache", "cold"),
    "unknown backend": ('backend = ["numba", "cuda"]\n', "1: backend", "triton"),
    "no backend": ("backend = []\n", "1: backend", "got []"),
    "a backend that is a number": ("backend = [3]\n", "1: backend", "list of texts"),
    "a description that is a number": ("description = 3\n", "1: description", "takes text"),
    "a subject that is a number": ("subject = 3\n", "1: subject", "takes text"),
    "no constraint": ("constraints = []\n", "1: constraints", "got []"),
    "an unknown name": ('budget = 1\nconstraints = ["H = W",\n "S = 3"]\n', "2: constraints", "'S'"),
    "a constraint that is none": ('constraints = "H ="\n', "1: constraints", "cannot be read"),
    "what may not be called": ("constraints = \"__import__('os')\"\n", "1: constraints", "__import__"),
    "a check that is none": ("\ncheck = 3\n", "2: check", "takes a table"),
    "checks": ("[[check]]\n", "1: check", "takes a table"),
    "a typo in a check": ('[check]\nlatency = "5%"\nmemroy = "5%"\n', "3: check.memroy", "did you mean memory?"),
    "a metric that is none": ('[check]\nspeed = "5%"\n', "2: check.speed", "take one of latency, memory, kept"),
    "a share without a unit": ("[check]\nlatency = 5\n", "2: check.latency", 'got 5; write "5%"'),
    "a share as a fraction": ("[check]\nlatency = 0.05\n", "2: check.latency", 'got 0.05; write "5%"'),
    "a share that is no number": ("[check]\nmemory = true\n", "2: check.memory", "got True"),
    "a share in words": ('[check]\nvisible = "five"\n', "2: check.visible", "got 'five'"),
    "a check that is blind": ('[check]\nvisible = "5%"\n', "2: check.visible", "visible 5% and latency 5%"),
    "a coarse check": ('[check]\nmemory = "1%"\nlatency = "20%"\n', "3: check.latency", "raise visible"),
    "a coarse and blind check": ('[check]\nlatency = "9%"\nvisible = "8%"\n', "3: check.visible", "got visible 8%"),
    "few launches": ("[check]\nquads = 9\nlaunches = 2\n", "3: check.launches", "at least 3: got 2"),
    "half a launch": ("[check]\nlaunches = 3.5\n", "2: check.launches", "whole number"),
    "launches in words": ('[check]\nlaunches = "3"\n', "2: check.launches", "whole number"),
    "launches that are true": ("[check]\nlaunches = true\n", "2: check.launches", "whole number"),
    "few quads": ("[check]\nquads = 4\n", "2: check.quads", "got 3 x 4; try quads = 5"),
    "few quads for the launches": ("[check]\nquads = 3\nlaunches = 4\n", "2: check.quads", "got 4 x 3; try quads = 4"),
    "no quads": ("[check]\nlaunches = 3\nquads = 0\n", "3: check.quads", "at least 1"),
    "a case that is none": ("[check]\ncases = 3\n", "2: check.cases", "[[check.cases]]"),
    "one case of a check": ('[check.cases]\nwhere = "C = 3"\n', "1: check.cases", "[[check.cases]]"),
    "a case without where": (
        '[[check.cases]]\nwhere = "C = 3"\nlatency = "5%"\n\n[[check.cases]] # two\nlatency = "5%"\n',
        "5: check.cases",
        'try where = "mode = train"',
    ),
    "a case without thresholds": ('[[check.cases]]\n\nwhere = "C = 3"\n', "3: check.cases.where", "no threshold"),
    "a case with launches": (
        '[[check.cases]]\nwhere = "C = 3"\nlaunches = 3\n',
        "3: check.cases.launches",
        "take one of where, latency",
    ),
    "a typo in the second case": (
        '[check]\n[[check.cases]]\nwhere = "C = 3"\nlatency = "5%"\n[[check.cases]]\nwhere = "C = 3"\nlatncy = "5%"\n',
        "7: check.cases.latncy",
        "did you mean latency?",
    ),
    "where that is a number": ("[[check.cases]]\nwhere = 3\n", "2: check.cases.where", "takes text"),
    "where of no field": ('[[check.cases]]\nwhere = "S = 3"\n', "2: check.cases.where", "'S', which is no field"),
    "where that cannot be read": ('[[check.cases]]\nwhere = "C ="\n', "2: check.cases.where", "cannot be read"),
    "where that is no condition": (
        '[[check.cases]]\nlatency = "5%"\nwhere = "C / 16"\n',
        "3: check.cases.where",
        "takes a condition: got 'C / 16'",
    ),
    "a coarse case": (
        '[[check.cases]]\nwhere = "C = 3"\nlatency = "8%"\n[[check.cases]]\nwhere = "C = 3"\nlatency = "20%"\n',
        "6: check.cases.latency",
        "visible 20% and latency 20%",
    ),
    "a share in a case": ('[[check.cases]]\nwhere = "C = 3"\nflop = "-1%"\n', "3: check.cases.flop", "got '-1%'"),
    "cases of a check in a list": (
        'budget = 2\ncheck = {cases = [{where = "C = 3", latency = 5}]}\n',
        "2: check.cases.latency",
        "got 5",
    ),
    "cases of both kinds": (
        '[[cases]]\nC = 64\n[check]\n[[check.cases]]\nwhere = "C = 3"\nkept = 1\n[[cases]]\nC = 3\n',
        "6: check.cases.kept",
        "got 1",
    ),
}


@pytest.mark.parametrize(("text", "where", "words"), BAD.values(), ids=BAD.keys())
def test_a_bad_profile_is_refused_by_file_line_and_key(text: str, where: str, words: str) -> None:
    with pytest.raises(InvbenchError) as refused:
        profile.parse(text, "my", "folder/my.toml")
    message = str(refused.value)
    assert message.startswith(f"folder/my.toml:{where}"), message
    assert words in message
    assert "\n" not in message


LINES = ["", "# word", "budget = 2", "[axes]", "C = 64", "[[cases]]", "K = [", "3,", "]"]
LINES += ["[check]", "[[check.cases]]", 'latency = "9%"', 'visible = "6%"', 'where = "C"', "quads = 1"]


@settings(deadline=None)
@given(st.lists(st.sampled_from(LINES)))
def test_whatever_lines_there_are_the_line_named_is_one_of_them(lines: list[str]) -> None:
    try:
        profile.parse("\n".join(lines), "my", "my.toml")
    except InvbenchError as refused:
        assert 1 <= int(str(refused).split(":")[1]) <= max(1, len(lines))  # noqa: PT017 -- it may be refused


# --- Files ---


def test_names_and_paths(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.chdir(tmp_path)
    Path("mine.toml").write_text('description = "ä"\n', encoding="utf-8")
    Path("marked.toml").write_bytes(b'\xef\xbb\xbfdescription = "m"\r\nbudget = 2\r\n')
    assert profile.load("mine.toml").description == "ä"
    assert profile.load("./mine.toml").name == "mine"
    assert profile.load("marked.toml").budget == 2
    assert profile.load("quick").name == "quick"


@pytest.mark.parametrize(
    ("name", "words"),
    [
        ("nosuch", ["no profile 'nosuch'", "quick", "path"]),
        ("quik", ["did you mean quick?"]),
        ("", ["no profile ''", "quick"]),
        ("nosuch.toml", ["'nosuch.toml'", "No such file", "invbench profiles"]),
        ("no/such", ["'no/such'", "No such file"]),
        ("./", ["Is a directory"]),
        ("latin.toml", ["'latin.toml'", "not UTF-8"]),
    ],
)
def test_what_is_no_profile_is_refused(
    name: str, words: list[str], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("latin.toml").write_bytes(b'description = "\xe4"\n')
    with pytest.raises(InvbenchError) as refused:
        profile.load(name)
    assert all(word in str(refused.value) for word in words), refused.value


@pytest.mark.parametrize("name", profile.shipped())
def test_shipped_profiles(name: str) -> None:
    read = profile.load(name)
    assert read.name == name
    assert len(read.description) > 20
    assert read.budget
    assert set(read.backends) <= set(BACKENDS)
    found, refused = read.grid.points(("cpu", "cuda"), 2)
    assert refused == []
    assert {point.case.device for point in found} == {"cpu", "cuda"}
    assert name == "odd-shapes" or {point.case.H - point.case.W for point in found} == {0}


def test_the_stages_of_rednet50_are_all_there() -> None:
    found, _ = profile.load("rednet50-stages").grid.points(("cpu",), 2)
    layers = {(point.case.layer.C, point.case.H, point.case.layer.stride) for point in found}
    stages = {(64, 56, 1), (128, 28, 1), (256, 14, 1), (512, 7, 1)}
    assert layers == {(32, 112, 1), *stages, (128, 56, 2), (256, 28, 2), (512, 14, 2)}


# --- invbench profiles ---


def run(*arguments: str) -> int:
    return cli._run(["profiles", *arguments])


def test_profiles_lists_all(capsys: Any) -> None:
    assert run() == 0
    lines = capsys.readouterr().out.splitlines()
    for name in profile.shipped():
        assert sum(line.startswith(f"{name} ") and " point" in line for line in lines) == 1


def test_profiles_as_json(capsys: Any) -> None:
    assert run("--format", "json") == 0
    rows = json.loads(capsys.readouterr().out)
    assert [row["name"] for row in rows] == list(profile.shipped())
    assert all(row["points"] > 0 and row["description"] for row in rows)


def test_a_profile_is_shown_whole(capsys: Any) -> None:
    assert run("quick") == 0
    shown = capsys.readouterr().out
    assert profile.parse(shown, "quick", "") == profile.load("quick")
    assert run("quick", "--format", "json") == 0
    assert json.loads(capsys.readouterr().out) == {"name": "quick", "toml": profile.source("quick")}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [(["quik"], "did you mean quick?"), (["no.toml"], "No such file"), (["--format", "xml"], "--format"), ([""], "''")],
)
def test_profiles_refuses_in_one_line(arguments: list[str], words: str, capsys: Any) -> None:
    assert run(*arguments) == 2
    captured = capsys.readouterr()
    assert (captured.out, captured.err.count("\n")) == ("", 1)
    assert words in captured.err


def test_a_bad_profile_is_not_shown(tmp_path: Path, capsys: Any) -> None:
    file = tmp_path / "bad.toml"
    file.write_text("[axes]\nC = 0\n")
    assert run(str(file)) == 2
    assert f"{file}:2: axes.C" in capsys.readouterr().err
