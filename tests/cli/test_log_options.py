"""`--log-level` and `--log-format`."""

from __future__ import annotations

import re
from pathlib import Path

import click
import pytest

from cortex.cli.log_options import AREAS, LEVELS, LevelsType

PACKAGE = Path(__file__).parents[2] / "cortex"


def read(text):
    levels = LevelsType().convert(text, None, None)
    return levels.level, levels.areas


def test_the_areas_are_those_that_there_are():
    asked = {
        area
        for path in PACKAGE.rglob("*.py")
        for area in re.findall(r'logs\.get\("([^"]+)"\)', path.read_text(encoding="utf-8"))
    }
    assert asked | {"gateway", "neuron", "service"} == AREAS


@pytest.mark.parametrize(
    ("text", "meant"),
    [
        ("warning", ("warning", {})),
        ("INFO", ("info", {})),
        ("debug, gateway.router = error", ("debug", {"gateway.router": "error"})),
        (
            "gateway=debug,neuron.load=warning",
            ("info", {"gateway": "debug", "neuron.load": "warning"}),
        ),
        ("", ("info", {})),
    ],
)
def test_a_level_for_all_and_some_for_areas(text, meant):
    assert read(text) == meant


@pytest.mark.parametrize("text", ["loud", "info,gateway.router=loud", "gateway.router=", "=debug"])
def test_what_is_no_level_is_told_with_those_that_are(text):
    with pytest.raises(click.UsageError) as refused:
        read(text)
    if text != "=debug":
        assert ", ".join(LEVELS) in refused.value.message


def test_an_unknown_area_is_told_with_those_that_there_are():
    with pytest.raises(click.UsageError) as refused:
        read("gateway.ruoter=debug")
    assert "did you mean gateway.router?" in refused.value.message
    assert ", ".join(sorted(AREAS)) in refused.value.message


@pytest.mark.parametrize("role", ["gateway", "neuron"])
def test_a_wrong_area_ends_a_role_with_2(invoke, role):
    result = invoke(role, "--log-level", "info,nowhere=debug")
    assert result.exit_code == 2
    assert "nowhere" in result.output
