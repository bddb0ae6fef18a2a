"""What the routes about the fleet answer, as JSON Schemas for the API's reference."""

from __future__ import annotations

from cortex.wire.reference.openai_answers import LOADING, PROGRESS, PROOF
from cortex.wire.reference.schema import (
    ANYTHING,
    BOOLEAN,
    INTEGER,
    NUMBER,
    STRING,
    Schema,
    array,
    described,
    mapping,
    nullable,
    one_of,
    record,
    ref,
)

_PIN = record({"model": STRING, "node?": STRING})
_DEVICE = record(
    {
        "index": INTEGER,
        "name": STRING,
        "kind": STRING,
        "vram_total_mb?": INTEGER,
        "vram_used_mb?": INTEGER,
        "vram_free_mb?": INTEGER,
        "utilization_pct?": INTEGER,
        "temp_c?": INTEGER,
        "ok?": BOOLEAN,
        "reason?": STRING,
    }
)
_MODEL = record(
    {
        "id": STRING,
        "status": STRING,
        "devices": array(INTEGER),
        "vram_used_mb?": INTEGER,
        "quant?": STRING,
        "dtype?": STRING,
        "context?": INTEGER,
        "in_flight": INTEGER,
        "max_in_flight?": INTEGER,
        "queue_depth?": INTEGER,
        "tok_s_prefill?": NUMBER,
        "tok_s_decode?": NUMBER,
        "pinned": BOOLEAN,
        "expires_in?": described(NUMBER, "seconds"),
        "progress?": PROGRESS,
        "loading?": LOADING,
        "error?": STRING,
    }
)
_NODE = record(
    {
        "name": STRING,
        "endpoint": STRING,
        "kind": one_of("cortex", "openai"),
        "healthy": BOOLEAN,
        "status": STRING,
        "error": nullable(STRING),
        "circuit": STRING,
        "version": nullable(STRING),
        "devices": array(_DEVICE),
        "models": array(_MODEL),
    }
)
_LISTS = {"added": array(STRING), "removed": array(STRING), "changed": array(STRING)}
_PLACE = record({"node": STRING, "model": STRING})
_PLAN = record(
    {
        "settings": array(
            record(
                {
                    "key": STRING,
                    "before": ANYTHING,
                    "after": ANYTHING,
                    "needs_restart": BOOLEAN,
                }
            )
        ),
        "nodes": record({**_LISTS, "drain": array(STRING)}),
        "models": record(
            {
                **_LISTS,
                "keep": array(_PLACE),
                "drain": array(record({"node": STRING, "model": STRING, "why": STRING})),
                "load": array(_PLACE),
            }
        ),
        "aliases": record(_LISTS),
        "needs_restart": array(STRING),
        "warnings": array(STRING),
    }
)

FLEET_ANSWERS: dict[str, Schema] = {
    "FleetHealth": record(
        {
            "status": one_of("ok", "degraded"),
            "nodes": record({"healthy": INTEGER, "total": INTEGER, "impaired": INTEGER}),
            "unservable": array(
                record({"node": STRING, "model": STRING, "reason?": STRING, "detail?": STRING})
            ),
        }
    ),
    "GatewayVersion": record({"version": STRING, "commit": nullable(STRING), "flavour": STRING}),
    "GatewayReadiness": record(
        {
            "ready": BOOLEAN,
            "nodes": record({"healthy": INTEGER, "total": INTEGER}),
            "token?": PROOF,
            "reason?": STRING,
        }
    ),
    "Fleet": record(
        {"nodes": array(_NODE), "waiting": mapping(INTEGER), "pins": array(_PIN)},
        "What is not known is left out.",
    ),
    "FleetPulls": record(
        {"pulls": array({"allOf": [record({"node": STRING}), ref("Pull")]})},
    ),
    "CancelledAnswer": record({"status": one_of("cancelled"), "nodes": array(STRING)}),
    "FleetEvent": {
        **record({"kind": STRING, "at?": NUMBER, "node?": STRING, "model?": STRING}),
        "additionalProperties": True,
    },
    "ReloadAnswer": record({"status": one_of("planned", "reloaded"), "plan": _PLAN}),
    "LoadedAnswer": record({"status": one_of("loaded"), "node": STRING}),
    "UnloadedAnswer": record({"status": one_of("unloaded"), "nodes": array(STRING)}),
    "PinnedAnswer": record({"status": one_of("pinned"), "model": STRING, "node": nullable(STRING)}),
    "UnpinnedAnswer": record(
        {"status": one_of("unpinned"), "model": STRING, "nodes": array(STRING)}
    ),
}
