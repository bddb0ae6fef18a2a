"""The command line's client over https."""

from __future__ import annotations

import pytest
from fakes.neuron import FakeNeuron
from fakes.served_gateway import served_gateway
from fakes.tls import pem

from cortex.cli.client import Refused


@pytest.fixture
def secure(monkeypatch):
    monkeypatch.setenv("SSL_CERT_FILE", str(pem("one")))
    neuron = FakeNeuron("a")
    neuron.hold("m")
    with served_gateway(neuron, tls_certificate=pem("one"), tls_key=pem("one")) as served:
        yield served


def test_a_certificate_is_verified_by_what_ssl_cert_file_names(invoke, secure, monkeypatch):
    result = invoke("status", "--url", secure.url)
    assert (result.exit_code, result.stderr) == (0, "")
    assert "fleet: ok" in result.stdout
    monkeypatch.setenv("SSL_CERT_FILE", str(pem("two")))
    result = invoke("status", "--url", secure.url)
    assert result.exit_code == 3
    assert "certificate verify failed" in result.stderr
    assert len(result.stderr.splitlines()) == 1


def test_an_authority_that_cannot_be_read_ends_with_2(invoke, monkeypatch, tmp_path):
    monkeypatch.setenv("SSL_CERT_FILE", str(tmp_path / "none.pem"))
    result = invoke("status", "--url", "https://127.0.0.1:1")
    assert result.exit_code == 2
    assert result.stderr == "cortex: SSL_CERT_FILE, SSL_CERT_DIR: No such file or directory\n"


def test_what_a_gateway_says_of_an_error_moves_no_cursor(capsys):
    Refused(400, {"message": "no\x1b[2J"}).show()
    assert capsys.readouterr().err == "cortex: no?[2J\n"
