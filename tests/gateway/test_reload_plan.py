from __future__ import annotations

from pathlib import Path
from typing import Any

import attrs
import pytest

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import EvictionSettings, GatewayConfig, GatewaySettings, NeuronNode
from cortex.gateway.reload_plan import (
    LIVE_GATEWAY,
    Configuration,
    Drain,
    Resident,
    SettingChange,
    in_force,
    make_plan,
)
from cortex.wire import json

A, B = NeuronNode("a", "http://a"), NeuronNode("b", "http://b", token="s3cret")
ENTRY = CatalogueEntry("m", quant="q8_0", vram_mb=100)
OURS = Resident("a", "m", ours=True)


def configuration(
    *models: CatalogueEntry,
    nodes: tuple[NeuronNode, ...] = (A,),
    aliases: dict[str, str] | None = None,
    **settings: Any,
) -> Configuration:
    config = GatewayConfig(GatewaySettings(**settings), neurons=nodes)
    return Configuration(config, Catalogue(models, aliases or {}))


def test_the_same_files_change_nothing():
    before = configuration(ENTRY, aliases={"x": "m"})
    plan = make_plan(before, configuration(ENTRY, aliases={"x": "m"}), [OURS])
    assert plan.empty
    assert plan.keep == (OURS,)


def test_what_came_went_and_changed_is_told():
    other = CatalogueEntry("n")
    before = configuration(ENTRY, other, nodes=(A, B), aliases={"x": "m", "y": "m"})
    moved = attrs.evolve(A, endpoint="http://elsewhere")
    new = NeuronNode("c", "http://c")
    after = configuration(ENTRY, other, nodes=(moved, new), aliases={"x": "n", "z": "m"})
    after = attrs.evolve(
        after, catalogue=Catalogue((ENTRY, CatalogueEntry("o")), {"x": "o", "z": "m"})
    )
    plan = make_plan(before, after, [])
    assert not plan.empty
    assert (plan.nodes.added, plan.nodes.removed, plan.nodes.changed) == (("c",), ("b",), ("a",))
    assert (plan.models.added, plan.models.removed, plan.models.changed) == (("o",), ("n",), ())
    aliases = plan.aliases
    assert (aliases.added, aliases.removed, aliases.changed) == (("z",), ("y",), ("x",))
    assert "s3cret" not in str(plan.body())
    assert json.loads(json.dumps(plan.body())) == plan.body()


def test_settings_that_need_a_restart_are_told_as_such_and_stay():
    before = configuration()
    after = configuration(listen="127.0.0.1:9", queue_depth=3)
    plan = make_plan(before, after, [])
    assert plan.settings == (
        SettingChange("gateway.listen", "127.0.0.1:31313", "127.0.0.1:9", live=False),
        SettingChange("gateway.queue_depth", 256, 3, live=True),
    )
    assert plan.restart == ("gateway.listen",)
    running = in_force(before.config, after.config)
    assert (running.gateway.listen, running.gateway.queue_depth) == ("127.0.0.1:31313", 3)
    again = make_plan(Configuration(running, before.catalogue), after, [])
    assert again.restart == ("gateway.listen",)


def test_a_certificate_may_change_but_not_come_or_go():
    paths = {"tls_certificate": Path("c"), "tls_key": Path("k")}
    plain, secure, other = (
        configuration(),
        configuration(**paths),
        configuration(**{**paths, "tls_key": Path("l")}),
    )
    (change,) = make_plan(secure, other, []).settings
    assert change == SettingChange("gateway.tls_key", Path("k"), Path("l"), live=True)
    assert in_force(secure.config, other.config) == other.config
    for before, after in ((plain, secure), (secure, plain)):
        assert set(make_plan(before, after, []).restart) == {f"gateway.{key}" for key in paths}
        assert in_force(before.config, after.config) == before.config


def test_every_live_key_is_one_of_the_gateways():
    assert {field.name for field in attrs.fields(GatewaySettings)} >= LIVE_GATEWAY


def test_eviction_settings_are_live_as_a_whole():
    changed = attrs.evolve(configuration().config, eviction=EvictionSettings(keep_alive=1.0))
    plan = make_plan(configuration(), Configuration(changed, Catalogue()), [])
    assert plan.settings == (SettingChange("eviction.keep_alive", 1800.0, 1.0, live=True),)
    assert in_force(configuration().config, changed).eviction.keep_alive == 1.0


def test_where_a_file_lies_is_no_setting():
    before = configuration()
    after = attrs.evolve(
        before, config=attrs.evolve(before.config, source=Path("x"), warnings=("careful",))
    )
    plan = make_plan(before, after, [])
    assert plan.empty
    assert plan.warnings == ("careful",)


@pytest.mark.parametrize(
    ("after", "expected"),
    [
        (None, ("the catalogue has it no more", False)),
        (attrs.evolve(ENTRY, quant="q4_k_m"), ("quant changed", True)),
        (attrs.evolve(ENTRY, source="x/y", context=5), ("source, context changed", True)),
        (attrs.evolve(ENTRY, pinned_on=("b",)), ("pinned_on names other nodes", False)),
        (attrs.evolve(ENTRY, pinned_on=("a",)), None),
        (attrs.evolve(ENTRY, vram_mb=7, keep_alive=9.0), None),
    ],
)
def test_a_resident_is_drained_when_it_cannot_stay_as_it_is(after, expected):
    changed = configuration(*([after] if after is not None else []), nodes=(A, B))
    plan = make_plan(configuration(ENTRY, nodes=(A, B)), changed, [OURS])
    if expected is None:
        assert (plan.keep, plan.drain) == ((OURS,), ())
    else:
        why, reload = expected
        assert (plan.keep, plan.drain) == ((), (Drain("a", "m", why, reload),))
        load = [{"node": "a", "model": "m"}] if reload else []
        assert plan.body()["models"]["load"] == load


def test_what_this_gateway_has_not_loaded_stays():
    theirs = Resident("a", "m", ours=False)
    plan = make_plan(configuration(ENTRY), configuration(), [theirs])
    assert (plan.keep, plan.drain) == ((theirs,), ())
    unlisted = Resident("a", "other", ours=True)
    assert make_plan(configuration(), configuration(), [unlisted]).keep == (unlisted,)


def test_a_removed_node_keeps_what_it_holds():
    plan = make_plan(configuration(ENTRY, nodes=(A, B)), configuration(nodes=(B,)), [OURS])
    assert (plan.keep, plan.drain) == ((), ())
    assert plan.body()["nodes"]["drain"] == ["a"]
