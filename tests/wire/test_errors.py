from __future__ import annotations

import math

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex import errors
from cortex.errors import CortexError
from cortex.wire import errors as envelope
from cortex.wire import json

many = settings(max_examples=100, deadline=None)


def every_class(cls=CortexError):
    return [cls] + [each for sub in cls.__subclasses__() for each in every_class(sub)]


ALL = [cls for cls in every_class() if cls.__module__ == "cortex.errors"]
# Those that share their parent's code come back as the parent.
OWN_CODE = [cls for cls in ALL if "code" in vars(cls) and cls is not CortexError]
values = (
    st.none() | st.integers(-99, 99) | st.text(max_size=3) | st.lists(st.booleans(), max_size=2)
)
keys = st.text(max_size=4).filter(lambda key: key not in ("message", "type", "param", "code"))


@many
@given(
    st.sampled_from(ALL),
    st.text(min_size=1, max_size=40),
    st.none() | st.text(max_size=9),
    st.none() | st.floats(0, 1000),
    st.dictionaries(keys, values, max_size=3),
)
def test_what_is_rendered_is_read_back(cls, message, param, retry_after, extras):
    error = cls(message, param=param, retry_after=retry_after, extras=extras)
    status, headers, body = envelope.render(error)
    found = envelope.parse(status, json.dumps(body), headers.get("retry-after"))
    assert (found.message, found.param, found.error_code) == (message, param, error.error_code)
    assert found.extras == extras
    if error.retry_after is not None:
        assert found.retry_after == math.ceil(error.retry_after)
    if cls in OWN_CODE:
        assert type(found) is cls


def test_loading_is_read_back_with_its_progress():
    error = errors.ModelLoading("still loading", extras={"loading": {"node": "a"}})
    status, _, body = envelope.render(error)
    found = envelope.parse(status, body)
    assert type(found) is errors.ModelLoading
    assert found.extras == error.extras


def test_all_four_keys_are_always_there_and_extras_never_replace_them():
    error = errors.BadRequest("m", extras={"message": "evil", "type": 1, "code": 2, "n": 3})
    assert envelope.body(error) == {
        "error": {
            "message": "m",
            "type": "invalid_request_error",
            "param": None,
            "code": "invalid_value",
            "n": 3,
        }
    }


@pytest.mark.parametrize(
    ("error", "status", "headers"),
    [
        (errors.BadRequest("x"), 400, {}),
        (
            errors.Unauthorized("x"),
            401,
            {"www-authenticate": "Bearer", "x-should-retry": "false"},
        ),
        (
            errors.MethodNotAllowed("x", extras={"allow": ["GET", "POST"]}),
            405,
            {"allow": "GET, POST"},
        ),
        (errors.Unprocessable("x"), 422, {"x-should-retry": "false"}),
        (errors.Overloaded("x", retry_after=1.2), 429, {"retry-after": "2"}),
        (errors.NoFeasibleNode("x"), 503, {"x-should-retry": "false"}),
        (errors.Draining("x"), 503, {"retry-after": "15"}),
    ],
)
def test_status_and_headers(error, status, headers):
    assert envelope.render(error)[:2] == (status, headers)


def test_a_neuron_alone_says_503_when_it_is_full():
    full = errors.Overloaded("x")
    status, _, body = envelope.render(full, alone=True)
    assert status == 503
    assert type(envelope.parse(status, body)) is errors.Overloaded
    assert envelope.render(errors.RateLimited("x"), alone=True)[0] == 429


def test_a_frame_is_one_event_with_the_envelope():
    error = errors.DeviceLost("line one\nline two")
    frame = envelope.frame(error)
    assert frame.startswith(b'data: {"error":{')
    assert frame.count(b"\n") == 2
    assert envelope.parse(None, frame[6:-2]).message == "line one\nline two"


@pytest.mark.parametrize(
    ("status", "content", "cls", "message"),
    [
        (404, b'{"detail":"Not Found"}', errors.NotFound, "Not Found"),
        (400, b'{"object":"error","message":"too long","code":400}', errors.BadRequest, "too long"),
        (429, b'{"error":"slow down"}', errors.RateLimited, "slow down"),
        (502, b"<html>bad gateway</html>", errors.UpstreamError, "<html>bad gateway</html>"),
        (500, b"", errors.InternalError, "the upstream server answered status 500"),
        (503, b"null", errors.Unavailable, "the upstream server answered status 503"),
        (418, b'{"error":{"message":""}}', errors.BadRequest, "the upstream server answered"),
        (None, {"error": {"message": "x", "code": 7}}, errors.UpstreamError, "x"),
        (
            None,
            {"error": {"message": "x", "type": "invalid_request_error"}},
            errors.BadRequest,
            "x",
        ),
    ],
)
def test_envelopes_of_other_servers(status, content, cls, message):
    found = envelope.parse(status, content)
    assert type(found) is cls
    assert found.message.startswith(message)


@many
@given(st.none() | st.integers(100, 999), st.binary(max_size=40), st.none() | st.text(max_size=9))
def test_reading_never_raises(status, content, retry_after):
    assert isinstance(envelope.parse(status, content, retry_after), CortexError)


@pytest.mark.parametrize("header", ["soon", "-1", "nan", "inf", "1e300"])
def test_a_senseless_retry_after_is_none(header):
    assert envelope.parse(400, {}, header).retry_after is None
