"""chat against a scripted gateway."""

import json

import pytest

MODELS = {
    "data": [{"id": "cold", "loaded": False}, {"id": "warm", "loaded": True}, {"id": "w2"}],
}
PATH = "/v1/chat/completions"


def frame(value):
    return b"data: " + json.dumps(value).encode() + b"\n\n"


def delta(finish=None, **members):
    return frame({"choices": [{"index": 0, "delta": members, "finish_reason": finish}]})


def answer(*texts):
    head = b": keep-alive\n\n" + delta(role="assistant", content="")
    tail = delta("stop") + frame({"choices": [], "usage": {}}) + b"data: [DONE]\n\n"
    return head + b"".join(delta(content=text) for text in texts) + tail


@pytest.fixture
def gateway(server):
    server.on("GET", "/v1/models", MODELS)
    return server


def test_a_question_is_answered_and_that_is_all(invoke, gateway):
    gateway.on("POST", PATH, answer("Hel", "lo"))
    result = invoke("chat", "--endpoint", gateway.url, "how", "are", "you?")
    assert result.exit_code == 0
    assert result.stdout == "Hello\n"
    (body,) = gateway.bodies(PATH)
    assert body == {
        "model": "warm",
        "messages": [{"role": "user", "content": "how are you?"}],
        "stream": True,
    }


def test_options_go_into_the_request(invoke, gateway):
    gateway.on("POST", PATH, answer("x"))
    words = ["--system", "be brief", "--temperature", "0", "--max-tokens", "5", "--no-think"]
    invoke("chat", "--endpoint", gateway.url, "--model", "m", *words, "hi")
    (body,) = gateway.bodies(PATH)
    assert body["model"] == "m"
    assert body["messages"][0] == {"role": "system", "content": "be brief"}
    assert (body["temperature"], body["max_tokens"]) == (0, 5)
    assert body["chat_template_kwargs"] == {"enable_thinking": False}


def test_each_line_of_standard_input_is_a_turn_of_one_conversation(invoke, gateway):
    gateway.on("POST", PATH, answer("one"), answer("two"))
    result = invoke("chat", "--endpoint", gateway.url, input="first\n\nsecond\n")
    assert result.exit_code == 0
    assert result.stdout == "one\ntwo\n"
    assert [m["content"] for m in gateway.bodies(PATH)[1]["messages"]] == [
        "first",
        "one",
        "second",
    ]


def test_reasoning_is_left_out_of_a_pipe(invoke, gateway):
    gateway.on("POST", PATH, delta(reasoning_content="hmm") + answer("yes"))
    assert invoke("chat", "--endpoint", gateway.url, "x").stdout == "yes\n"


def test_a_tool_call_is_shown(invoke, gateway):
    call = {"index": 0, "id": "c", "function": {"name": "look", "arguments": '{"a": 1}'}}
    gateway.on("POST", PATH, delta(tool_calls=[call]) + answer())
    assert '[look] {"a": 1}' in invoke("chat", "--endpoint", gateway.url, "x").stdout


def test_an_error_within_the_stream_ends_with_1(invoke, gateway):
    gateway.on("POST", PATH, delta(content="par") + frame({"error": {"message": "node lost"}}))
    result = invoke("chat", "--endpoint", gateway.url, "x")
    assert result.exit_code == 1
    assert result.stdout == "par\n"
    assert result.stderr == "cortex: node lost\n"


def test_a_stream_that_is_cut_off_does_not_look_finished(invoke, gateway):
    gateway.on("POST", PATH, delta(content="par") + b'data: {"choi')
    result = invoke("chat", "--endpoint", gateway.url, "x")
    assert result.exit_code == 1
    assert "broke off" in result.stderr


def test_garbage_in_the_stream_ends_with_1(invoke, gateway):
    gateway.on("POST", PATH, b"data: {oops\n\n")
    result = invoke("chat", "--endpoint", gateway.url, "x")
    assert result.exit_code == 1
    assert "no JSON" in result.stderr


def test_a_refusal_is_told_in_the_gateways_words(invoke, gateway):
    gateway.on("POST", PATH, (429, {"error": {"message": "the queue is full"}}))
    result = invoke("chat", "--endpoint", gateway.url, "x")
    assert result.exit_code == 1
    assert result.stderr == "cortex: the queue is full\n"


def test_the_only_model_is_chosen_though_it_is_not_loaded(invoke, gateway):
    gateway.on("GET", "/v1/models", {"data": [{"id": "cold", "loaded": False}]})
    gateway.on("POST", PATH, answer("x"))
    assert invoke("chat", "--endpoint", gateway.url, "x").exit_code == 0
    assert gateway.bodies(PATH)[0]["model"] == "cold"


def test_of_several_models_none_loaded_one_must_be_named(invoke, gateway):
    gateway.on("GET", "/v1/models", {"data": [{"id": "a"}, {"id": "b"}]})
    result = invoke("chat", "--endpoint", gateway.url, "x")
    assert result.exit_code == 2
    assert "one of: a, b" in result.stderr
    gateway.on("GET", "/v1/models", {"data": []})
    assert invoke("chat", "--endpoint", gateway.url, "x").exit_code == 1


@pytest.mark.slow
def test_a_load_that_is_waited_for_is_shown_on_a_terminal(terminal, gateway):
    waiting = b": loading beast weights 42% eta 12s\n\n"
    gateway.on("POST", PATH, waiting + answer("Hello"))
    with terminal("chat", "--url", gateway.url, "hi") as screen:
        screen.until("(loading beast weights 42% eta 12s)")
        screen.until("Hello")
        assert screen.ended() == 0


def test_a_load_that_is_waited_for_leaves_no_trace_in_a_pipe(invoke, gateway):
    gateway.on("POST", PATH, b": loading beast weights\n\n" + answer("Hello"))
    result = invoke("chat", "--endpoint", gateway.url, "hi")
    assert (result.stdout, result.stderr) == ("Hello\n", "")
