"""The routes of a neuron's pulls."""

from __future__ import annotations

import attrs

from cortex.neuron.pulls import Pulls
from cortex.service.http import Answer, HttpRequest, Route
from cortex.wire import json
from cortex.wire import neuron as wire
from cortex.wire.converter import structure


@attrs.frozen(eq=False)
class PullApi:
    pulls: Pulls

    def routes(self) -> list[Route]:
        return [
            Route("GET", "/models/pulls", self.list),
            Route("POST", "/models/pull", self.pull),
            Route("POST", "/models/pull/cancel", self.cancel),
        ]

    async def list(self, request: HttpRequest) -> Answer:
        return Answer(json.dumps({"pulls": [_plain(pull) for pull in self.pulls.states()]}))

    async def pull(self, request: HttpRequest) -> Answer:
        """Pull and answer when it is done, or, with ``?wait=false``, at once."""
        asked = structure(json.load_object(request.body), wire.PullRequest)
        if request.query.get("wait", "").lower() in ("false", "0", "no"):
            return Answer(json.dumps(_plain(self.pulls.start(asked))), 202)
        return Answer(json.dumps(_plain(await self.pulls.pull(asked))))

    async def cancel(self, request: HttpRequest) -> Answer:
        """Stop a pull; what came is kept for the next one."""
        asked = structure(json.load_object(request.body), wire.CancelPull)
        await self.pulls.cancel(asked.model_id)
        return Answer(json.dumps({"status": wire.CANCELLED}))


def _plain(pull: wire.Pull) -> dict[str, object]:
    return attrs.asdict(pull, filter=lambda _, value: value is not None)
