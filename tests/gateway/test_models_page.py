from __future__ import annotations

import pytest

from cortex.errors import BadRequest
from cortex.gateway.models_page import listing

IDS = ["a", "org/b", "claude-c", "d"]
ENTRIES = [{"id": each, "display_name": each, "capabilities": ["text"]} for each in IDS]


def page(anthropic=False, allowed=lambda *names: True, **query):
    return listing(ENTRIES, query, allowed, anthropic=anthropic)


def ids(body):
    return [entry["id"] for entry in body["data"]]


def test_everything_is_one_page():
    body = page()
    assert ids(body) == IDS
    assert (body["object"], body["has_more"]) == ("list", False)
    assert (body["first_id"], body["last_id"]) == ("a", "d")
    assert "models" not in body


def test_nothing_is_a_page_too():
    body = listing([], {}, lambda *names: True, anthropic=True)
    assert (body["data"], body["first_id"], body["last_id"]) == ([], None, None)


@pytest.mark.parametrize("limit", range(1, 6))
def test_pages_forth_and_back_add_up_to_everything(limit):
    forth, after = [], {}
    while True:
        body = page(limit=str(limit), **after)
        forth += ids(body)
        if not body["has_more"]:
            break
        after = {"after_id": body["last_id"]}
    assert forth == IDS
    back, before = [], {"before_id": "d"}
    while True:
        body = page(limit=str(limit), **before)
        back = ids(body) + back
        if not body["has_more"]:
            break
        before = {"before_id": body["first_id"]}
    assert back == IDS[:-1]


@pytest.mark.parametrize(
    "query",
    [
        {"limit": "0"},
        {"limit": "-1"},
        {"limit": "x"},
        {"limit": "٣"},
        {"limit": "9" * 5000},
        {"after_id": "z"},
        {"before_id": "z"},
        {"after_id": "a", "before_id": "d"},
    ],
)
def test_a_page_that_is_none_is_refused(query):
    with pytest.raises(BadRequest) as caught:
        page(**query)
    assert caught.value.param in query


def test_what_the_caller_may_not_use_is_hidden():
    assert ids(page(allowed=lambda *names: "org/b" in names)) == ["org/b"]


def test_an_alias_is_shown_to_who_may_use_its_model():
    entries = [{"id": "gpt-4", "alias_of": "a"}]
    body = listing(entries, {}, lambda *names: "a" in names, anthropic=False)
    assert ids(body) == ["gpt-4"]


def test_claude_code_is_told_names_that_it_offers():
    body = page(anthropic=True)
    assert ids(body) == [*IDS, "claude-cortex-a", "claude-cortex-org/b", "claude-cortex-d"]
    found = body["data"][-2]
    assert (found["display_name"], found["alias_of"]) == ("org/b", "org/b")
    assert {entry["capabilities"] for entry in body["data"]} == {None}


def test_a_name_that_the_caller_may_not_use_is_not_offered():
    entries = [{"id": "a"}, {"id": "gpt-4", "alias_of": "a"}]
    body = listing(entries, {}, lambda *names: "gpt-4" in names, anthropic=True)
    assert ids(body) == ["gpt-4", "claude-cortex-gpt-4"]
    body = listing(entries, {}, lambda *names: "a" in names, anthropic=True)
    assert ids(body) == ["a", "gpt-4", "claude-cortex-a", "claude-cortex-gpt-4"]


def test_codex_is_told_of_no_models_of_its_own_kind():
    assert page(client_version="0.169.0")["models"] == []
