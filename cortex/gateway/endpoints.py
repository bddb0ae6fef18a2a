"""Where a model is reached: what its neuron advertises, made reachable from here."""

from __future__ import annotations

import ipaddress
from urllib.parse import SplitResult, urlsplit

import attrs

from cortex.errors import CortexError, ModelNotFound, NotFound
from cortex.gateway import foreign
from cortex.gateway.control import NeuronControl
from cortex.gateway.fleet import Fleet, Replica
from cortex.gateway.poller import Poller


@attrs.frozen(eq=False)
class Endpoints:
    """Asks neurons where their models are reached; the fleet remembers what they say."""

    _fleet: Fleet
    _control: NeuronControl
    _poller: Poller

    async def of(self, replica: Replica) -> str | None:
        """The base URL for *replica*'s requests; None (and a probe) when its node cannot say."""
        node, model = replica.node, replica.model.id
        if not node.lifecycle:
            return foreign.base_url(node.endpoint)
        known = self._fleet.endpoint(node.name, model)
        return await self._ask(node.name, model) if known is None else known

    async def _ask(self, node: str, model: str) -> str | None:
        asked = self._fleet.node(node)
        try:
            advertised = await self._control.endpoint(node, model)
        except ModelNotFound:
            self._fleet.gone(node, model)
            self._poller.probe_now(node)
            return None
        except NotFound:  # an older neuron has no such route: it serves where it is polled
            advertised = asked.endpoint
        except CortexError as exc:
            self._fleet.suspect(node, exc.message)
            self._poller.probe_now(node)
            return None
        if self._fleet.node(node).spell != asked.spell or not self._fleet.node(node).serving:
            return None  # it was removed, moved or restarted meanwhile
        url = reachable(advertised, asked.endpoint)
        self._fleet.remember_endpoint(node, model, url)
        return url


def reachable(advertised: str, configured: str) -> str:
    """The base URL to use for a model whose neuron, known as *configured*, says *advertised*.

    A neuron that listens on loopback or on every address cannot know the name by which others
    reach it: its host is replaced by the configured one, its port kept. What is no HTTP address
    at all yields the configured endpoint.
    """
    configured = configured.rstrip("/")
    try:
        theirs, ours = urlsplit(advertised), urlsplit(configured)
        port = theirs.port
    except ValueError:
        return configured
    if theirs.scheme not in ("http", "https") or not theirs.hostname or theirs.username:
        return configured
    path = theirs.path.rstrip("/")
    if not _only_local(theirs.hostname) or _is_loopback(ours.hostname or ""):
        host = ours.hostname if _is_unspecified(theirs.hostname) else theirs.hostname
        return _join(theirs, host or "", port, path)
    return _join(theirs, ours.hostname or "", port, path)


def _join(parts: SplitResult, host: str, port: int | None, path: str) -> str:
    netloc = f"[{host}]" if ":" in host else host
    if port is not None:
        netloc += f":{port}"
    return f"{parts.scheme}://{netloc}{path}"


def _only_local(host: str) -> bool:
    return _is_loopback(host) or _is_unspecified(host)


def _is_loopback(host: str) -> bool:
    if host == "localhost" or host.endswith(".localhost"):
        return True
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _is_unspecified(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_unspecified
    except ValueError:
        return False
