"""What a configuration comes to, in sentences: who reaches it, who may use it, what goes where.

Pure: configurations in, sentences out. They say what the gateway and the neuron do with the values,
so that a person can see whether that is what was meant.
"""

from __future__ import annotations

from collections.abc import Iterator

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import OPENAI, EvictionSettings, GatewayConfig, NeuronNode
from cortex.config.neuron import DefaultModel, NeuronConfig, is_local_path
from cortex.config.values import is_loopback, split_listen

EVERYWHERE = frozenset({"0.0.0.0", "::", ""})
DEMO = frozenset({"demo", "cortex/demo"})


def of_gateway(config: GatewayConfig, catalogue: Catalogue) -> Iterator[str]:
    settings = config.gateway
    scheme = "https" if settings.tls_certificate is not None else "http"
    yield f"The API is {scheme} on {settings.listen}; {_reach(settings.listen)}."
    yield _callers(config)
    if settings.cors_origins:
        yield f"Web pages of {', '.join(settings.cors_origins)} may use it from a browser."
    metrics = settings.metrics_listen
    yield f"Metrics are on {metrics}, without a key; {_reach(metrics)}."
    yield from map(_node, config.neurons)
    if not config.neurons:
        yield "There are no neurons: no model can be served."
    yield from of_catalogue(catalogue, config)
    yield _eviction(config.eviction)
    yield _images(config)


def of_catalogue(catalogue: Catalogue, config: GatewayConfig | None = None) -> Iterator[str]:
    """*config* None: the catalogue alone is known, and no nodes."""
    for entry in catalogue.models.values():
        places = f"{_places(entry, config)}{_stay(entry)}"
        yield f"{entry.id} {_origin(entry)}, {_size(entry)}, {places}."
    if not catalogue.models and config is not None:
        yield "The catalogue is empty: what neurons have loaded by themselves is served, no more."
    for alias, target in catalogue.aliases.items():
        yield f"{alias} is another name for {target}."


def of_neuron(config: NeuronConfig) -> Iterator[str]:
    yield f"The neuron is on {config.listen}; {_reach(config.listen)}."
    if config.token is not None:
        yield "Who asks must say its token, but for /livez and /readyz."
    elif is_loopback(config.listen):
        yield "It has no token: everybody on this machine may use it."
    else:
        yield "It has no token: everybody who reaches it may use it."
    yield f"Models may take {config.memory_fraction:.0%} of each device's memory."
    for model in config.default_models:
        where = "" if model.devices is None else f" on device {', '.join(map(str, model.devices))}"
        yield f"{model.model_id} {_origin(model)} and is loaded at start{where}."
    if not config.default_models:
        yield "Nothing is loaded at start: a gateway, or cortex load, says what is."
    if config.offline:
        yield "The hub is never asked: only what is in the cache can be loaded."


def _reach(listen: str) -> str:
    host, port = split_listen(listen)
    chosen = "; the port is chosen at start" if port == 0 else ""
    if is_loopback(listen):
        return f"only this machine reaches it{chosen}"
    if host in EVERYWHERE:
        return f"whoever reaches any address of this machine reaches it{chosen}"
    return f"whoever reaches {host} reaches it{chosen}"


def _callers(config: GatewayConfig) -> str:
    auth = config.auth
    bounds = [
        *([f"the models {', '.join(auth.anonymous_models)}"] if auth.anonymous_models else []),
        *([f"{auth.anonymous_rpm} requests a minute"] if auth.anonymous_rpm is not None else []),
        *([f"{auth.anonymous_tpm} tokens a minute"] if auth.anonymous_tpm is not None else []),
    ]
    within = f", within {' and '.join(bounds)}" if bounds else ""
    if auth.anonymous:
        return f"Nobody needs a key{within}."
    if auth.anonymous is False:
        return "Every request needs a key: cortex keys add NAME makes one."
    if is_loopback(config.gateway.listen):
        return f"Nobody needs a key{within} until there is one; from then on every request does."
    return "Nobody is served until there is a key; cortex keys add NAME makes one."


def _node(node: NeuronNode) -> str:
    given = "with a token" if node.token is not None else "without a token"
    if node.kind == OPENAI:
        return (
            f"{node.name} at {node.endpoint} is a server of another make, asked {given}; what it "
            "lists is served, and nothing is loaded there."
        )
    return f"{node.name} at {node.endpoint} is a neuron, asked {given}."


def _origin(model: CatalogueEntry | DefaultModel) -> str:
    name = model.id if isinstance(model, CatalogueEntry) else model.model_id
    source = model.source or name
    quant = f" as {model.quant}" if model.quant is not None else ""
    if source in DEMO:
        return f"is the demonstration model{quant}"
    kind = "the neuron's own" if is_local_path(source) else "the hub's"
    return f"comes from {kind} {source}{quant}"


def _size(entry: CatalogueEntry) -> str:
    if entry.vram_mb is not None:
        return f"takes {entry.vram_mb} MiB"
    return "takes what a neuron estimates from its files"


def _places(entry: CatalogueEntry, config: GatewayConfig | None) -> str:
    floor = entry.min_device_vram_mb
    device = f", on a device of {floor} MiB or more" if floor else ""
    if entry.pinned_on:
        names = ", ".join(entry.pinned_on)
        where = f"may be loaded on {names} alone and is never evicted there"
        nodes = [
            node for node in (config.neurons if config else ()) if node.name in entry.pinned_on
        ]
        if config is not None and not nodes:
            where += ", and no such neuron is configured: it can be loaded nowhere"
        elif nodes and all(node.kind == OPENAI for node in nodes):
            return f"is had from {names} alone, where nothing is loaded on request"
        return where + device
    if config is None:
        return f"may be loaded on every neuron{device}"
    able = [node.name for node in config.neurons if node.kind != OPENAI]
    if not able:
        return "can be loaded nowhere, since no neuron of ours is configured"
    return f"may be loaded on {', '.join(able)}{device}"


def _stay(entry: CatalogueEntry) -> str:
    if entry.keep_alive is None:
        return ""
    return f", and {_idle(entry.keep_alive)}"


def _idle(seconds: float) -> str:
    if seconds < 0:
        return "stays when nobody uses it"
    if seconds == 0:
        return "is unloaded as soon as its last request ends"
    return f"is unloaded when nobody has used it for {seconds:g} s"


def _eviction(rules: EvictionSettings) -> str:
    order = "those idle for long and quickly loaded again first"
    if rules.strategy == "priority":
        order = "those of the lowest residency_priority first, never one of a higher than its own"
    return (
        f"A model that needs room has idle ones leave, {order}; none within "
        f"{rules.min_residency_seconds:g} s of its load, and a busy one is handed over after "
        f"{rules.max_wait_seconds:g} s. Where its entry does not say, a model "
        f"{_idle(rules.keep_alive)}."
    )


def _images(config: GatewayConfig) -> str:
    images = config.images
    if not images.fetch:
        return "Images that a request names by URL are refused."
    schemes = "https and http" if images.allow_http else "https alone"
    bound = f"up to {images.max_mb} MiB"
    return f"Images that a request names by URL are fetched, over {schemes}, {bound}."
