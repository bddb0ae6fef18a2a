from __future__ import annotations

from collections import Counter

import pytest
from hypothesis import given
from hypothesis import strategies as st

from cortex.gateway.affinity import (
    PREFIX_CHARS,
    SESSION_HEADERS,
    Candidate,
    SessionMap,
    affinity_key,
    choose,
)


def chat(*texts: str, system: str = "be kind", **fields):
    messages = [{"role": "system", "content": system}]
    messages += [
        {"role": "assistant" if index % 2 else "user", "content": text}
        for index, text in enumerate(texts)
    ]
    return {"model": "m", "messages": messages, **fields}


# Keys


@pytest.mark.parametrize("name", SESSION_HEADERS)
def test_a_session_header_is_the_session_whatever_is_said(name):
    one = affinity_key({name: "s1"}, chat("a", user="u1"))
    assert one == affinity_key({name: "s1"}, chat("b", user="u2"))
    assert one != affinity_key({name: "s2"}, chat("a", user="u1"))


def test_each_agent_of_a_session_is_one_of_its_own():
    header = {"x-claude-code-session-id": "s"}
    first = affinity_key({**header, "x-claude-code-agent-id": "1"}, {})
    assert first != affinity_key({**header, "x-claude-code-agent-id": "2"}, {})
    assert first != affinity_key(header, {})


@pytest.mark.parametrize(
    "fields",
    [
        {"prompt_cache_key": "k"},
        {"metadata": {"user_id": "k"}},
        {"user": "k"},
        {"safety_identifier": "k"},
    ],
)
def test_a_field_of_the_body_is_the_session_where_no_header_is(fields):
    key = affinity_key({}, chat("a", **fields))
    assert key == affinity_key({}, chat("b", system="other", **fields))
    assert key != affinity_key({}, chat("a"))


def test_a_cache_key_is_more_particular_than_a_user():
    one = affinity_key({}, chat("a", prompt_cache_key="c1", user="u"))
    assert one != affinity_key({}, chat("a", prompt_cache_key="c2", user="u"))


def test_else_the_beginning_of_the_prompt_is_and_its_growth_changes_nothing():
    key = affinity_key({}, chat("hello"))
    assert key == affinity_key({}, chat("hello", "hi", "and now?"))
    assert key != affinity_key({}, chat("good day"))
    assert key != affinity_key({}, chat("hello", system="be brief"))
    assert affinity_key({}, chat("x" * PREFIX_CHARS)) == affinity_key(
        {}, chat("x" * (PREFIX_CHARS + 9))
    )


def test_text_in_parts_is_the_same_prompt():
    parts = [{"type": "text", "text": "hel"}, {"type": "text", "text": "lo"}]
    body = {"messages": [{"role": "user", "content": parts}]}
    assert affinity_key({}, body) == affinity_key(
        {}, {"messages": [{"role": "user", "content": "hello"}]}
    )


def test_a_prompt_of_the_completions_route_counts_as_well():
    assert affinity_key({}, {"prompt": "once"}) == affinity_key({}, {"prompt": ["once", "twice"]})
    assert affinity_key({}, {"prompt": [1, 2]}) == affinity_key({}, {"prompt": [[1, 2], [3]]})
    assert affinity_key({}, {"prompt": [1, 2]}) != affinity_key({}, {"prompt": [1, 3]})


@pytest.mark.parametrize("body", [{}, {"input": "embed me"}, {"messages": []}, {"prompt": ""}])
def test_a_request_without_a_prompt_has_no_session(body):
    assert affinity_key({}, body) is None


json = st.recursive(
    st.none() | st.booleans() | st.integers() | st.text(max_size=5),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=5), inner),
    max_leaves=8,
)
fields = st.sampled_from(["messages", "prompt", "metadata", "user", "prompt_cache_key"])


@given(st.dictionaries(fields, json))
def test_no_body_whatever_makes_it_fail(body):
    key = affinity_key({}, body)
    assert key is None or len(key) == 16


# Choices

names = st.sampled_from([f"n{number}" for number in range(8)])
candidates = st.lists(
    st.builds(
        Candidate,
        names,
        st.integers(0, 30),
        st.integers(0, 2),
        st.none() | st.integers(1, 64),
    ),
    min_size=1,
    max_size=8,
    unique_by=lambda candidate: candidate.node,
)


@given(candidates, st.none() | st.text(max_size=4), st.none() | names)
def test_the_choice_is_bounded_by_the_least_busy_of_the_best_standing(found, key, last):
    chosen = choose(found, key, last)
    assert chosen.standing == min(each.standing for each in found)
    least = min(each.load for each in found if each.standing == chosen.standing)
    assert chosen.load <= least + (0 if key is None else chosen.slack)


@given(candidates, st.text(max_size=4), names)
def test_a_session_stays_where_it_was_while_that_is_within_bounds(found, key, last):
    peers = [each for each in found if each.standing == min(one.standing for one in found)]
    home = next((each for each in peers if each.node == last), None)
    chosen = choose(found, key, last)
    if home is not None and home.load <= min(each.load for each in peers) + home.slack:
        assert chosen is home


@given(st.sets(names, min_size=2), st.integers(0, 2**64))
def test_a_node_that_leaves_moves_its_own_sessions_only(nodes, seed):
    idle = [Candidate(node, 0) for node in sorted(nodes)]
    gone = idle[seed % len(idle)]
    rest = [each for each in idle if each is not gone]
    for session in range(20):
        before = choose(idle, f"{seed}-{session}")
        after = choose(rest, f"{seed}-{session}")
        assert after == before or before is gone


def test_sessions_spread_over_idle_nodes():
    idle = [Candidate(f"gpu{number}", 0) for number in range(4)]
    spread = Counter(choose(idle, f"session {number}").node for number in range(2000))
    assert len(spread) == 4
    assert max(spread.values()) < 1.25 * min(spread.values())


def test_without_a_session_the_least_busy_is_taken_and_names_break_ties():
    assert choose([Candidate("b", 1), Candidate("a", 1), Candidate("c", 2)], None).node == "a"


@pytest.mark.parametrize(
    ("capacity", "excess", "stays"),
    [(None, 4, True), (None, 5, False), (32, 8, True), (32, 9, False), (2, 1, True), (2, 2, False)],
)
def test_the_slack_follows_what_a_replica_takes(capacity, excess, stays):
    home = Candidate("home", 3 + excess, capacity=capacity)
    assert (choose([home, Candidate("other", 3)], "k", "home") is home) is stays


# Memory


def test_sessions_are_remembered_up_to_a_bound_the_longest_unused_forgotten_first():
    sessions = SessionMap(2)
    sessions.served("m", "1", "a")
    sessions.served("m", "2", "b")
    sessions.served("m", "1", "c")
    sessions.served("m", "3", "d")
    assert len(sessions) == 2
    assert [sessions.last("m", key) for key in "123"] == ["c", None, "d"]
    assert sessions.last("other", "1") is None
