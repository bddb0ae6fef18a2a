"""`cortex pull` into this host's cache, from a hub on loopback."""

import json
import os
import signal
import subprocess
import sys
from pathlib import Path

import huggingface_hub
import pytest
from fakes.hub import served_hub

ROOT = Path(__file__).parents[2]
SINGLE = "model.safetensors"
WEIGHTS = bytes(range(256)) * 12_000
FILES = {"config.json": b"{}", SINGLE: WEIGHTS}
TORCHLESS = """
import sys
class NoTorch:
    def find_spec(self, name, path=None, target=None):
        if name.partition(".")[0] == "torch":
            raise ImportError("there is no torch")
sys.meta_path.insert(0, NoTorch())
from cortex.cli.main import main
main()
"""


@pytest.fixture(autouse=True)
def _close_the_librarys_connections():
    yield
    huggingface_hub.close_session()


@pytest.fixture
def hub():
    with served_hub(FILES) as served:
        yield served


@pytest.fixture
def pull(invoke, hub, tmp_path, monkeypatch):
    for name in ("HF_TOKEN", "HF_HUB_OFFLINE", "HF_HUB_CACHE"):
        monkeypatch.delenv(name, raising=False)
    monkeypatch.setenv("HF_HOME", str(tmp_path))
    monkeypatch.setenv("HF_ENDPOINT", hub.hub.hub)

    def pull(*words):
        return invoke("pull", *words)

    return pull


def snapshot(tmp_path, hub):
    return tmp_path / "hub" / "models--org--model" / "snapshots" / hub.hub.commit


def test_a_model_is_pulled_and_then_here(pull, hub, tmp_path):
    result = pull("org/model")
    assert result.exit_code == 0, result.output
    here = snapshot(tmp_path, hub)
    assert (here / SINGLE).read_bytes() == WEIGHTS
    first, second = result.stdout.splitlines()
    assert first.startswith("org/model is here, 2.9 MiB fetched in ")
    assert second == str(here)
    again = pull("org/model")
    assert again.exit_code == 0
    assert again.stdout.startswith("org/model is here already (2.9 MiB)")
    assert again.stderr == ""


def test_the_lines_of_json_end_with_how_it_ended(pull, hub):
    lines = [json.loads(line) for line in pull("org/model", "--json").stdout.splitlines()]
    assert all(line["id"] == "org/model" for line in lines)
    assert lines[-1]["status"] == "pulled"
    assert (lines[-1]["commit"], lines[-1]["size"]) == (hub.hub.commit, len(WEIGHTS) + 2)


def test_a_hub_that_is_gone_ends_with_3_unless_it_is_here(pull, monkeypatch):
    with monkeypatch.context() as gone:
        gone.setenv("HF_ENDPOINT", "http://127.0.0.1:1")
        result = pull("org/model")
        assert result.exit_code == 3
        assert "is not in the cache, and the hub cannot be reached" in result.stderr
    assert pull("org/model").exit_code == 0
    monkeypatch.setenv("HF_HUB_OFFLINE", "1")
    result = pull("org/model")
    assert result.exit_code == 0
    assert "as the cache has it" in result.stdout


@pytest.mark.parametrize(
    ("words", "code", "told"),
    [
        (["org/other"], 1, "org/other"),
        (["org/model", "--revision", "v9"], 1, "no revision v9"),
        (["org/model", "--revision", "../x"], 2, "is no revision"),
        (["nonsense"], 2, "is no model source"),
        (["s3:org/model"], 2, "no source scheme"),
        (["a b"], 2, "model_id"),
        (["org/model", "--quant", "q9_z"], 1, "q9_z"),
        ([], 2, "MODEL"),
    ],
)
def test_what_cannot_be_pulled_ends_with_a_line_and_a_code(pull, words, code, told):
    result = pull(*words)
    assert result.exit_code == code, result.output
    assert told in result.stderr
    assert "Traceback" not in result.output


def test_a_path_has_nothing_to_pull(pull, tmp_path):
    config = tmp_path / "neuron.toml"
    config.write_text('[[default_models]]\nmodel_id = "mine"\nsource = "/models/mine"\n')
    result = pull("mine", "--config", config)
    assert result.exit_code == 2
    assert "nothing to pull" in result.stderr


def test_a_name_of_the_neurons_configuration_is_its_source(pull, hub, tmp_path):
    config = tmp_path / "neuron.toml"
    config.write_text(
        f'hf_cache = "{tmp_path}/mine"\n[[default_models]]\nmodel_id = "m"\nsource = "org/model"\n'
    )
    result = pull("m", "--config", config)
    assert result.exit_code == 0, result.output
    assert (tmp_path / "mine" / "models--org--model").is_dir()


def test_a_configuration_that_is_broken_ends_with_2(pull, tmp_path):
    config = tmp_path / "neuron.toml"
    config.write_text("hf_cash = 1\n")
    result = pull("org/model", "--config", config)
    assert result.exit_code == 2
    assert "hf_cache" in result.stderr


def test_damage_is_repaired(pull, hub, tmp_path):
    pull("org/model")
    (snapshot(tmp_path, hub) / SINGLE).write_bytes(b"x" * len(WEIGHTS))
    result = pull("org/model", "--verify")
    assert result.exit_code == 0
    assert f"repaired: {SINGLE}" in result.stdout
    assert "repaired:" not in pull("org/model", "--verify").stdout


def test_a_terminal_shows_a_bar_and_ctrl_c_keeps_what_came(pull, hub, terminal, tmp_path):
    hub.hub.stall_after = 2_000_000
    with terminal("pull", "org/model") as screen:
        screen.until("org/model: download")
        screen.until(" MiB of 2.9 MiB")
        screen.interrupt()
        screen.until("the next pull goes on from there")
        assert screen.ended() == 1
    hub.hub.stall_after = None
    hub.soon(hub.hub.release.set)
    with terminal("pull", "org/model") as screen:
        screen.until("org/model is here, 2.9 MiB fetched")
        assert screen.ended() == 0
    assert hub.hub.bodies(SINGLE)[-1].headers["range"].startswith("bytes=")


def test_a_name_that_is_not_there_is_told_with_those_that_are_near(pull, hub):
    hub.hub.known = ["org/model", "other/model", "else/what"]
    result = pull("org/modle")
    assert result.exit_code == 1
    assert "the hub has no model org/modle" in result.stderr
    assert "did you mean org/model, other/model?" in result.stderr


def process(hub, tmp_path, *words):
    """The command as a process, with no torch to be had."""
    return subprocess.Popen(
        [sys.executable, "-c", TORCHLESS, "pull", *words],
        env={
            **os.environ,
            "PYTHONPATH": str(ROOT),
            "HF_HOME": str(tmp_path),
            "HF_ENDPOINT": hub.hub.hub,
        },
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGKILL], ids=["ctrl-c", "kill"])
def test_the_next_pull_goes_on_where_a_stopped_one_was(pull, hub, tmp_path, number):
    hub.hub.stall_after = 2_000_000
    partial = "*.cortex-partial"
    blobs = tmp_path / "hub" / "models--org--model" / "blobs"
    with process(hub, tmp_path, "org/model") as running:
        try:
            for line in running.stderr:
                if "download" in line:
                    break
            if number == signal.SIGKILL:  # wait until a write has reached the disk
                while not any(path.stat().st_size for path in blobs.glob(partial)):
                    assert running.poll() is None
            running.send_signal(number)
            out, err = running.communicate(timeout=30)
        finally:
            running.kill()
    if number == signal.SIGINT:
        assert running.returncode == 1
        assert "the next pull goes on" in err
        assert "Traceback" not in out + err
    (left,) = blobs.glob(partial)
    held = left.stat().st_size
    hub.hub.stall_after = None
    hub.soon(hub.hub.release.set)
    result = pull("org/model")
    assert result.exit_code == 0, result.output
    assert (snapshot(tmp_path, hub) / SINGLE).read_bytes() == WEIGHTS
    asked = hub.hub.bodies(SINGLE)[-1].headers.get("range")
    assert asked == (f"bytes={held}-" if held else None)
    if number == signal.SIGKILL:
        assert held
