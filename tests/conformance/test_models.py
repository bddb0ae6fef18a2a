"""MD: the list of models, in the forms of all its readers."""

from __future__ import annotations

import re

import anthropic
import httpx
import openai
import pytest
from conformance.checks import MODELS, Server, told

from cortex.gateway.auth.caller import Caller
from cortex.gateway.models_page import listing

VERSION = {"anthropic-version": "2023-06-01"}


def ids(response: httpx.Response) -> list[str]:
    assert response.status_code == 200, response.text
    return [entry["id"] for entry in response.json()["data"]]


def test_md01_the_list_is_read_by_both_sdks(scripted: Server) -> None:
    url = scripted.gateway.url
    with openai.OpenAI(base_url=f"{url}/v1", api_key="none") as client:
        assert {"m", "org/m", "gpt-4"} <= {model.id for model in client.models.list()}
    with anthropic.Anthropic(base_url=url, api_key="none") as client:
        page = client.models.list(limit=2)
        assert [model.id for model in page.data] == ["m", "org/m"]
        assert page.has_more
        everything = list(page)
    assert all(model.type == "model" and model.display_name for model in everything)
    assert len(everything) == len({model.id for model in everything})


@pytest.mark.parametrize("path", ["org/m", "org%2Fm"], ids="MD02-{}".format)
def test_md02_an_id_with_a_slash_is_found(scripted: Server, path: str) -> None:
    response = scripted.client.get(f"{MODELS}/{path}")
    assert response.json()["id"] == "org/m"


def test_md03_an_unknown_id_is_404_in_the_callers_dialect(scripted: Server) -> None:
    path = f"{MODELS}/nobody"
    assert told(scripted.client.get(path), 404, anthropic=False)["code"] == "model_not_found"
    answer = scripted.client.get(path, headers=VERSION)
    assert told(answer, 404, anthropic=True)["type"] == "not_found_error"


def test_md04_a_slash_at_the_end_is_no_redirect(scripted: Server) -> None:
    plain, slashed = scripted.client.get(MODELS), scripted.client.get(f"{MODELS}/")
    assert ids(plain) == ids(slashed)


def test_md05_pages(scripted: Server) -> None:
    everything = ids(scripted.client.get(MODELS, params={"limit": 1000}))
    rest = scripted.client.get(MODELS, params={"after_id": everything[0]})
    assert ids(rest) == everything[1:]
    bad = scripted.client.get(MODELS, params={"limit": "x"}, headers=VERSION)
    assert told(bad, 400, anthropic=True)["type"] == "invalid_request_error"


def test_md06_codex_gets_a_list_of_its_own_that_is_empty(scripted: Server) -> None:
    assert scripted.client.get(MODELS, params={"client_version": "0.1"}).json()["models"] == []


def test_md07_the_list_is_there_while_the_model_is_busy(scripted: Server) -> None:
    before = scripted.gateway.neuron.counts.total()
    assert ids(scripted.client.get(MODELS))
    # Polls go on; an inference request or a question about models is not among them.
    asked = {each.path for each in scripted.gateway.neuron.requests[before:]}
    assert not {path for path in asked if path.startswith("/v1/")}


def test_md08_head_is_served_where_get_is(scripted: Server) -> None:
    for path in ("/", MODELS, f"{MODELS}/org/m"):
        response = scripted.client.head(path)
        assert response.status_code == 200
        assert response.content == b""
        assert int(response.headers["content-length"]) > 0


def test_md09_what_a_key_may_not_use_is_hidden() -> None:
    entries = [{"id": "m", "capabilities": None}, {"id": "org/m", "capabilities": None}]
    caller = Caller("k", models=("org/*",))
    body = listing(entries, {}, caller.may_use, anthropic=False)
    assert [entry["id"] for entry in body["data"]] == ["org/m"]


def test_md10_readiness_is_a_status_and_health_a_body(scripted: Server) -> None:
    assert scripted.client.get("/health").json()["status"] == "ok"
    assert scripted.client.get("/readyz").status_code == 200


def test_md11_models_are_not_deleted(scripted: Server) -> None:
    response = scripted.client.delete(f"{MODELS}/org/m", headers=VERSION)
    assert told(response, 405, anthropic=True)
    response = scripted.client.delete(f"{MODELS}/org/m")
    assert told(response, 405, anthropic=False)["code"] == "method_not_allowed"
    assert response.headers["allow"] == "GET, HEAD"


def test_ce05_claude_codes_discovery_finds_names_it_takes(scripted: Server) -> None:
    page = scripted.client.get(MODELS, params={"limit": 1000}, headers=VERSION).json()
    offered = {
        entry["id"]: entry["display_name"]
        for entry in page["data"]
        if re.search("claude|anthropic", entry["id"], re.IGNORECASE)
    }
    assert offered == {
        "claude-4": "claude-4",
        "claude-cortex-m": "m",
        "claude-cortex-org/m": "org/m",
        "claude-cortex-gpt-4": "gpt-4",
    }
    for name in offered:
        assert scripted.message(model=name)["model"] == name
        assert scripted.sent()["model"] in ("m", "org/m")
