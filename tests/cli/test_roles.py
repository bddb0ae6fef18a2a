"""`cortex gateway` and `cortex neuron` before their role runs: what is refused, and how."""

import sys

import pytest
from fakes.accounts import add_key
from fakes.tls import pem

from cortex.cli.roles import _address, _warn_of_strangers
from cortex.config.accounts import AuthSettings
from cortex.config.errors import Invalid
from cortex.config.gateway import GatewayConfig, GatewaySettings


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


@pytest.mark.parametrize("key", ["none.pem", "two.pem"])
def test_a_certificate_that_is_none_ends_with_2(invoke, tmp_path, key):
    wrong = pem("two") if key == "two.pem" else tmp_path / key
    path = tmp_path / "cortex.toml"
    path.write_text(
        f"[gateway]\nlisten = '127.0.0.1:0'\nmetrics_listen = 'localhost:0'\n"
        f"tls_certificate = '{pem('one')}'\ntls_key = '{wrong}'\n"
    )
    result = invoke("gateway", "--config", path, env={"STATE_DIRECTORY": str(tmp_path)})
    assert result.exit_code == 2
    (told,) = [line for line in result.stderr.splitlines() if line.startswith("cortex gateway: ")]
    assert told.startswith(f"cortex gateway: {path}: gateway.tls_key: {wrong}: ")


def test_keys_that_cannot_be_read_end_with_2(invoke, tmp_path):
    path = tmp_path / "accounts.db"
    path.write_bytes(b"x" * 4096)
    result = invoke("gateway", env={"STATE_DIRECTORY": str(tmp_path)})
    assert result.exit_code == 2
    assert result.stderr.startswith(f"cortex: {path}: ")
    assert len(result.stderr.splitlines()) == 1


@pytest.mark.parametrize(
    ("listen", "anonymous", "keyed", "warning"),
    [
        ("127.0.0.1:1", None, False, None),
        ("127.0.0.1:1", True, True, None),
        ("0.0.0.0:1", None, True, None),
        ("0.0.0.0:1", False, True, None),
        ("0.0.0.0:1", None, False, "serves nobody until it has"),
        ("0.0.0.0:1", False, False, "serves nobody until it has"),
        ("0.0.0.0:1", True, False, "everyone who reaches the API may use it"),
        ("0.0.0.0:1", True, True, "everyone who reaches the API may use it"),
    ],
)
def test_an_api_that_others_reach_says_who_may_use_it(
    tmp_path, caplog, listen, anonymous, keyed, warning
):
    if keyed:
        add_key(tmp_path, "laptop")
    config = GatewayConfig(GatewaySettings(listen=listen), auth=AuthSettings(anonymous=anonymous))
    _warn_of_strangers(config, tmp_path)
    said = [record.message for record in caplog.records]
    assert len(said) == (warning is not None)
    assert warning is None or warning in said[0]


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

    from cortex.cli.log_options import LEVELS

    assert [logging.getLevelNamesMapping()[level.upper()] for level in LEVELS] == [10, 20, 30, 40]
