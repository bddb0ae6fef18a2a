"""Wait until a gateway and its neuron are up and the models asked for are loaded."""

from __future__ import annotations

import sys
from collections.abc import Awaitable, Callable
from typing import Any

import attrs
import click
import httpx
import trio

from cortex.cli.tables import loading_of, loading_words

Json = dict[str, Any]

POLL_SECONDS = 0.2
ANSWER_SECONDS = 5.0
# Importing torch from a cold disk takes half a minute; nothing else comes before listening.
LISTEN_SECONDS = 180.0


class NotReady(Exception):
    """It will not come up; the message says why."""


@attrs.frozen
class Endpoints:
    """Base URLs, and the token that the neuron wants."""

    gateway: str
    neuron: str
    token: str = attrs.field(repr=False)


@attrs.define(eq=False)
class ProgressLine:
    """One line on stderr: rewritten on a terminal, a line for each new stage otherwise."""

    _shown: str = attrs.field(default="", init=False)

    def show(self, text: str) -> None:
        if sys.stderr.isatty():
            if text != self._shown:
                click.echo(f"\r\x1b[K{text}", nl=False, err=True)
        elif _stage_of(text) != _stage_of(self._shown):
            click.echo(text, err=True)
        self._shown = text

    def clear(self) -> None:
        if self._shown and sys.stderr.isatty():
            click.echo("\r\x1b[K", nl=False, err=True)


def _stage_of(text: str) -> str:
    return text.rstrip("0123456789% ")


async def until_ready(
    endpoints: Endpoints, models: tuple[str, ...], start_gateway: Callable[[], Awaitable[None]]
) -> tuple[str, ...]:
    """Return the *models* that are served; `NotReady` when none will be.

    The gateway is started once the neuron answers, so that it finds a healthy fleet.
    Listening is waited for within `LISTEN_SECONDS`; a load takes as long as it takes. Models that
    failed are told on stderr.
    """
    line = ProgressLine()
    headers = {"authorization": f"Bearer {endpoints.token}"}
    # The gateway is our own child, its certificate need not name this machine, and it is told no
    # secret: nothing is verified.
    async with httpx.AsyncClient(timeout=ANSWER_SECONDS, trust_env=False, verify=False) as client:
        neuron = _Peer(client, endpoints.neuron, headers)
        gateway = _Peer(client, endpoints.gateway, {})
        try:
            line.show("starting the neuron")
            await _listening(neuron, "neuron")
            line.show("starting the gateway")
            await start_gateway()
            await _listening(gateway, "gateway")
            return await _loaded(neuron, gateway, models, line)
        finally:
            line.clear()


@attrs.frozen(eq=False)
class _Peer:
    client: httpx.AsyncClient
    url: str
    headers: dict[str, str]

    async def get(self, path: str) -> Any:
        """The JSON at *path*, None when there is none to be had now."""
        try:
            answer = await self.client.get(f"{self.url}{path}", headers=self.headers)
            return answer.json() if answer.is_success else None
        except (httpx.HTTPError, ValueError):
            return None


async def _listening(peer: _Peer, name: str) -> None:
    with trio.move_on_after(LISTEN_SECONDS):
        while True:
            if await peer.get("/health") is not None:
                return
            await trio.sleep(POLL_SECONDS)
    raise NotReady(f"the {name} does not answer at {peer.url}")


async def _loaded(
    neuron: _Peer, gateway: _Peer, models: tuple[str, ...], line: ProgressLine
) -> tuple[str, ...]:
    told: set[str] = set()
    while True:
        served = await _served(neuron, gateway)
        health = await neuron.get("/health") or {}
        failed = _failures(health)
        for model in models:
            if model in failed and model not in served | told:
                line.clear()
                click.echo(f"cortex up: {model}: {failed[model]}", err=True)
                told.add(model)
        if all(model in served or model in failed for model in models):
            ready = tuple(model for model in models if model in served)
            if not ready:
                raise NotReady("no model could be loaded")
            return ready
        line.show(_stage(health, await neuron.get("/models")))
        await trio.sleep(POLL_SECONDS)


async def _served(neuron: _Peer, gateway: _Peer) -> set[str]:
    """The models that the gateway lists as loaded. One that tells only who has a key is asked
    whether it sees the neuron, and the neuron what it has loaded."""
    listed = await gateway.get("/v1/models")
    if listed is not None:
        return {m.get("id") for m in listed.get("data") or [] if m.get("loaded")}
    nodes = (await gateway.get("/health") or {}).get("nodes") or {}
    if not nodes.get("healthy"):
        return set()
    return {m["id"] for m in _entries(await neuron.get("/models")) if m.get("status") == "loaded"}


def _entries(models: Any) -> list[Json]:
    """The models of a neuron's ``/models``."""
    found: list[Json] = models if isinstance(models, list) else (models or {}).get("models") or []
    return found


def _failures(health: Json) -> dict[str, str]:
    entries = (health.get("activation") or {}).get("failed") or []
    return {str(e.get("model_id")): str(e.get("error")) for e in entries}


def _stage(health: Json, models: Any) -> str:
    """What is being loaded and how far it is, from the neuron's ``/health`` and ``/models``."""
    name = (health.get("activation") or {}).get("in_progress")
    for entry in _entries(models):
        if entry.get("id") == name and entry.get("progress"):
            return f"loading {name}: {loading_words(loading_of(entry['progress']))}"
    return f"loading {name}" if name else "waiting for the gateway"
