"""The vocabulary: what is refused and how, and what importing it costs."""

from __future__ import annotations

import dataclasses
import json
import subprocess
import sys

import pytest

from invbench.spec import CASE_FIELDS, Case, InvbenchError, LayerSpec, Mode, Scope

BAD_SPECS = [
    ({"C": 0}, "C must be a whole number of at least 1: got C=0"),
    ({"C": -4}, "got C=-4"),
    ({"C": 4.0}, "got C=4.0"),
    ({"C": True}, "got C=True"),
    ({"C": "4"}, "got C='4'"),
    ({"C": 4, "K": 0}, "got K=0"),
    ({"C": 4, "K": 4}, "K must be odd.*got K=4; try K=3 or K=5"),
    ({"C": 10, "G": 4}, "G must divide C: got C=10 and G=4; try G=5"),
    ({"C": 4, "G": 8}, "G must divide C: got C=4 and G=8; try G=4"),
    ({"C": 4, "stride": 0}, "got stride=0"),
    ({"C": 4, "dilation": 0}, "got dilation=0"),
    ({"C": 4, "reduction": 0}, "got reduction=0"),
    ({"C": 4, "padding_mode": "same"}, "padding_mode must be one of zeros, .*: got 'same'; try '?zeros'?"),
]
BAD_CASES = [
    ({"N": 0}, "got N=0"),
    ({"H": -1}, "got H=-1"),
    ({"W": 1.5}, "got W=1.5"),
    ({"threads": 0}, "got threads=0"),
    ({"dtype": "int8"}, "dtype must be one of .*: got 'int8'; try float32"),
    ({"layout": "NHWC"}, "layout must be one of .*: got 'NHWC'"),
    ({"mode": "inference"}, "mode must be one of .*: got 'inference'"),
    ({"scope": "network"}, "scope must be one of .*: got 'network'"),
]


def make_case(**changes: object) -> Case:
    return Case(**{"N": 2, "H": 7, "W": 5, "layer": LayerSpec(8), **changes})  # type: ignore[arg-type]


@pytest.mark.parametrize(("arguments", "message"), BAD_SPECS)
def test_bad_spec_is_refused_in_one_line(arguments: dict, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        LayerSpec(**arguments)
    assert "\n" not in str(caught.value)
    assert "try" in str(caught.value)


@pytest.mark.parametrize(("changes", "message"), BAD_CASES)
def test_bad_case_is_refused_in_one_line(changes: dict, message: str) -> None:
    with pytest.raises(InvbenchError, match=message) as caught:
        make_case(**changes)
    assert "\n" not in str(caught.value)


@pytest.mark.parametrize(
    ("mode", "least"),
    [("zeros", 1), ("replicate", 1), ("reflect", 7), ("circular", 6)],  # padding is 2 * 3
)
def test_the_least_image_a_padding_mode_takes(mode: str, least: int) -> None:
    layer = LayerSpec(8, K=7, dilation=2, padding_mode=mode)
    layer.check_size(least, least)
    if least > 1:
        for H, W in ((least - 1, 20), (20, least - 1)):
            with pytest.raises(InvbenchError, match=f"at least {least}: got H={H} and W={W}; use 'zeros'"):
                layer.check_size(H, W)


def test_derived_sizes() -> None:
    layer = LayerSpec(C=48, K=7, G=3, stride=2, dilation=3, reduction=4)
    assert (layer.taps, layer.group_channels, layer.hidden_channels, layer.padding) == (49, 16, 12, 9)
    assert [layer.out_size(n) for n in (1, 2, 7, 8, 13, 225, 223)] == [1, 1, 4, 4, 7, 113, 112]
    assert LayerSpec(C=2, reduction=4).hidden_channels == 1
    assert make_case(layer=LayerSpec(8, stride=2)).positions == 2 * 4 * 3


def test_flop_of_each_mode() -> None:
    assert [mode.flop_per_mac for mode in (Mode.FORWARD, Mode.BACKWARD, Mode.TRAIN)] == [2, 4, 6]


@pytest.mark.parametrize("mode", Mode)
@pytest.mark.parametrize("scope", Scope)
def test_case_survives_json(mode: Mode, scope: Scope) -> None:
    layer = LayerSpec(32, 5, 2, 2, 3, 8, "replicate")
    case = make_case(layer=layer, device="cuda", dtype="bfloat16", layout="contiguous", mode=mode, scope=scope)
    flat = json.loads(json.dumps(case.to_dict()))
    assert tuple(flat) == CASE_FIELDS
    assert (flat["mode"], flat["C"], flat["padding_mode"]) == (mode.value, 32, "replicate")
    again = Case.from_dict(flat)
    assert again == case
    assert hash(again) == hash(case)


def test_specs_are_frozen() -> None:
    with pytest.raises(dataclasses.FrozenInstanceError):
        LayerSpec(8).C = 9  # type: ignore[misc]


@pytest.mark.parametrize("module", ["invbench", "invbench.spec", "invbench.ops"])
def test_importing_the_vocabulary_imports_nothing_heavy(module: str) -> None:
    heavy = ("torch", "pandas", "numba", "triton", "numpy", "rich")
    program = f"import sys, {module}; print([name for name in {heavy} if name in sys.modules])"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.strip() == "[]"


@pytest.mark.parametrize("module", ["invbench", "invbench.ops"])
def test_unknown_attributes_are_refused(module: str) -> None:
    program = f"import {module}; {module}.involution3d"
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True)
    assert f"AttributeError: module '{module}' has no attribute 'involution3d'" in done.stderr
