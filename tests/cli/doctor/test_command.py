"""The command: which hosts it looks at, what it prints, how it ends."""

from __future__ import annotations

import json
import os

import pytest

from cortex import __version__


@pytest.fixture
def files(tmp_path, server):
    """A gateway on free ports with one neuron, which `server` plays; both files' paths."""
    server.on("GET", "/health", {"uptime_secs": 1.0})
    device = {"index": 0, "name": "CPU", "kind": "cpu", "vram_total_mb": 1000}
    server.on("GET", "/discovery", {"hostname": "h", "os": "o", "kernel": "k", "devices": [device]})
    server.on("GET", "/version", {"version": __version__})
    server.on("GET", "/models", (200, []))
    gateway = tmp_path / "cortex.toml"
    gateway.write_text(
        "[gateway]\nlisten = '127.0.0.1:0'\nmetrics_listen = '127.0.0.1:0'\n"
        f"[[neurons]]\nname = 'gpu1'\nendpoint = '{server.url}'\n"
    )
    (tmp_path / "models.toml").write_text("[[models]]\nid = 'm'\nvram_mb = 500\n")
    neuron = tmp_path / "neuron.toml"
    neuron.write_text(f"listen = '127.0.0.1:0'\noffline = true\nstate_directory = '{tmp_path}/s'\n")
    return gateway, neuron


@pytest.fixture
def look(monkeypatch):
    """Stands in for the child that looks at the devices."""
    seen = {"torch": {"version": "2.13.0+cpu", "cuda": None, "count": 0}}
    monkeypatch.setattr("cortex.cli.doctor.device_look.look", lambda command: seen)
    return seen


def checks(result):
    return {(each["role"], each["check"]): each for each in json.loads(result.stdout)["checks"]}


def test_a_host_that_is_well_ends_with_0(invoke, files, look, tmp_path):
    result = invoke("doctor", "-c", files[0], "-c", files[1], "--state-directory", tmp_path / "s")
    assert result.exit_code == 0, result.output
    assert "ok       gateway  neuron gpu1:" in result.stdout
    assert "ok       gateway  model m: fits on gpu1" in result.stdout
    assert "0 failed" in result.stdout


def test_json_has_every_check_with_its_reason_and_advice(invoke, files, look, tmp_path):
    result = invoke(
        "doctor", "-c", files[0], "-c", files[1], "--state-directory", tmp_path / "s", "--json"
    )
    found = checks(result)
    assert {role for role, _ in found} == {"gateway", "neuron"}
    assert all(
        set(each) == {"role", "check", "state", "detail", "advice"} for each in found.values()
    )
    assert found["neuron", "hub"]["state"] == "ok"
    assert all(bool(each["advice"]) == (each["state"] != "ok") for each in found.values())


def test_one_failure_ends_with_1(invoke, files, server, tmp_path):
    server.on("GET", "/health", (401, {"error": {"message": "no"}}))
    result = invoke("doctor", "-c", files[0], "--state-directory", tmp_path / "s", "--json")
    assert result.exit_code == 1
    assert checks(result)["gateway", "neuron gpu1"]["state"] == "failed"
    assert not json.loads(result.stdout)["ok"]


def test_the_role_follows_from_the_files_or_is_said(invoke, files, look):
    only = checks(invoke("doctor", "-c", files[1], "--json"))
    assert {role for role, _ in only} == {"neuron"}
    result = invoke("doctor", "-c", files[1], "--role", "gateway")
    assert result.exit_code == 2
    assert "is no configuration of the gateway role" in result.stderr


def test_wrong_flags_and_files_end_with_2(invoke, files, tmp_path):
    for words, text in (
        (["-c", tmp_path / "none.toml"], "No such file"),
        (["-c", tmp_path / "models.toml"], "is a catalogue"),
        (["-c", files[0], "-c", files[0]], "a second gateway configuration"),
        (["--endpoint", "nonsense"], "expected an http or https URL"),
    ):
        result = invoke("doctor", *words)
        assert (result.exit_code, text in result.stderr) == (2, True), result.output


def test_a_gateway_that_is_named_and_not_there_is_a_failure(invoke, files, nobody, tmp_path):
    result = invoke(
        "doctor", "-c", files[0], "-e", nobody, "--state-directory", tmp_path / "s", "--json"
    )
    assert checks(result)["gateway", "gateway"]["state"] == "failed"


def test_a_clock_that_stands_is_named(invoke, files, server, tmp_path, monkeypatch):
    handler = server._server.RequestHandlerClass
    date = "Thu, 01 Jan 2015 00:00:00 GMT"
    monkeypatch.setattr(handler, "date_time_string", lambda self, timestamp=None: date)
    result = invoke("doctor", "-c", files[0], "--state-directory", tmp_path / "s", "--json")
    clock = checks(result)["gateway", "clock gpu1"]
    assert (result.exit_code, clock["state"]) == (1, "failed")
    assert "behind this host" in clock["detail"]


def test_a_port_that_a_foreigner_has_is_named(invoke, files, servers, tmp_path):
    port = servers().url.rpartition(":")[2]
    text = files[0].read_text().replace("127.0.0.1:0", f"127.0.0.1:{port}", 1)
    files[0].write_text(text)
    result = invoke("doctor", "-c", files[0], "--state-directory", tmp_path / "s", "--json")
    taken = checks(result)["gateway", "port api"]
    assert (result.exit_code, taken["state"]) == (1, "failed")
    assert f"127.0.0.1:{port} is taken by" in taken["detail"]
    assert f"(pid {os.getpid()})" in taken["detail"]


def test_a_neuron_that_runs_with_another_token_is_named(invoke, files, look, servers):
    neuron = servers()
    neuron.on("GET", "/version", (401, {"error": {"message": "no"}}))
    neuron.on("GET", "/health", (401, {"error": {"message": "no"}}))
    listen = neuron.url.removeprefix("http://")
    files[1].write_text(f"listen = '{listen}'\ntoken = 'other'\noffline = true\n")
    result = invoke("doctor", "-c", files[1], "--json")
    assert result.exit_code == 1
    assert "refuses this configuration's token" in checks(result)["neuron", "neuron"]["detail"]
