"""Whether requests are answered: `/readyz`, which anybody may ask and nobody can make costly.

A node in service is not enough: where a model is loaded, a token must have come out of one lately,
a client's or that of a request of the gateway's own. That goes the way of clients' requests, to a
model that is loaded, and is no use of it: it loads, evicts and keeps nothing, takes no seat, is
charged to nobody and leaves sessions and circuits alone. Servers of another make are not asked: a
token may cost money there, or have a model loaded.
"""

from __future__ import annotations

from collections.abc import Callable, Iterable
from typing import Any, Final

import attrs
import trio

from cortex.errors import CortexError, UpstreamError
from cortex.gateway.auth.caller import INTERACTIVE, Caller
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.dispatch import Job, upstream_call
from cortex.gateway.fleet import Fleet, Replica
from cortex.gateway.metrics import GatewayMetrics
from cortex.gateway.placement import may_serve
from cortex.gateway.router import Router
from cortex.gateway.upstream import Upstream
from cortex.service import logs
from cortex.service.http import HttpRequest, request_id_from
from cortex.service.proof import FAILED, OK, Proof, Verdict
from cortex.wire import json

MAX_NODES = 3  # asked in one probe
PROBE_SECONDS = 10.0  # for all of them
NEXT_SECONDS = 3.0  # without an answer, after which the next one is asked too
MAX_ANSWER_BYTES = 1 << 20

DIALECT = "readiness"
CALLER = Caller(DIALECT, priority=INTERACTIVE)
COMPLETION: Final = {"prompt": "1", "max_tokens": 1, "temperature": 0}
EMBEDDING: Final = {"input": "1"}

log = logs.get("gateway.readiness")


@attrs.define(eq=False)
class Readiness:
    """*seconds* is how long a token proves that the fleet works; 0: none is asked for."""

    names: ModelNames
    fleet: Fleet
    router: Router
    upstream: Upstream
    metrics: GatewayMetrics
    seconds: Callable[[], float]
    nursery: trio.Nursery
    _proof: Proof = attrs.field(init=False)

    def __attrs_post_init__(self) -> None:
        self._proof = Proof(
            self.nursery,
            self._probe,
            self.seconds,
            lambda: self.metrics.output_at,
            self.metrics.readiness_probe,
            PROBE_SECONDS,
        )

    async def body(self) -> dict[str, Any]:
        """The body of `/readyz`; it names no node and no model."""
        nodes = self.fleet.nodes()
        body: dict[str, Any] = {
            "ready": any(node.serving for node in nodes),
            "nodes": {"healthy": sum(node.healthy for node in nodes), "total": len(nodes)},
        }
        if not body["ready"]:
            return body | {"reason": "no node is in service"}
        replicas = self._replicas()
        if not replicas or self.seconds() <= 0:
            return body
        subject = frozenset((each.node.name, each.node.spell, each.model.id) for each in replicas)
        verdict = await self._proof.verdict(subject)
        body["token"] = _told(verdict)
        if not verdict.ok:
            body |= {"ready": False, "reason": "no model answers with a token"}
        return body

    def _replicas(self) -> list[Replica]:
        """What a client's request could go to without a load, on neurons of ours; the least busy
        ones first."""
        found = [
            replica
            for model in self.fleet.model_ids()
            for replica in self.fleet.replicas(model)
            if replica.node.serving
            and replica.node.lifecycle
            and replica.servable
            and may_serve(self.names.catalogue.models.get(model), replica.node)
        ]
        return sorted(
            found, key=lambda r: (self.fleet.load_of(r.node.name, r.model.id), r.model.id)
        )

    async def _probe(self) -> str:
        """Ask up to `MAX_NODES` nodes, one after the other, until one answers with a token."""
        results: list[str] = []
        async with trio.open_nursery() as nursery:
            for replica in _one_a_node(self._replicas()):
                asked = trio.Event()
                nursery.start_soon(self._ask, replica, results, asked, nursery.cancel_scope)
                with trio.move_on_after(NEXT_SECONDS):
                    await asked.wait()
        return OK if OK in results else FAILED

    async def _ask(
        self, replica: Replica, results: list[str], asked: trio.Event, others: trio.CancelScope
    ) -> None:
        result, why = FAILED, ""
        try:
            await self._token(replica)
            result = OK
            others.cancel("a token has come")
        except CortexError as exc:
            why = exc.message
        finally:
            results.append(result)
            asked.set()
            if result != OK:
                log.warning(
                    "no token came",
                    node=replica.node.name,
                    model=replica.model.id,
                    why=why or "it took too long, or another was quicker",
                )

    async def _token(self, replica: Replica) -> None:
        """Return once a token (or a vector) of *replica* has come; else a `CortexError`."""
        lease = await self.router.lease_to_look(replica)
        if lease is None:
            raise UpstreamError("the neuron does not say where the model is reached")
        embeds = "embeddings" in (replica.model.capabilities or ())
        path, body = ("embeddings", EMBEDDING) if embeds else ("completions", COMPLETION)
        job = Job(DIALECT, lease.model, f"/v1/{path}", dict(body), stream=False)
        async with self.upstream.call(upstream_call(_request(), job, lease)) as response:
            data = await response.read(MAX_ANSWER_BYTES)
        if response.status != 200:
            raise UpstreamError(f"the neuron answered {response.status}")
        answer = json.load_object(data)
        if not (answer.get("data") if embeds else answer.get("choices")):
            raise UpstreamError("the neuron's answer holds no token")


def _request() -> HttpRequest:
    """On whose behalf a probe is sent: nobody's, with an id by which logs find it."""
    request = HttpRequest("GET", "/readyz", {}, b"", {}, request_id_from({}))
    request.caller = CALLER
    return request


def _one_a_node(replicas: Iterable[Replica]) -> list[Replica]:
    found: dict[str, Replica] = {}
    for replica in replicas:
        found.setdefault(replica.node.name, replica)
    return list(found.values())[:MAX_NODES]


def _told(verdict: Verdict) -> dict[str, Any]:
    ago = round(max(0.0, trio.current_time() - verdict.at), 1)
    return {"result": verdict.result, "by": verdict.by, "seconds_ago": ago}
