"""reload against a scripted gateway."""

import json

PLAN = {
    "settings": [
        {"key": "gateway.queue_depth", "before": 256, "after": 9, "needs_restart": False},
        {"key": "gateway.listen", "before": "a:1", "after": "b:1", "needs_restart": True},
    ],
    "nodes": {"added": ["c"], "removed": ["b"], "changed": [], "kept": ["a"], "drain": ["b"]},
    "models": {
        "added": ["org/n"],
        "removed": ["org/m"],
        "changed": ["org/o"],
        "keep": [],
        "drain": [
            {"node": "a", "model": "org/m", "why": "the catalogue has it no more"},
            {"node": "a", "model": "org/o", "why": "quant changed"},
        ],
        "load": [{"node": "a", "model": "org/o"}],
    },
    "aliases": {"added": [], "removed": ["x"], "changed": ["y", "z"]},
    "needs_restart": ["gateway.listen"],
    "warnings": ["careful"],
}


def test_the_plan_is_told_a_line_each(invoke, server):
    server.on("POST", "/fleet/reload", {"status": "reloaded", "plan": PLAN})
    result = invoke("reload", "--url", server.url)
    assert result.exit_code == 0
    assert result.stdout.splitlines() == [
        "gateway.queue_depth: 256 -> 9",
        "gateway.listen: a:1 -> b:1 (needs a restart)",
        "nodes added: c",
        "nodes drained: b",
        "models added: org/n",
        "models changed: org/o",
        "models removed: org/m",
        "aliases changed: y, z",
        "aliases removed: x",
        "org/m on a: drained (the catalogue has it no more)",
        "org/o on a: drained, then loaded again (quant changed)",
    ]
    assert result.stderr == "warning: careful\n"


def test_a_dry_run_asks_for_the_plan_alone(invoke, server):
    server.on("POST", "/fleet/reload?dry_run=true", {"status": "planned", "plan": {}})
    result = invoke("reload", "--dry-run", "--url", server.url)
    assert result.stdout == "nothing changes\n"
    shown = invoke("reload", "--dry-run", "--json", "--url", server.url).stdout
    assert json.loads(shown) == {"status": "planned", "plan": {}}


def test_a_file_that_is_wrong_is_named_and_ends_with_1(invoke, server):
    error = {"error": {"message": "/etc/models.toml: models[0].id: required key is missing"}}
    server.on("POST", "/fleet/reload", (422, error))
    result = invoke("reload", "--url", server.url)
    assert result.exit_code == 1
    assert result.stderr == f"cortex: {error['error']['message']}\n"
