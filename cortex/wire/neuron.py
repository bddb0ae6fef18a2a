"""The neuron's management API: the only acquaintance of gateway and neuron.

Key names are the original's (`reference/original.md` 4); additions only. A measurement that is not
known is None and is left out of the JSON: unknown is not zero. Sizes ending in ``_mb`` are MiB.
Readers ignore unknown fields, so that the two ends may be of different versions.
"""

from __future__ import annotations

from typing import Any

import attrs

from cortex.wire import limits
from cortex.wire.converter import FieldError

# Request headers by which a gateway names its caller to a neuron. A gateway strips what clients
# send under these names.
CALLER_HEADER = "x-cortex-caller"
SALT_HEADER = "x-cortex-salt"
PRIORITY_HEADER = "x-cortex-priority"

LOADED = "loaded"
LOADING = "loading"
UNLOADING = "unloading"
RECOVERING = "recovering"
FAILED = "failed"
MODEL_ID = r"[A-Za-z0-9][A-Za-z0-9._:@/+-]{0,199}"


@attrs.frozen
class Device:
    index: int
    name: str
    kind: str = "cuda"  # cuda or cpu
    vram_total_mb: int | None = None
    compute_capability: str | None = None


@attrs.frozen
class Discovery:
    hostname: str
    os: str
    kernel: str
    devices: tuple[Device, ...] = ()
    harnesses: tuple[str, ...] = ("torch",)
    cuda_version: str | None = None
    driver_version: str | None = None
    cuda_unavailable_reason: str | None = None
    version: str | None = None
    architectures: tuple[str, ...] = ()


@attrs.frozen
class DeviceHealth:
    index: int
    vram_used_mb: int | None = None
    vram_free_mb: int | None = None
    utilization_pct: int | None = None
    temp_c: int | None = None
    ok: bool = True
    reason: str | None = None


@attrs.frozen
class FailedModel:
    model_id: str
    error: str


@attrs.frozen
class Activation:
    state: str = "ready"  # pre_warming or ready
    pending: tuple[str, ...] = ()
    in_progress: str | None = None
    completed: tuple[str, ...] = ()
    failed: tuple[FailedModel, ...] = ()


@attrs.frozen
class ModelLoad:
    """What a loaded model is busy with."""

    id: str
    in_flight: int = 0
    queue_depth: int = 0
    max_in_flight: int | None = None
    max_queue_depth: int | None = None
    rejected_queue_full: int = 0
    kv_blocks_total: int | None = None
    kv_blocks_used: int | None = None
    tok_s_prefill: float | None = None
    tok_s_decode: float | None = None


@attrs.frozen
class Health:
    uptime_secs: float
    status: str = "ok"  # ok, recovering, draining
    devices: tuple[DeviceHealth, ...] = ()
    activation: Activation = attrs.field(factory=Activation)
    models: tuple[ModelLoad, ...] = ()


@attrs.frozen
class Progress:
    """How far a load is. ``stage`` is resolve, download, weights, cache or warm-up."""

    stage: str
    bytes_done: int = 0
    bytes_total: int | None = None
    eta_seconds: float | None = None


@attrs.frozen
class Limit:
    """Tokens: ``context`` holds prompt and completion together."""

    context: int
    input: int | None = None
    output: int | None = None


@attrs.frozen
class Servable:
    ok: bool
    reason: str | None = None
    detail: str | None = None


@attrs.frozen
class Model:
    id: str
    status: str
    harness: str = "torch"
    devices: tuple[int, ...] = ()
    vram_used_mb: int | None = None
    source: str | None = None
    quant: str | None = None
    dtype: str | None = None
    architecture: str | None = None
    capabilities: tuple[str, ...] | None = None
    limit: Limit | None = None
    tool_call: bool | None = None
    tool_format: str | None = None
    reasoning: bool | None = None
    progress: Progress | None = None
    servable: Servable | None = None
    error: str | None = None
    loaded_at: float | None = None  # Unix seconds


def _devices(_: Any, field: attrs.Attribute[Any], value: Any) -> None:
    if value is not None and (len(set(value)) != len(value) or any(i < 0 for i in value)):
        raise FieldError("must be distinct device indices", field.name)


@attrs.frozen
class LoadRequest:
    model_id: str = attrs.field(validator=limits.matching(MODEL_ID))
    source: str | None = attrs.field(default=None, validator=limits.at_most(1024))
    harness: str | None = None
    quant: str | None = attrs.field(default=None, validator=limits.at_most(32))
    dtype: str | None = attrs.field(default=None, validator=limits.one_of("float32", "bfloat16"))
    context: int | None = attrs.field(default=None, validator=limits.at_least(1))
    devices: tuple[int, ...] | None = attrs.field(default=None, validator=_devices)
    tensor_parallel: int | None = attrs.field(default=None, validator=limits.at_least(1, 1024))
    # How the model writes tool calls, by name; else its chat template tells.
    tool_format: str | None = attrs.field(default=None, validator=limits.at_most(64))


@attrs.frozen
class LoadAnswer:
    status: str  # loaded, or loading for ?wait=false
    model: Model | None = None


@attrs.frozen
class UnloadRequest:
    model_id: str


@attrs.frozen
class UnloadAnswer:
    status: str = "unloaded"


@attrs.frozen
class RestartAnswer:
    status: str = "restarting"


# What becomes of a pull.
WAITING = "waiting"
PULLING = "pulling"
PULLED = "pulled"
CANCELLED = "cancelled"  # or FAILED


@attrs.frozen
class PullRequest:
    """Fetch a model's files before they are needed; ``verify`` hashes those that are there."""

    model_id: str = attrs.field(validator=limits.matching(MODEL_ID))
    source: str | None = attrs.field(default=None, validator=limits.at_most(1024))
    quant: str | None = attrs.field(default=None, validator=limits.at_most(32))
    verify: bool = False


@attrs.frozen
class Pull:
    """How far a pull is, or how it ended. ``stage`` is resolve, verify or download; ``fetched`` are
    the bytes of files that were not there before, ``repaired`` the files that had been damaged."""

    id: str
    status: str
    source: str | None = None
    quant: str | None = None
    stage: str | None = None
    bytes_done: int | None = None
    bytes_total: int | None = None
    bytes_per_second: float | None = None
    eta_seconds: float | None = None
    seconds: float | None = None  # since it began, or that it took
    path: str | None = None
    commit: str | None = None
    size: int | None = None
    fetched: int | None = None
    repaired: tuple[str, ...] | None = None
    offline: bool | None = None  # True: as the cache had it, with the hub out of reach
    error: str | None = None
    code: str | None = None  # of the error


@attrs.frozen
class CancelPull:
    model_id: str


@attrs.frozen
class Pulls:
    pulls: tuple[Pull, ...] = ()


@attrs.frozen
class Estimate:
    """What loading a model would take, from headers and tokenizer files alone. Bytes."""

    model_id: str
    rows: dict[str, int]
    total_bytes: int
    context: int
    trained_context: int
    kv_bytes_per_token: int
    architecture: str | None = None
    dtype: str | None = None
    capabilities: tuple[str, ...] | None = None
    tool_call: bool | None = None
    reasoning: bool | None = None
    parameters: int | None = None
    quant: str | None = None


@attrs.frozen
class Version:
    version: str
    commit: str | None = None
    flavour: str | None = None
    python: str | None = None
    torch: str | None = None


@attrs.frozen
class Endpoint:
    url: str


@attrs.frozen
class Capabilities:
    capabilities: tuple[str, ...]


@attrs.frozen
class Timings:
    """Milliseconds a request spent, as the neuron measured them."""

    queue_ms: float
    prefill_ms: float
    decode_ms: float
    prompt_tokens: int
    cached_tokens: int
    completion_tokens: int
