"""What the real roles log: nothing secret, one id on both sides, and to whoever reads it or not."""

from __future__ import annotations

import fcntl
import json
import os
import signal
import subprocess
import sys
import time
import urllib.error
import urllib.request
from contextlib import contextmanager
from pathlib import Path

import pytest
from fakes.accounts import add_key
from fakes.role_process import RoleProcess, write_gateway_config

STARTING, BOUND = 90.0, 30.0
TOKEN, PROMPT, ANSWERED = "token-of-the-neuron", "What is a zebrafinch made of?", "asked-for-a-test"


def environment(**more):
    return {**os.environ, "CUDA_VISIBLE_DEVICES": "", **more}


def role(*words, **variables):
    return RoleProcess(
        [sys.executable, "-m", "cortex", *words], environment(**variables), Path.cwd()
    )


def ask(url, body, key, request_id=ANSWERED):
    """The status and body of a chat completion."""
    headers = {"content-type": "application/json", "authorization": f"Bearer {key}"}
    request = urllib.request.Request(
        f"{url}/v1/chat/completions",
        json.dumps(body).encode(),
        headers | {"x-request-id": request_id},
    )
    try:
        with urllib.request.urlopen(request, timeout=BOUND) as response:
            return response.status, response.read()
    except urllib.error.HTTPError as error:
        return error.code, error.read()


def entries(output):
    """The lines of a role that are events."""
    return [json.loads(line) for line in output if line.startswith("{")]


def until(holds, seconds=BOUND):
    end = time.monotonic() + seconds
    while not holds():
        assert time.monotonic() < end
        time.sleep(0.05)


def test_at_debug_level_nothing_is_told_of_keys_tokens_and_prompts(tmp_path):
    key = add_key(tmp_path / "state", "alice")
    level = ("--log-level", "debug", "--log-format", "json")
    words = ("neuron", "--listen", "127.0.0.1:0", "--model", "cortex/demo", *level)
    state = {"STATE_DIRECTORY": str(tmp_path / "neuron")}
    with role(*words, NEURON_TOKEN=TOKEN, **state) as neuron:
        neuron_url = json.loads(neuron.wait_for_line('"event":"listening"', STARTING).string)["url"]
        neuron.wait_for_line('"event":"loaded"|"stage_', STARTING)
        config = write_gateway_config(tmp_path)
        nodes = {"CORTEX_NEURONS": f"n={neuron_url}", "CORTEX_NEURON_TOKEN": TOKEN}
        state = {"STATE_DIRECTORY": str(tmp_path / "state")}
        with role("gateway", "--config", str(config), *level, **nodes, **state) as front:
            url = json.loads(front.wait_for_line('"event":"listening"', STARTING).string)["url"]
            chat = {"model": "cortex/demo", "max_tokens": 4}
            chat["messages"] = [{"role": "user", "content": PROMPT}]
            until(lambda: ask(url, chat, key)[0] == 200)
            assert ask(url, {**chat, "stream": True}, key, "streamed")[0] == 200
            assert ask(url, {**chat, "temperature": "hot"}, key, "wrong")[0] == 400
            assert ask(url, chat, "sk-not-this-one", "stranger")[0] == 401
            assert front.terminate(BOUND) == 0
        assert neuron.terminate(BOUND) == 0
    for told in (front, neuron):
        output = "".join(told.drained())
        for secret in (key, TOKEN, "sk-not-this-one", PROMPT, "zebrafinch"):
            assert secret not in output
    ends = [[e for e in entries(r.output) if e["event"] == "request"] for r in (front, neuron)]
    for request_id, in_front, behind in (
        ("streamed", 200, 1),
        ("wrong", 400, 0),
        ("stranger", 401, 0),
    ):
        (line,) = [each for each in ends[0] if each["request"] == request_id]
        assert line["code"] == in_front
        assert len([each for each in ends[1] if each["request"] == request_id]) == behind


@contextmanager
def gateway_into(pipe, folder):
    """A gateway that logs into *pipe*."""
    config = write_gateway_config(folder)
    process = subprocess.Popen(
        [sys.executable, "-m", "cortex", "gateway", "--config", str(config)],
        stdin=subprocess.DEVNULL,
        stderr=pipe,
        env=environment(STATE_DIRECTORY=str(folder / "state")),
    )
    try:
        yield process
    finally:
        process.kill()
        process.wait()


@pytest.mark.parametrize("gone", [False, True], ids=["silent", "gone"])
def test_a_reader_that_does_not_read_or_has_gone_holds_up_nobody(tmp_path, gone):
    reading, writing = os.pipe()
    fcntl.fcntl(writing, fcntl.F_SETPIPE_SZ, 4096)
    with gateway_into(writing, tmp_path) as process:
        os.close(writing)
        with os.fdopen(reading, "rb", buffering=0) as log:
            seen = b""
            while b"listening" not in seen or not seen.endswith(b"\n"):
                seen += log.read(4096)
            told = dict(w.split("=", 1) for w in seen.decode().split() if "=http" in w)
            if gone:
                log.close()
            for number in range(60):
                status, _ = ask(told["url"], {"model": "m" * 200}, "", f"r{number}")
                assert status in (400, 404)
            with urllib.request.urlopen(told["metrics"], timeout=BOUND) as answer:
                lines = answer.read().decode().splitlines()
            (count,) = [each for each in lines if each.startswith("cortex_log_lines_dropped_total")]
            assert float(count.split()[1]) > 0
            process.send_signal(signal.SIGTERM)
            assert process.wait(BOUND) == 0
