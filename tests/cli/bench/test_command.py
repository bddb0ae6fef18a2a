"""The command, against the demonstration model behind a gateway."""

import json

import pytest
from fakes.demo_neuron import demo_neuron
from fakes.served_gateway import served_gateway

QUICK = ("--requests", "4", "--repeats", "2", "--concurrency", "2", "--warm-up", "0")
SHORT = ("--prompt-tokens", "64", "--completion-tokens", "8")


@pytest.fixture(scope="module")
def fleet(tmp_path_factory):
    with (
        demo_neuron(tmp_path_factory.mktemp("state")) as neuron,
        served_gateway(endpoints=(neuron.url,)) as gateway,
    ):
        yield gateway


@pytest.fixture
def bench(invoke, fleet):
    def bench(*words):
        return invoke("bench", "--url", fleet.url, *QUICK, *SHORT, *words)

    return bench


@pytest.mark.parametrize("dialect", ["chat", "completions", "messages"])
@pytest.mark.parametrize("stream", ["--stream", "--no-stream"])
def test_every_dialect_is_measured(bench, dialect, stream):
    result = bench("--dialect", dialect, stream, "--json")
    assert result.exit_code == 0, result.output
    told = json.loads(result.stdout)
    assert told["options"]["model"] == "cortex/demo"
    (cell,) = told["cells"]
    figures = {name: spread["median"] for name, spread in cell["figures"].items()}
    assert (figures["requests"], figures["errors"], cell["errors"]) == (4, 0, {})
    assert figures["prompt_tokens"] == pytest.approx(64, abs=20)
    assert 1 <= figures["completion_tokens"] <= 8
    if dialect != "messages":
        assert figures["completion_tokens"] == 8
    streamed = stream == "--stream"
    assert ("ttft_p50" in figures) is ("itl_p99" in figures) is streamed
    assert figures["cached_tokens"] < 32  # what a template begins with, no more
    assert len(cell["repeats"]) == 2
    assert cell["client_cpu"] > 0


def test_a_shared_prefix_is_found_in_the_cache(bench):
    result = bench("--shared-prefix", "48", "--json", "--warm-up", "1")
    (cell,) = json.loads(result.stdout)["cells"]
    assert cell["figures"]["cached_tokens"]["median"] >= 16


def test_a_run_is_saved_and_compared_with(bench, tmp_path):
    path = tmp_path / "run.json"
    first = bench("--save", path, "--ttft-slo", "60000")
    assert first.exit_code == 0, first.output
    assert "good requests/s" in first.stdout
    assert "TTFT p99, ms" in first.stdout
    again = bench("--compare", path, "--no-ignore-eos")
    assert again.exit_code == 0, again.output
    assert "RATIO" in again.stdout
    assert "not the same: ignore_eos was True and is False" in again.stdout


def faster(path, factor):
    """Make the run in *path* look as if it had been so many times quicker."""
    told = json.loads(path.read_text())
    for repeat in told["cells"][0]["repeats"]:
        for name in repeat:
            if name.startswith(("ttft", "tpot", "itl", "e2el")):
                repeat[name] /= factor
    path.write_text(json.dumps(told))


def test_what_got_worse_beyond_the_limit_ends_with_1(bench, tmp_path):
    path = tmp_path / "run.json"
    bench("--save", path)
    faster(path, 1000)
    result = bench("--compare", path, "--fail-over", "10%")
    assert result.exit_code == 1
    assert "worse by more than 10%: c=2 64+8 " in result.stderr
    assert "c=2 64+8 E2EL p50, ms +" in result.stderr
    told = json.loads(bench("--compare", path, "--json").stdout)
    e2el = next(each for each in told["compared"] if each["figure"] == "e2el_p50")
    assert (e2el["cell"], e2el["verdict"]) == ("c=2 64+8", "worse")
    assert e2el["ratio"] > 10
    assert told["differs"] == []
    faster(path, 1e-6)
    assert bench("--compare", path, "--fail-over", "1000%").exit_code == 0


def test_runs_without_a_cell_in_common_are_not_compared(bench, tmp_path):
    path = tmp_path / "run.json"
    bench("--save", path)
    result = bench("--compare", path, "--concurrency", "1")
    assert result.exit_code == 2
    assert "no cell in common; the saved one: c=2 64+8" in result.stderr


@pytest.mark.parametrize("text", ["", "{}", "[]", '{"cortex_bench": 1}', '{"cortex_bench": 9}'])
def test_what_is_no_saved_run_is_said(bench, tmp_path, text):
    path = tmp_path / "run.json"
    path.write_text(text)
    result = bench("--compare", path)
    assert result.exit_code == 2
    assert "no saved run" in result.stderr


def test_an_error_of_the_first_request_is_told(bench):
    result = bench("--model", "org/none")
    assert result.exit_code == 1
    assert "does not answer a first request: 404 model_not_found" in result.stderr


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (["--concurrency", "0"], "from 1 to 512"),
        (["--concurrency", "1,x"], "no list"),
        (["--prompt-tokens", ""], "no list"),
        (["--fail-over", "10%"], "needs --compare"),
        (["--compare", "x", "--fail-over", "lots"], "no percentage"),
        (["--compare", "/does/not/exist"], "No such file"),
        (["--dialect", "grpc"], "grpc"),
        (["--requests", "0"], "requests"),
        (["--model", "m", "--key", "a\nb"], "no key"),
    ],
)
def test_wrong_options_end_with_2(bench, words, told):
    result = bench(*words)
    assert result.exit_code == 2
    assert told in result.stderr


def test_an_endpoint_that_nobody_answers_ends_with_3(invoke, nobody):
    assert invoke("bench", "--url", nobody).exit_code == 3
    result = invoke("bench", "--url", nobody, "--model", "m", "--timeout", "5")
    assert result.exit_code == 3
    assert "cannot reach" in result.stderr


def test_a_run_that_cannot_be_saved_is_told_before_it_is_made(bench, tmp_path):
    result = bench("--save", tmp_path / "no" / "run.json")
    assert result.exit_code == 2
    assert "cortex: c=2" not in result.stderr


def test_ctrl_c_ends_a_run(terminal, fleet):
    words = ("--concurrency", "2", "--seconds", "600", "--prompt-tokens", "32")
    with terminal("bench", "--url", fleet.url, *words) as screen:
        screen.until("1 of 3")
        screen.interrupt()
        screen.until("Aborted!")
        assert screen.ended() == 1
    assert "Traceback" not in screen.written


def test_a_key_is_sent(invoke, server):
    server.on("GET", "/v1/models", {"data": [{"id": "m", "loaded": True}]})
    server.on("POST", "/v1/chat/completions", (401, {"error": {"code": "invalid_api_key"}}))
    result = invoke("bench", "--url", server.url, "--key", "k-1")
    assert result.exit_code == 1
    assert "401 invalid_api_key" in result.stderr
    assert server.headers[-1]["authorization"] == "Bearer k-1"
    assert server.bodies("/v1/chat/completions")[0]["model"] == "m"
