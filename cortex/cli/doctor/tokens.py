"""One real token through each loaded model: what clients want, asked as they ask it."""

from __future__ import annotations

import time
from collections.abc import Iterable, Iterator
from typing import Any

from cortex.cli.doctor.peer import TOKEN_SECONDS, Heard, ask
from cortex.cli.doctor.report import Finding, Judge

COMPLETION = {"prompt": "1", "max_tokens": 1, "temperature": 0}
EMBEDDING = {"input": "1"}
LOADED = "loaded"


def through_gateway(
    judge: Judge, base: str, key: str | None, foreign: Iterable[str], *, verify: bool
) -> Iterator[Finding]:
    """Through each model that the gateway says is loaded on a neuron; not through those of servers
    of another make (*foreign* nodes), where a token may cost money."""
    listed = ask(f"{base}/v1/models", token=key, verify=verify)
    if listed.status in (401, 403):
        yield judge.warning(
            "token", "the gateway wants a key: no model was tried", "give --key or CORTEX_API_KEY"
        )
        return
    entries = listed.body.get("data") if isinstance(listed.body, dict) else None
    if not listed.good or not isinstance(entries, list):
        yield judge.failed("token", f"/v1/models: {listed.reason}", "see the gateway's log")
        return
    others = set(foreign)
    loaded = [
        entry
        for entry in entries
        if entry.get("loaded")
        and not entry.get("alias_of")
        and any(
            place.get("status") == LOADED and place.get("node") not in others
            for place in entry.get("locations") or []
        )
    ]
    yield from _each(judge, base, key, loaded, verify=verify)


def at_neuron(judge: Judge, base: str, token: str | None) -> Iterator[Finding]:
    """Through each model that the neuron says is loaded."""
    listed = ask(f"{base}/models", token=token)
    if not listed.good or not isinstance(listed.body, list):
        yield judge.failed("token", f"/models: {listed.reason}", "see the neuron's log")
        return
    loaded = [entry for entry in listed.body if entry.get("status") == LOADED]
    for entry in listed.body:
        if entry.get("status") == "failed":
            yield judge.failed(
                f"model {entry.get('id')}",
                f"could not be loaded: {entry.get('error') or 'no reason told'}",
                "see the neuron's log, and load it again",
            )
    yield from _each(judge, base, token, loaded, verify=True)


def _each(
    judge: Judge, base: str, key: str | None, entries: list[Any], *, verify: bool
) -> Iterator[Finding]:
    if not entries:
        yield judge.warning("token", "no model is loaded: nothing to try", "cortex load MODEL")
    for entry in entries:
        name = str(entry.get("id"))
        embeds = "embeddings" in (entry.get("capabilities") or [])
        path, body = ("embeddings", EMBEDDING) if embeds else ("completions", COMPLETION)
        began = time.monotonic()
        heard = ask(
            f"{base}/v1/{path}",
            token=key,
            body={"model": name, **body},
            seconds=TOKEN_SECONDS,
            verify=verify,
        )
        took = time.monotonic() - began
        yield _judged(judge, name, heard, "data" if embeds else "choices", took)


def _judged(judge: Judge, name: str, heard: Heard, part: str, took: float) -> Finding:
    check = f"token {name}"
    if heard.good and isinstance(heard.body, dict) and heard.body.get(part):
        return judge.ok(check, f"{'a vector' if part == 'data' else 'a token'} in {took:.2f} s")
    if heard.status == 403:
        return judge.warning(check, "the key may not use it", "give --key one that may")
    why = "the answer holds none" if heard.good else heard.reason
    return judge.failed(check, f"none came: {why}", "see the logs of gateway and neuron")
