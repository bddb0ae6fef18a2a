"""For each alert: series under which it fires, and such as are close to it and let it be.

Values are promtool's: ``0+1x9`` is 0, 1, ... 9, one a minute; ``_`` is a sample that is missing.
"""

from __future__ import annotations

import attrs

Series = dict[str, str]

DAY = 86400


@attrs.frozen
class Case:
    """``fires`` at minute ``at``, with labels among which are ``labels``; ``silent`` never does."""

    fires: Series
    silent: Series
    labels: dict[str, str]
    at: int = 20


def _faults(failing: str) -> Series:
    return {
        'cortex_requests_total{model="m",node="a",code="200"}': "0+60x60",
        'cortex_requests_total{model="m",node="a",code="502"}': failing,
        'cortex_request_errors_total{model="m",node="a",reason="upstream_error"}': failing,
    }


def _first_tokens(rate: int, quick: int, minutes: int) -> Series:
    family, labels = "cortex_time_to_first_token_seconds", 'model="m",node="a"'
    return {
        f'{family}_bucket{{{labels},le="5.0"}}': f"0+{quick}x{minutes}",
        f'{family}_bucket{{{labels},le="+Inf"}}': f"0+{rate}x{minutes}",
        f"{family}_count{{{labels}}}": f"0+{rate}x{minutes}",
    }


def _disk(kind: str, family: str, free: int) -> Series:
    labels = f'{{job="cortex-{family}",instance="i",path_kind="{kind}"}}'
    prefix = "cortex" if family == "gateway" else "neuron"
    return {
        f"{prefix}_disk_free_bytes{labels}": f"{free}x60",
        f"{prefix}_disk_size_bytes{labels}": "1000x60",
    }


def _descriptors(used: int) -> Series:
    labels = '{job="cortex-gateway",instance="g"}'
    return {
        f"process_open_fds{labels}": f"{used}x60",
        f"process_max_fds{labels}": "1000x60",
    }


def _certificate(days: int) -> Series:
    """promtool's clock begins at 0."""
    name = 'cortex_tls_certificate_expiry_timestamp_seconds{instance="g"}'
    return {name: f"{days * DAY}x60"}


def _kv(usage: str, preemptions: str) -> Series:
    labels = '{model="m",node="a"}'
    return {
        f"neuron_kv_cache_usage_ratio{labels}": usage,
        f"neuron_preemptions_total{labels}": preemptions,
    }


_UP = 'up{job="cortex-gateway",instance="g"}'
_REFUSED = 'cortex_config_reloads_total{instance="g",result="refused"}'
_WRITES = 'cortex_usage_write_failures_total{instance="g",place="database"}'
_WAITING = 'cortex_queue_waiting{instance="g",model="m"}'
_REFUSALS = 'cortex_request_errors_total{model="m",node="a",reason="overloaded"}'
_COLD = 'cortex_cold_starts_total{model="m",node="a"}'
_ROOM = 'cortex_evictions_total{model="m",node="a",reason="room"}'
_IDLE = 'cortex_evictions_total{model="m",node="a",reason="idle"}'
_LOADS = 'cortex_model_load_failures_total{model="m",node="a"}'
_ENGINE = 'neuron_engine_restarts_total{model="m",node="a"}'
_SHORT = 'neuron_out_of_memory_steps_total{model="m",node="a"}'
_WRONG = 'neuron_memory_estimate_error_ratio{model="m",node="a"}'
_STARTS = 'process_start_time_seconds{job="cortex-neuron",instance="n"}'
_CIRCUIT = 'cortex_circuit_open{instance="g",node="a"}'

CASES = {
    "CortexGatewayDown": Case({_UP: "1x9 0x30"}, {_UP: "1x18 0 1x20"}, {"instance": "g"}),
    "CortexRestarting": Case(
        {_STARTS: "1x5 2x3 3x3 4x30"}, {_STARTS: "1x5 2x5 3x30"}, {"instance": "n"}
    ),
    "CortexConfigReloadRefused": Case(
        {_REFUSED: "0x14 1x30"},
        {_REFUSED: "1x60", 'cortex_config_reloads_total{result="applied"}': "0+1x60"},
        {"instance": "g"},
    ),
    "CortexUsageNotWritten": Case(
        {_WRITES: "0x5 1+1x30"}, {_WRITES: "0x18 1x30"}, {"place": "database"}
    ),
    "CortexUsageLost": Case(
        {'cortex_usage_lost_requests_total{instance="g"}': "0x9 3x30"},
        {'cortex_usage_lost_requests_total{instance="g"}': "3x60"},
        {"instance": "g"},
    ),
    "CortexCertificateExpires": Case(_certificate(13), _certificate(15), {"instance": "g"}),
    "CortexCertificateExpiresNow": Case(_certificate(1), _certificate(3), {"instance": "g"}),
    "CortexDescriptorsLow": Case(_descriptors(900), _descriptors(700), {"instance": "g"}),
    "CortexDiskLow": Case(
        _disk("state", "gateway", 90) | _disk("models", "neuron", 900),
        _disk("state", "gateway", 110) | _disk("models", "neuron", 900),
        {"job": "cortex-gateway", "path_kind": "state"},
    ),
    "CortexDiskFull": Case(
        _disk("models", "neuron", 10),
        _disk("models", "neuron", 90),
        {"job": "cortex-neuron", "path_kind": "models"},
    ),
    "CortexNoNode": Case(
        {f'cortex_neuron_up{{instance="g",node="{node}"}}': "0x60" for node in "ab"},
        {
            'cortex_neuron_up{instance="g",node="a"}': "0x60",
            'cortex_neuron_up{instance="g",node="b"}': "1x60",
        },
        {"instance": "g"},
    ),
    "CortexNodeDown": Case(
        {'cortex_neuron_up{instance="g",node="a"}': "1x9 0x30"},
        {'cortex_neuron_up{instance="g",node="a"}': "1x18 0 1x30"},
        {"node": "a"},
    ),
    "CortexNeuronNotScraped": Case(
        {'up{job="cortex-neuron",instance="n",node="a"}': "1x9 0x30"},
        {'up{job="cortex-neuron",instance="n",node="a"}': "1x16 0x2 1x30"},
        {"node": "a"},
    ),
    "CortexCircuitOpen": Case({_CIRCUIT: "0x9 1x30"}, {_CIRCUIT: "0x17 1x2 0x30"}, {"node": "a"}),
    "CortexFaults": Case(_faults("0+6x60"), _faults("0+2x60"), {"model": "m"}),
    "CortexFirstTokenBudgetFast": Case(
        _first_tokens(rate=10, quick=2, minutes=90),
        _first_tokens(rate=10, quick=4, minutes=90),
        {"model": "m"},
        at=70,
    ),
    "CortexFirstTokenBudgetSlow": Case(
        _first_tokens(rate=10, quick=6, minutes=400),
        _first_tokens(rate=10, quick=8, minutes=400),
        {"model": "m"},
        at=380,
    ),
    "CortexQueueGrows": Case({_WAITING: "1+2x60"}, {_WAITING: "30x60"}, {"model": "m"}),
    "CortexOverloaded": Case({_REFUSALS: "0+1x60"}, {_REFUSALS: "0x16 3x40"}, {"model": "m"}),
    "CortexModelFlaps": Case({_COLD: "0x2 0+1x60"}, {_COLD: "0x4 1x4 2x4 3x60"}, {"model": "m"}),
    "CortexModelsDisplaceEachOther": Case(
        {_ROOM: "0+1x60"}, {_IDLE: "0+1x60", _ROOM: "0x4 4x60"}, {"node": "a"}
    ),
    "CortexLoadsFail": Case(
        {_LOADS: "0x9 1x2 2x2 4x60"}, {_LOADS: "0x14 1x60"}, {"model": "m", "node": "a"}
    ),
    "CortexDeviceLost": Case(
        {'neuron_device_up{device="1",node="a"}': "1x9 0x30"},
        {'neuron_device_up{device="1",node="a"}': "1x18 0 1x30"},
        {"device": "1", "node": "a"},
    ),
    "CortexDeviceFaulted": Case(
        {'neuron_recoveries_total{node="a"}': "0x9 1x30"},
        {'neuron_recoveries_total{node="a"}': "2x9 0x30"},
        {"node": "a"},
    ),
    "CortexDeviceHot": Case(
        {'neuron_device_temperature_celsius{device="0",node="a"}': "90x60"},
        {'neuron_device_temperature_celsius{device="0",node="a"}': "85x60"},
        {"device": "0"},
    ),
    "CortexEngineRestarted": Case({_ENGINE: "_x29 1x60"}, {_ENGINE: "1x90"}, {"model": "m"}, at=45),
    "CortexOutOfMemorySteps": Case({_SHORT: "0x9 2x60"}, {_SHORT: "7x60"}, {"model": "m"}),
    "CortexKvCacheShort": Case(
        _kv("0.99x60", "0+3x60"), _kv("0.99x60", "0x60"), {"model": "m", "node": "a"}
    ),
    "CortexMemoryEstimateWrong": Case(
        {_WRONG: "-0.3x60"}, {_WRONG: "-0.1x60"}, {"model": "m", "node": "a"}
    ),
}
# The engine's first failure is one that `increase` does not see; what it sees later counts too.
AGAIN = Case({_ENGINE: "1x99 2x60"}, {_ENGINE: "1x160"}, {"model": "m"}, at=110)
