from __future__ import annotations

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from cortex.config.catalogue import Catalogue, CatalogueEntry
from cortex.config.gateway import NeuronNode
from cortex.errors import ModelNotFound, NoHealthyNode
from cortex.gateway.catalogue import ModelNames
from cortex.gateway.fleet import Fleet
from cortex.wire import neuron as wire

ENTRY = CatalogueEntry("Qwen/Qwen3-8B")
KNOWN = (ENTRY.id, "cortex/demo", "claude-sonnet")


def names(*, polled: bool = True) -> ModelNames:
    fleet = Fleet([NeuronNode("a", "http://a:1")], clock=lambda: 0.0)
    if polled:
        fleet.polled("a", [wire.Model("cortex/demo", wire.LOADED)], wire.Health(1.0), asked_at=0)
    return ModelNames(Catalogue((ENTRY,), {"claude-sonnet": ENTRY.id}), fleet)


def test_a_catalogue_model_is_known_whether_or_not_it_is_loaded():
    resolved = names().resolve("Qwen/Qwen3-8B")
    assert (resolved.model, resolved.entry) == (ENTRY.id, ENTRY)


def test_a_model_only_a_neuron_knows_is_known_without_an_entry():
    resolved = names().resolve("cortex/demo")
    assert (resolved.model, resolved.entry) == ("cortex/demo", None)


def test_an_alias_keeps_the_name_that_was_asked_for():
    resolved = names().resolve("claude-sonnet")
    assert (resolved.requested, resolved.model) == ("claude-sonnet", ENTRY.id)


@pytest.mark.parametrize("inner", KNOWN)
def test_a_model_goes_by_the_name_that_claude_code_offers_too(inner):
    resolved = names().resolve(f"claude-cortex-{inner}")
    assert resolved.requested == f"claude-cortex-{inner}"
    assert resolved.model == names().resolve(inner).model


def test_a_model_that_is_named_like_an_offered_one_keeps_its_name():
    entry = CatalogueEntry("claude-cortex-x")
    fleet = Fleet([])
    catalogue = Catalogue((entry, CatalogueEntry("x")))
    assert ModelNames(catalogue, fleet).resolve("claude-cortex-x").entry is entry


def test_an_offered_name_of_nothing_is_not_found():
    with pytest.raises(ModelNotFound) as caught:
        names().resolve("claude-cortex-nobody")
    assert "alias" not in caught.value.message


def test_near_names_are_told():
    with pytest.raises(ModelNotFound, match=r"similar names: Qwen/Qwen3-8B") as caught:
        names().resolve("qwen/qwen3-8b-instruct")
    assert caught.value.param == "model"
    with pytest.raises(ModelNotFound) as caught:
        names().resolve("zzzz")
    assert "similar" not in caught.value.message


@pytest.mark.parametrize(
    "name",
    [
        "../../etc/passwd",
        "..%2f..%2f",
        "/abs/path",
        "C:\\x",
        "a\x00b",
        "model;rm -rf",
        "${jndi}",
        "x" * 1_000_000,
        "hf://org/x",
        "http://host/x",
        "",
        "\x1b[31mred\r\nforged: header",
    ],
)
def test_a_hostile_name_is_an_unknown_model_and_is_not_echoed_raw(name):
    with pytest.raises(ModelNotFound) as caught:
        names().resolve(name)
    assert len(caught.value.message) < 400
    assert caught.value.message.isprintable()
    assert names().label(name) == "unknown"


@settings(max_examples=50, deadline=None)
@given(name=st.text(max_size=300).filter(lambda name: name not in KNOWN))
def test_any_other_text_is_not_found_in_printable_words(name):
    with pytest.raises(ModelNotFound) as caught:
        names().resolve(name)
    assert caught.value.message.isprintable()


def test_before_any_neuron_was_reached_an_unlisted_model_is_unknown_not_absent():
    with pytest.raises(NoHealthyNode) as caught:
        names(polled=False).resolve("cortex/demo")
    assert caught.value.retry_after
    with pytest.raises(ModelNotFound):
        names(polled=False).resolve("../../etc/passwd")
    assert names(polled=False).resolve(ENTRY.id).entry is ENTRY


def test_labels_are_resolved_ids():
    assert names().label("claude-sonnet") == ENTRY.id
    assert names().model_ids() == [ENTRY.id, "cortex/demo"]
