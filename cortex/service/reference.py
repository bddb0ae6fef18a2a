"""`GET /openapi.json`: a role's own reference, made when it is first asked for."""

from __future__ import annotations

from collections.abc import Callable

import attrs

from cortex.service.http import Answer, HttpRequest, Route

PATH = "/openapi.json"


@attrs.define(eq=False)
class ReferenceRoute:
    """*make* gives the document as JSON; it is asked once."""

    make: Callable[[], bytes]
    _made: bytes | None = attrs.field(default=None, init=False)

    def route(self) -> Route:
        return Route("GET", PATH, self.tell)

    async def tell(self, request: HttpRequest) -> Answer:
        if self._made is None:
            self._made = self.make()
        return Answer(self._made)
