"""`cortex gateway` and `cortex neuron` before their role runs: what is refused, and how."""

import sys

import pytest

from cortex.cli.roles import LEVELS, _address
from cortex.config.errors import Invalid


@pytest.fixture
def no_torch(monkeypatch):
    monkeypatch.setitem(sys.modules, "torch", None)


@pytest.mark.parametrize("role", ["gateway", "neuron"])
def test_a_wrong_file_ends_with_2_and_one_line(invoke, tmp_path, role):
    path = tmp_path / "wrong.toml"
    path.write_text("lisen = 'x'")
    result = invoke(role, "--config", path)
    assert result.exit_code == 2
    assert result.stderr.startswith(f"cortex: {path}: lisen: unknown key")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize("role", ["gateway", "neuron"])
def test_a_missing_file_ends_with_2(invoke, tmp_path, role):
    result = invoke(role, "--config", tmp_path / "missing.toml")
    assert result.exit_code == 2
    assert "No such file" in result.stderr


def test_a_missing_catalogue_ends_with_2(invoke, tmp_path):
    path = tmp_path / "cortex.toml"
    path.write_text("models_config = 'missing.toml'")
    result = invoke("gateway", "--config", path)
    assert result.exit_code == 2
    assert "missing.toml: No such file" in result.stderr


def test_pins_that_make_no_sense_end_with_2(invoke, tmp_path):
    path = tmp_path / "pins.json"
    path.write_text("{}")
    result = invoke("gateway", env={"STATE_DIRECTORY": str(tmp_path)})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"cortex: {path}: is no list of pins")


@pytest.mark.parametrize(
    "words",
    [
        ["gateway", "--listen", "x"],
        ["gateway", "--metrics-listen", "127.0.0.1:31313"],
        ["gateway", "--log-level", "loud"],
        ["neuron", "--listen", "a:b:c"],
        ["neuron", "--port", "70000"],
        ["neuron", "--model", "a b"],
        ["neuron", "--model", "a", "--model", "a"],
    ],
)
def test_a_wrong_flag_ends_with_2(invoke, words):
    result = invoke(*words)
    assert result.exit_code == 2
    assert result.stderr


def test_a_neuron_without_torch_says_how_to_get_it(invoke, no_torch):
    result = invoke("neuron")
    assert result.exit_code == 2
    assert "pip install torch==" in result.stderr
    assert len(result.stderr.splitlines()) == 1
    assert invoke("up").exit_code == 2


def test_flags_change_the_parts_of_an_address_that_they_name():
    assert _address("127.0.0.1:1", None, None) == "127.0.0.1:1"
    assert _address("127.0.0.1:1", "0.0.0.0", None) == "0.0.0.0:1"
    assert _address("127.0.0.1:1", "0.0.0.0:5", None) == "0.0.0.0:5"
    assert _address("127.0.0.1:1", "0.0.0.0:5", 6) == "0.0.0.0:6"
    assert _address("[::1]:1", None, 0) == "[::1]:0"
    with pytest.raises(Invalid):
        _address("127.0.0.1:1", "::1", None)


def test_the_log_levels_are_those_of_logging():
    import logging

    assert [logging.getLevelNamesMapping()[level.upper()] for level in LEVELS] == [10, 20, 30, 40]
