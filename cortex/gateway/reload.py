"""Reading the configuration again while requests run.

Everything is read and checked before anything is changed; then the change is made in one go,
between two looks of any other task. Streams that run keep their node and their settings. What has
to go (a model that the catalogue lists no more, or that is to be loaded otherwise) is unloaded by
its neuron when its requests are done.
"""

from __future__ import annotations

import contextlib
from collections.abc import Awaitable, Callable
from typing import NoReturn

import trio
from prometheus_client import CollectorRegistry, Counter

from cortex.config.errors import ConfigError
from cortex.errors import Conflict, CortexError, Unprocessable
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.certificate import context_of
from cortex.gateway.events import EventLog
from cortex.gateway.fleet import Fleet
from cortex.gateway.reload_plan import (
    Configuration,
    Drain,
    Plan,
    ReadFiles,
    Resident,
    in_force,
    make_plan,
)
from cortex.gateway.router import Router
from cortex.gateway.settings import LiveSettings
from cortex.service import logs
from cortex.service.notify import Systemd
from cortex.service.tls import ServerContext, Tls
from cortex.wire import neuron as wire

INVALID = "invalid_configuration"

log = logs.get("gateway.reload")


class Reloader:
    """Changes the configuration in force; nobody else does."""

    def __init__(
        self,
        read: ReadFiles | None,
        live: LiveSettings,
        names: ModelNames,
        fleet: Fleet,
        router: Router,
        registry: CollectorRegistry,
        events: EventLog,
        nursery: trio.Nursery,
        tls: Tls | None = None,
        systemd: Systemd | None = None,
    ) -> None:
        """*read* gives the files as they are now; what is unloaded and loaded runs in *nursery*.
        The certificate of *tls* is read again too. *systemd* is told of reloads."""
        self._read = read
        self._live = live
        self._names = names
        self._fleet = fleet
        self._router = router
        self._events = events
        self._nursery = nursery
        self._tls = tls
        self._systemd = systemd or Systemd()
        self._reloads = Counter(
            "cortex_config_reloads",
            "Times the configuration was read again, by how that went.",
            ("result",),
            registry=registry,
        )
        for result in ("applied", "refused"):  # a rate sees no first time of what begins with it
            self._reloads.labels(result)
        self._one_at_a_time = trio.Lock()

    async def plan(self) -> Plan:
        """What `reload` would do now. `Unprocessable` with the file and the key path, or
        `Conflict` when there is nothing to read."""
        after, _ = await self._read_again()
        return self._plan(after)

    async def reload(self) -> Plan:
        """Read the files and put them in force; what that changed. Raises as `plan` does, and
        nothing has changed then."""
        async with self._one_at_a_time:
            self._systemd.reloading()
            try:
                after, context = await self._read_again()
                plan = self._plan(after)
                self._apply(plan, after, context)
            except CortexError as exc:
                self._reloads.labels("refused").inc()
                log.error("reload refused: nothing was changed", why=exc.message)
                raise
            finally:
                self._systemd.ready()
        return plan

    async def on_each(self, hangup: Callable[[], Awaitable[None]]) -> NoReturn:
        """Reload whenever *hangup* returns; for ever."""
        while True:
            await hangup()
            with contextlib.suppress(CortexError):  # logged and counted; the gateway goes on
                await self.reload()

    async def _read_again(self) -> tuple[Configuration, ServerContext | None]:
        """The configuration, and its certificate."""
        read = self._read
        if read is None:
            raise Conflict("this gateway was started without a configuration to read again")

        def all_files() -> tuple[Configuration, ServerContext | None]:
            after = read()
            return after, context_of(after.config)

        try:
            return await trio.to_thread.run_sync(all_files)
        except ConfigError as exc:
            raise Unprocessable(str(exc), code=INVALID) from None

    def _plan(self, after: Configuration) -> Plan:
        before = Configuration(self._live.config, self._names.catalogue)
        ours = self._router.loaded_by_us()
        residents = [
            Resident(node.name, model.id, (node.name, model.id) in ours)
            for node in self._fleet.nodes()
            if node.lifecycle
            for model in node.models
            if model.status in (wire.LOADED, wire.LOADING)
        ]
        return make_plan(before, after, residents)

    def _apply(self, plan: Plan, after: Configuration, context: ServerContext | None) -> None:
        """Synchronous: no other task sees a half of it."""
        if self._tls is not None and context is not None:
            self._tls.context = context
            file = after.config.gateway.tls_certificate
            log.info("the certificate has been read again", file=str(file))
        self._live.swap(in_force(self._live.config, after.config))
        self._fleet.configure(after.config.neurons)
        self._names.configure(after.catalogue)
        for drain in plan.drain:
            self._nursery.start_soon(
                self._drain, drain, name=f"drain {drain.model} on {drain.node}"
            )
        self._reloads.labels("applied").inc()
        self._tell(plan)

    def _tell(self, plan: Plan) -> None:
        for warning in plan.warnings:
            log.warning(warning)
        for change in plan.settings:
            if change.live:
                log.info("setting", key=change.key, before=change.before, after=change.after)
            else:
                log.warning("setting needs a restart", key=change.key, in_force=change.before)
        told = {
            "nodes_added": plan.nodes.added,
            "nodes_drained": plan.nodes.removed,
            "nodes_changed": plan.nodes.changed,
            "models_added": plan.models.added,
            "models_removed": plan.models.removed,
            "models_changed": plan.models.changed,
            "drained": [f"{each.model} on {each.node}" for each in plan.drain],
            "needs_restart": plan.restart,
        }
        shown = {name: ", ".join(values) for name, values in told.items() if values}
        event = "reloaded, and nothing has changed" if plan.empty else "reloaded"
        log.info(event, kept=len(plan.keep), **shown)
        self._events.publish("reloaded", plan=plan.body())

    async def _drain(self, drain: Drain) -> None:
        log.info("draining a model", model=drain.model, node=drain.node, why=drain.why)
        try:
            await self._router.evict(drain.node, drain.model, "reload")
            if drain.reload:
                await self._router.load(drain.model, drain.node)
        except CortexError as exc:
            log.error(
                "a model could not be drained or loaded again",
                exc=exc,
                model=drain.model,
                node=drain.node,
            )
