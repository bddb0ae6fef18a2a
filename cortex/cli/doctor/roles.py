"""The checks of each role, in the order in which they are worth reading."""

from __future__ import annotations

import os
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

import attrs

from cortex.cli import live
from cortex.cli.doctor import certificate, devices, files, host, network, tokens
from cortex.cli.doctor.peer import ask, base_of
from cortex.cli.doctor.report import Finding, Judge
from cortex.config.catalogue import Catalogue
from cortex.config.gateway import OPENAI, GatewayConfig
from cortex.config.neuron import NeuronConfig
from cortex.neuron.host_look import kernel_cache
from cortex.neuron.hub import cache_directory

MEMINFO = Path("/proc/meminfo")


@attrs.frozen
class GatewayHost:
    """A gateway as it is configured. *endpoint* None: where its configuration says."""

    config: GatewayConfig
    catalogue: Catalogue
    state: Path
    endpoint: str | None = None
    key: str | None = attrs.field(default=None, repr=False)

    def findings(self) -> Iterator[Finding]:
        judge, settings = Judge("gateway"), self.config.gateway
        secure = settings.tls_certificate is not None
        base = (self.endpoint or base_of(settings.listen, secure=secure)).rstrip("/")
        # The certificate is judged by itself, and need not name this machine.
        verify = self.endpoint is not None
        told = ask(f"{base}/version", verify=verify)
        health = ask(f"{base}/health", verify=verify)
        held = network.recognised("gateway", told, health)
        if self.endpoint is None:
            yield host.port(judge, "api", settings.listen, lambda: held)
            yield host.port(judge, "metrics", settings.metrics_listen, self._metrics)
        yield host.descriptors(judge)
        if self.config.source is not None:
            yield from files.configuration(judge, self.config.source)
        yield from self._secrets(judge)
        yield files.folder(judge, "state", self.state, files.STATE)
        yield from files.state(judge, self.state)
        found = certificate.validity(judge, self.config)
        if found is not None:
            yield found
        yield from self._neurons(judge)
        if held is None:
            where = base if self.endpoint is not None else "the configured address"
            yield (judge.failed if self.endpoint is not None else judge.warning)(
                "gateway", f"no gateway answers at {where}: no token was tried", "start it"
            )
            return
        yield network.version(judge, "gateway", told.body.get("version"))
        yield network.ready(judge, base, verify=verify)
        foreign = [node.name for node in self.config.neurons if node.kind == OPENAI]
        yield from tokens.through_gateway(judge, base, self.key, foreign, verify=verify)

    def _metrics(self) -> str | None:
        heard = ask(base_of(self.config.gateway.metrics_listen) + "/metrics")
        mine = heard.good and "cortex_build_info" in str(heard.body)
        return "a cortex gateway's metrics" if mine else None

    def _secrets(self, judge: Judge) -> Iterator[Finding]:
        for node in self.config.neurons:
            if node.token_file is not None:
                yield files.secret_file(judge, f"token_file {node.name}", node.token_file)
        if self.config.gateway.tls_key is not None:
            yield files.secret_file(judge, "tls_key", self.config.gateway.tls_key)

    def _neurons(self, judge: Judge) -> Iterator[Finding]:
        seen = live.look(self.config.neurons)
        for each in seen:
            yield network.neuron(judge, each)
            clock = host.clock(judge, each.node.name, each.heard)
            if clock is not None:
                yield clock
            if each.snapshot.healthy and each.snapshot.lifecycle:
                yield network.version(judge, each.node.name, each.version)
        yield from network.feasible(judge, self.catalogue, seen)


@attrs.frozen
class NeuronHost:
    """A neuron as it is configured. *look* says what NVML and torch see (`device_look.look`)."""

    config: NeuronConfig
    look: Callable[[], dict[str, Any]]
    environ: Mapping[str, str] = attrs.field(factory=lambda: os.environ)

    def findings(self) -> Iterator[Finding]:
        judge, config, base = Judge("neuron"), self.config, base_of(self.config.listen)
        told = ask(f"{base}/version", token=config.token)
        health = ask(f"{base}/health", token=config.token)
        held = network.recognised("neuron", told, health)
        yield host.port(judge, "api", config.listen, lambda: held)
        yield host.descriptors(judge)
        if config.source is not None:
            yield from files.configuration(judge, config.source)
        if config.token_file is not None:
            yield files.secret_file(judge, "token_file", config.token_file)
        yield files.folder(judge, "state", config.state_directory, files.STATE)
        yield from files.state(judge, config.state_directory)
        weights = cache_directory(config, self.environ)
        yield files.folder(judge, "weights cache", weights, files.WEIGHTS)
        yield files.folder(judge, "kernel room", kernel_cache(self.environ), files.KERNELS)
        yield files.executable(judge, kernel_cache(self.environ))
        yield devices.compiler(judge, self.environ)
        seen = self.look()
        yield from devices.driver_and_torch(judge, seen, self.environ)
        meminfo = MEMINFO.read_text() if MEMINFO.exists() else ""
        yield from devices.memory(judge, seen, self.environ, meminfo)
        yield network.hub(judge, config, self.environ)
        if health.status in (401, 403):
            yield judge.failed(
                "neuron",
                f"{base} refuses this configuration's token",
                "restart it with this file, or set NEURON_TOKEN here",
            )
        elif held is None:
            yield judge.warning(
                "neuron", f"no neuron answers at {base}: no token was tried", "start it"
            )
        else:
            yield network.version(judge, "neuron", told.body.get("version"))
            yield network.ready(judge, base)
            yield from tokens.at_neuron(judge, base, config.token)
