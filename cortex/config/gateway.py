"""cortex.toml: the gateway's settings, its eviction policy, its callers and its neurons."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs

from cortex.config import values
from cortex.config.accounts import AuthSettings, UsageSettings
from cortex.config.errors import Invalid
from cortex.config.structure import NOT_A_KEY
from cortex.config.values import Seconds


@attrs.frozen
class GatewaySettings:
    listen: str = attrs.field(default="127.0.0.1:31313", validator=values.listen_address)
    metrics_listen: str = attrs.field(default="127.0.0.1:31314", validator=values.listen_address)
    max_body_mb: int = attrs.field(default=64, validator=values.at_least(1, 4096))
    drain_seconds: Seconds = attrs.field(default=30.0, validator=values.at_least(0))
    keepalive_seconds: Seconds = attrs.field(default=2.0, validator=values.more_than(0))
    commit_after_seconds: Seconds = attrs.field(default=5.0, validator=values.at_least(0))
    queue_wait_seconds: Seconds = attrs.field(default=120.0, validator=values.at_least(0))
    load_wait_seconds: Seconds = attrs.field(default=600.0, validator=values.at_least(0))
    queue_depth: int = attrs.field(default=256, validator=values.at_least(1))  # per model
    stall_seconds: Seconds = attrs.field(default=300.0, validator=values.more_than(0))
    poll_seconds: Seconds = attrs.field(default=2.0, validator=values.more_than(0))
    # How long a token proves that the fleet works, for /readyz; 0: no token is asked for.
    readiness_seconds: Seconds = attrs.field(default=30.0, validator=values.at_least(0))
    strict_anthropic_version: bool = False
    # Web pages of these origins may use the API from a browser, with a key of theirs.
    cors_origins: tuple[str, ...] = attrs.field(default=(), validator=values.origins)
    tls_certificate: Path | None = None  # a chain in PEM; with it the API is https
    tls_key: Path | None = attrs.field(default=None)

    @metrics_listen.validator
    def _distinct(self, field: attrs.Attribute[Any], value: str) -> None:
        if value == self.listen and values.split_listen(value)[1] != 0:
            raise Invalid("is the same address as listen", field.name)

    @tls_key.validator
    def _both(self, field: attrs.Attribute[Any], value: Path | None) -> None:
        if (value is None) != (self.tls_certificate is None):
            missing, given = field.name, "tls_certificate"
            if value is not None:
                missing, given = given, missing
            raise Invalid(f"required with {given}", missing)


@attrs.frozen
class EvictionSettings:
    strategy: str = attrs.field(default="lru", validator=values.one_of("lru", "priority"))
    keep_alive: Seconds = 1800.0  # idle time before a model is unloaded; 0 = at once, < 0 = never
    min_residency_seconds: Seconds = attrs.field(default=60.0, validator=values.at_least(0))
    # A busy model is handed over to one that has been waited for this long.
    max_wait_seconds: Seconds = attrs.field(default=30.0, validator=values.at_least(0))
    defrag_after_cycles: int = attrs.field(default=50, validator=values.at_least(0))  # 0 = never


CORTEX = "cortex"  # a neuron of ours
OPENAI = "openai"  # any server that speaks OpenAI's API; its models are not ours to load
# Keys that say something about a server of another make only.
FOREIGN_KEYS = ("models", "include", "headers", "max_in_flight", "pass_fields", "drop_fields")


def _public_names(_: Any, field: attrs.Attribute[Any], value: dict[str, str] | None) -> None:
    for public, theirs in (value or {}).items():
        path = f'{field.name}."{public}"'
        if not values.is_model_id(public):
            raise Invalid(f"{public!r} is no model id", path)
        if not theirs:
            raise Invalid("must not be empty", path)


@attrs.frozen
class ImageSettings:
    """Images that a client names by URL, and does not send."""

    fetch: bool = False
    allow_http: bool = False  # besides https
    max_mb: int = attrs.field(default=10, validator=values.at_least(1, 20))
    timeout_seconds: Seconds = attrs.field(default=10.0, validator=values.more_than(0))


@attrs.frozen
class NeuronNode:
    """A node of the fleet: a neuron, or (``kind`` openai) a server of another make.

    ``models`` maps public ids to that server's names; ``include`` lets through, by shell patterns,
    what it lists under names of its own. Without either everything it lists is served.
    """

    name: str = attrs.field(validator=values.node_name)
    endpoint: str = attrs.field(validator=values.http_url)  # base URL, no trailing slash
    token: str | None = attrs.field(default=None, validator=values.secret, repr=False)
    token_file: Path | None = None
    kind: str = attrs.field(default=CORTEX, validator=values.one_of(CORTEX, OPENAI))
    poll_seconds: Seconds | None = attrs.field(default=None, validator=values.more_than(0))
    models: dict[str, str] | None = attrs.field(default=None, validator=_public_names)
    include: tuple[str, ...] = ()
    headers: dict[str, str] | None = attrs.field(default=None, validator=values.headers, repr=False)
    max_in_flight: int | None = attrs.field(default=None, validator=values.at_least(1))
    pass_fields: tuple[str, ...] = ()
    drop_fields: tuple[str, ...] = ()

    def __attrs_post_init__(self) -> None:
        if self.kind == OPENAI:
            return
        for key in FOREIGN_KEYS:
            if getattr(self, key):
                raise Invalid(f'is for kind = "{OPENAI}" only', key)


LOCAL = NeuronNode("local", "http://127.0.0.1:13131")


@attrs.frozen
class GatewayConfig:
    """``models_config`` is the catalogue's path, resolved; ``source`` the file this came from."""

    gateway: GatewaySettings = attrs.field(factory=GatewaySettings)
    eviction: EvictionSettings = attrs.field(factory=EvictionSettings)
    neurons: tuple[NeuronNode, ...] = attrs.field(default=(LOCAL,))
    images: ImageSettings = attrs.field(factory=ImageSettings)
    models_config: Path | None = None
    auth: AuthSettings = attrs.field(factory=AuthSettings)
    usage: UsageSettings = attrs.field(factory=UsageSettings)
    source: Path | None = attrs.field(default=None, metadata=NOT_A_KEY)
    warnings: tuple[str, ...] = attrs.field(default=(), metadata=NOT_A_KEY)

    @neurons.validator
    def _distinct(self, field: attrs.Attribute[Any], nodes: tuple[NeuronNode, ...]) -> None:
        names: set[str] = set()
        for index, node in enumerate(nodes):
            if node.name in names:
                raise Invalid(
                    f"a neuron named {node.name!r} is listed before", f"neurons[{index}].name"
                )
            names.add(node.name)
