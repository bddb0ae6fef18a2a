"""Durations, addresses, URLs, ids: what is taken and what is refused."""

import contextlib
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.config.errors import Invalid, nearest
from cortex.config.gateway import GatewaySettings, NeuronNode
from cortex.config.neuron import DefaultModel, NeuronConfig
from cortex.config.values import (
    is_loopback,
    join_listen,
    parse_duration,
    split_listen,
)


@pytest.mark.parametrize(
    ("text", "seconds"),
    [
        ("0", 0),
        ("90", 90),
        ("90s", 90),
        ("30m", 1800),
        ("2h", 7200),
        ("1d", 86400),
        ("1h30m", 5400),
        ("500ms", 0.5),
        ("1.5h", 5400),
        ("-1", -1),
        ("-1m", -60),
        (" 5s ", 5),
    ],
)
def test_a_duration_is_read_in_seconds(text, seconds):
    assert parse_duration(text) == pytest.approx(seconds)


@pytest.mark.parametrize(
    "text",
    ["", "s", "5x", "5 m", "m5", "5m5m", "--5", "5s-", "1e3", "nan", "inf", "9" * 400, "٥m", "5M"],
)
def test_what_is_no_duration_is_refused(text):
    with pytest.raises(Invalid):
        parse_duration(text)


@given(
    st.integers(0, 400), st.integers(0, 23), st.integers(0, 59), st.integers(0, 59), st.booleans()
)
def test_a_duration_is_the_sum_of_its_parts(days, hours, minutes, seconds, negative):
    text = f"{'-' if negative else ''}{days}d{hours}h{minutes}m{seconds}s"
    total = ((days * 24 + hours) * 60 + minutes) * 60 + seconds
    assert parse_duration(text) == (-total if negative else total)


@given(st.text(max_size=12))
def test_any_text_is_a_finite_duration_or_refused(text):
    with contextlib.suppress(Invalid):
        assert math.isfinite(parse_duration(text))


@pytest.mark.parametrize(
    ("address", "host", "port"),
    [
        ("127.0.0.1:31313", "127.0.0.1", 31313),
        ("[::1]:80", "::1", 80),
        ("localhost", "localhost", None),
        ("0.0.0.0:0", "0.0.0.0", 0),
        ("[::]", "::", None),
    ],
)
def test_an_address_splits_and_joins(address, host, port):
    assert split_listen(address) == (host, port)
    if port is not None:
        assert join_listen(host, port) == address


@pytest.mark.parametrize(
    "address",
    ["", ":80", "host:", "host:65536", "host:x", "::1:80", "a b:80", "http://x:80", "h:٨"],
)
def test_what_is_no_address_is_refused(address):
    with pytest.raises(Invalid):
        split_listen(address)


def test_only_loopback_is_loopback():
    assert all(map(is_loopback, ["127.0.0.1:1", "127.9.9.9:1", "localhost:1", "[::1]:1"]))
    assert not any(map(is_loopback, ["0.0.0.0:1", "10.0.0.1:1", "[::]:1", "example.org:1"]))


@pytest.mark.parametrize(
    "url",
    [
        "",
        "host:1",
        "ftp://host",
        "http://",
        "http://host:0",
        "http://host:70000",
        "http://user:pw@host",
        "http://host/?q=1",
        "http://host/#f",
        "http://ho st",
        "http://[::1",
    ],
)
def test_an_endpoint_is_a_plain_http_url(url):
    with pytest.raises(Invalid) as error:
        NeuronNode("a", url)
    assert error.value.path == "endpoint"


def test_a_token_that_no_header_could_carry_is_refused_without_being_shown():
    with pytest.raises(Invalid) as error:
        NeuronNode("a", "http://host", token="sécret")
    assert "sécret" not in str(error.value)
    assert "tok-123" not in repr(NeuronNode("a", "http://host", token="tok-123"))
    assert "tok-123" not in repr(NeuronConfig(token="tok-123"))


def test_a_model_named_by_a_folder_is_served_under_the_folders_name(tmp_path):
    folder = tmp_path / "My Model v2"
    model = DefaultModel.named(str(folder))
    assert model == DefaultModel("My-Model-v2", source=str(folder))


def test_a_model_named_by_a_gguf_file_is_served_under_its_name(tmp_path, monkeypatch):
    (tmp_path / "blob").touch()
    link = tmp_path / "Qwen3-Q4_K_M.gguf"
    link.symlink_to("blob")
    monkeypatch.chdir(tmp_path)
    wanted = DefaultModel("Qwen3-Q4_K_M", source=str(link))
    assert DefaultModel.named("./Qwen3-Q4_K_M.gguf") == DefaultModel.named(str(link)) == wanted


def test_a_model_named_by_an_id_is_never_a_folder(tmp_path, monkeypatch):
    (tmp_path / "Qwen" / "Qwen3-0.6B").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)
    assert DefaultModel.named("Qwen/Qwen3-0.6B") == DefaultModel("Qwen/Qwen3-0.6B")
    assert DefaultModel.named("./Qwen").source == str(tmp_path / "Qwen")


@pytest.mark.parametrize("name", ["", "a b", "-x", "/", "a" * 201, "é"])
def test_a_name_that_can_be_no_model_is_refused(name):
    with pytest.raises(Invalid):
        DefaultModel.named(name)


def test_the_nearest_name_is_offered_only_when_it_is_near():
    assert nearest("lisen", ["listen", "port"]) == "listen"
    assert nearest("zzz", ["listen", "port"]) is None


@pytest.mark.parametrize(
    "origin",
    [
        "https://chat.example.org",
        "https://chat.example.org:8443",
        "http://localhost:3000",
        "http://[::1]:3000",
        "https://[2001:db8::1]",
        "app://obsidian.md",
        "chrome-extension://abcdefghijklmnop",
    ],
)
def test_an_origin_is_what_a_browser_writes(origin):
    assert GatewaySettings(cors_origins=(origin,)).cors_origins == (origin,)


@pytest.mark.parametrize(
    ("origin", "fault"),
    [
        ("*", "name each origin"),
        ("https://*.example.org", "name each origin"),
        ("null", "expected an origin"),
        ("", "expected an origin"),
        ("chat.example.org", "expected an origin"),
        ("https://chat.example.org/", "without a path"),
        ("https://chat.example.org/app", "without a path"),
        ("https://Chat.example.org", "in lower case"),
        ("https://user@chat.example.org", "expected an origin"),
        ("https://chat.example.org https://b.example", "expected an origin"),
        ("https://chat.example.org\n", "expected an origin"),
        ("https://chat.example.org:", "expected an origin"),
        ("https://chat.example.org:443", "leave out :443"),
        ("http://localhost:80", "leave out :80"),
        ("http://localhost:65536", "no port"),
    ],
)
def test_what_is_no_origin_is_refused_with_its_place(origin, fault):
    with pytest.raises(Invalid, match=fault) as error:
        GatewaySettings(cors_origins=("https://a.example", origin))
    assert error.value.path == "cors_origins[1]"
