"""Who is reached from here: each neuron with its token, the hub; and whether versions match."""

from __future__ import annotations

import os
from collections.abc import Iterator, Mapping
from pathlib import Path

from cortex import __version__
from cortex.cli.doctor.peer import Heard, ask
from cortex.cli.doctor.report import Finding, Judge
from cortex.cli.live import Seen
from cortex.config.catalogue import Catalogue
from cortex.config.neuron import NeuronConfig, is_local_path
from cortex.gateway.placement import infeasible

HUB = "https://huggingface.co"
# Answered with 401 by a hub that does not know the token, and by one that was given none.
WHO = "/api/whoami-v2"
READY_SECONDS = 20.0  # its own probe has ten
TRUE = frozenset({"1", "ON", "YES", "TRUE"})  # as the hub's own tools have it
BUILT_IN = frozenset({"demo", "cortex/demo"})


def neuron(judge: Judge, seen: Seen) -> Finding:
    """Whether a node of the gateway's configuration answers, with the token it is given."""
    node, heard, check = seen.node, seen.heard, f"neuron {seen.node.name}"
    if heard.status is None:
        return judge.failed(
            check,
            f"{node.endpoint} is not reached: {heard.error}",
            "is it started, does it listen on that address, does a firewall let this host in?",
        )
    if heard.status in (401, 403):
        given = "refuses the token" if node.token else "wants a token"
        return judge.failed(
            check,
            f"{node.endpoint} {given}",
            "give neurons.token (or token_file) the token of its neuron.toml; `cortex up` makes "
            "one of its own, unless NEURON_TOKEN says it: set that there, CORTEX_NEURON_TOKEN here",
        )
    if not seen.snapshot.healthy:
        return judge.failed(
            check, f"{node.endpoint}: {heard.reason}", "is that the neuron's address?"
        )
    if not seen.snapshot.lifecycle:
        return judge.ok(check, f"{node.endpoint} answers, a server of another make")
    health = seen.snapshot.health
    lost = [each for each in health.devices if not each.ok] if health is not None else []
    if health is not None and (lost or health.status != "ok"):
        why = "; ".join(f"device {each.index}: {each.reason or 'lost'}" for each in lost)
        return judge.warning(
            check, f"{node.endpoint} answers: {why or health.status}", "see that neuron's log"
        )
    loaded = sum(model.status == "loaded" for model in seen.snapshot.models)
    return judge.ok(check, f"{node.endpoint} answers, {loaded} models loaded")


def version(judge: Judge, who: str, told: str | None) -> Finding:
    """Whether *who* is of the same version as this command."""
    check = f"version {who}"
    if told == __version__:
        return judge.ok(check, f"{told}, as this command")
    return judge.warning(
        check,
        f"{who} is {told or 'of an unknown version'}, this command {__version__}",
        "install the same version everywhere; neurons first",
    )


def ready(judge: Judge, base: str, *, verify: bool = True) -> Finding:
    """What the role says of itself: whether tokens come."""
    heard = ask(f"{base}/readyz", seconds=READY_SECONDS, verify=verify)
    told = heard.body if isinstance(heard.body, dict) else {}
    if heard.good and told.get("ready") is True:
        return judge.ok("ready", "/readyz says so")
    why = told.get("reason") or heard.reason
    return judge.failed("ready", f"/readyz: {why}", "see its log: it names node and model")


def feasible(judge: Judge, catalogue: Catalogue, seen: tuple[Seen, ...]) -> Iterator[Finding]:
    """Whether each model of the catalogue could ever be loaded somewhere."""
    nodes = [each.snapshot for each in seen]
    for entry in catalogue.models.values():
        check = f"model {entry.id}"
        reasons = {node.name: infeasible(entry, node) for node in nodes}
        # Servers of another make load nothing: what they list is all that they have.
        listed = [n.name for n in nodes if not n.lifecycle and n.model(entry.id) is not None]
        unseen = [n.name for n in nodes if not n.lifecycle and not n.healthy]
        able = [name for name, reason in reasons.items() if reason is None]
        known = [node.name for node in nodes if node.discovery is not None and node.name in able]
        if known:
            yield judge.ok(check, f"fits on {', '.join(known)}")
        elif listed:
            yield judge.ok(check, f"is listed by {', '.join(listed)}")
        elif able or unseen:
            where = ", ".join(able or unseen)
            yield judge.warning(
                check, f"whether it fits is not known: {where}", "see what is said of these nodes"
            )
        else:
            told = "; ".join(reason for reason in reasons.values() if reason)
            yield judge.failed(
                check,
                f"can be loaded nowhere: {told or 'there are no neurons'}",
                "correct its entry in models.toml, or add a node",
            )


def hub(judge: Judge, config: NeuronConfig, environ: Mapping[str, str] = os.environ) -> Finding:
    """Whether models can be fetched, and the hub knows the token."""
    if config.offline or environ.get("HF_HUB_OFFLINE", "").upper() in TRUE:
        return judge.ok("hub", "offline: only what is in the cache is used")
    endpoint = (config.hub_endpoint or environ.get("HF_ENDPOINT") or HUB).rstrip("/")
    token = environ.get("HF_TOKEN", "").strip() or None
    heard = ask(f"{endpoint}{WHO}", token=token, proxied=True)
    if heard.status is None or heard.status >= 500:
        wanted = [each.model_id for each in config.default_models if _from_hub(each)]
        detail = f"{endpoint} is not reached: {heard.reason}"
        advice = "set https_proxy, hub_endpoint to a mirror, or offline = true"
        if wanted:
            return judge.failed("hub", f"{detail}; wanted for {', '.join(wanted)}", advice)
        return judge.warning("hub", detail, advice)
    if token is not None and heard.status in (401, 403):
        return judge.failed(
            "hub", f"{endpoint} refuses HF_TOKEN", "make a new one, with read rights"
        )
    known = "knows HF_TOKEN" if token is not None and heard.good else "is reached, without a token"
    return judge.ok("hub", f"{endpoint} {known}")


def _from_hub(model: object) -> bool:
    place = str(getattr(model, "source", None) or getattr(model, "model_id", ""))
    return place not in BUILT_IN and not is_local_path(place) and not Path(place).is_absolute()


def recognised(role: str, heard: Heard, told: Heard) -> str | None:
    """What holds a port, from its answers to /version and to what only this *role* has; None where
    that is no cortex."""
    if told.status == 401 and role == "neuron":
        return "a neuron that refuses this configuration's token"
    version = heard.body.get("version") if isinstance(heard.body, dict) else None
    if heard.good and told.good and isinstance(version, str):
        return f"a cortex {role} {version}, which answers"
    return None
