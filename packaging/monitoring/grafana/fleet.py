"""The fleet as its gateways see it."""

from __future__ import annotations

from layout import (
    BYTES,
    CELSIUS,
    COUNT,
    MEBIBYTES,
    PERCENT,
    RATIO,
    REQUESTS,
    SECONDS,
    TOKENS,
    Json,
    Panel,
    Query,
    Row,
    Variable,
    dashboard,
    quantiles,
    rate,
    stat,
    table,
)

BOTH = 'model=~"$model", node=~"$node"'
NODE = 'node=~"$node"'
MODEL = 'model=~"$model"'
FAULTS = (
    "draining|error|insufficient_disk|insufficient_memory|internal_error|load_failed"
    "|no_feasible_node|overloaded"
    "|service_unavailable|source_unavailable|upstream_error"
)

GLANCE = (
    Row("At a glance"),
    stat(
        "Nodes up",
        "Nodes that answer polls, of all that are configured.",
        RATIO,
        f"sum(cortex_neuron_up{{{NODE}}}) / count(cortex_neuron_up{{{NODE}}})",
        limits=(0.5, 1),
        low_is_bad=True,
    ),
    stat(
        "Requests",
        "Requests that ended, a second, whatever their end.",
        REQUESTS,
        f"sum(rate(cortex_requests_total{{{BOTH}}}[$__rate_interval]))",
    ),
    stat(
        "Faults",
        "Share of requests whose error is not the caller's.",
        RATIO,
        f'sum(rate(cortex_request_errors_total{{{BOTH}, reason=~"{FAULTS}"}}[$__rate_interval]))'
        f" / sum(rate(cortex_requests_total{{{BOTH}}}[$__rate_interval]))",
        limits=(0.01, 0.05),
    ),
    stat(
        "First token, p95",
        "95 % of the streams have their first token within this time. The objective is 5 seconds.",
        SECONDS,
        "histogram_quantile(0.95, sum by (le) "
        f"(rate(cortex_time_to_first_token_seconds_bucket{{{BOTH}}}[$__rate_interval])))",
        limits=(2, 5),
    ),
    stat(
        "Completion tokens",
        "Tokens that the fleet writes.",
        TOKENS,
        f"sum(rate(cortex_completion_tokens_total{{{BOTH}}}[$__rate_interval]))",
    ),
    stat(
        "Waiting",
        "Requests that wait in the gateways.",
        COUNT,
        f"sum(cortex_queue_waiting{{{MODEL}}})",
        limits=(8, 64),
    ),
)

CAPACITY = (
    Row("Capacity and saturation"),
    Panel(
        "Saturation",
        "Requests that the replicas of a model work on, of those they take at a time. At 100 % "
        "requests wait.",
        PERCENT,
        (
            Query(
                f"100 * sum by (model) (cortex_model_in_flight{{{BOTH}}})"
                f" / clamp_min(sum by (model) (cortex_model_max_in_flight{{{BOTH}}}), 1)",
                "{{model}}",
            ),
        ),
        limits=(80, 100),
    ),
    Panel(
        "In flight, and the ceiling",
        "Requests that a node works on, and how many it takes at a time.",
        COUNT,
        (
            Query(f"sum by (node) (cortex_model_in_flight{{{BOTH}}})", "{{node}}"),
            Query(f"sum by (node) (cortex_model_max_in_flight{{{BOTH}}})", "{{node}} ceiling"),
        ),
    ),
    Panel(
        "Queue",
        "Requests that wait, in the gateways and at the nodes. A line that only rises is a fleet "
        "that is too small.",
        COUNT,
        (
            Query(f"sum by (model) (cortex_queue_waiting{{{MODEL}}})", "{{model}} at the gateway"),
            Query(f"sum by (model) (cortex_model_queue_depth{{{BOTH}}})", "{{model}} at nodes"),
        ),
    ),
)

TRAFFIC = (
    Row("Traffic and errors"),
    Panel(
        "Requests by status",
        "The status that the client got; 499 for one that left.",
        REQUESTS,
        (rate("cortex_requests_total", BOTH, "code"),),
        stacked=True,
    ),
    Panel(
        "Errors by reason",
        "By error code. Codes of 4xx are the caller's, overloaded excepted.",
        REQUESTS,
        (rate("cortex_request_errors_total", BOTH, "reason"),),
        stacked=True,
    ),
    Panel(
        "Clients that left, and retries",
        "Clients that closed their connection before the end, and requests that a node did not "
        "take, which then went to another.",
        REQUESTS,
        (
            rate("cortex_client_disconnects_total", BOTH, "model", "{{model}} left"),
            rate("cortex_upstream_retries_total", BOTH, "node", "{{node}} refused"),
        ),
    ),
)

SPEED = (
    Row("Speed"),
    Panel(
        "First token",
        "From a request's head to its first token, of streams: the median, and what 95 % stay "
        "below.",
        SECONDS,
        quantiles("cortex_time_to_first_token_seconds", BOTH, "model", 0.5, 0.95),
        limits=(5,),
    ),
    Panel(
        "Tokens",
        "Tokens a second: prompts (with what was found in a cache), and completions.",
        TOKENS,
        (
            rate("cortex_prompt_tokens_total", BOTH, "model", "{{model}} prompt"),
            rate("cortex_completion_tokens_total", BOTH, "model", "{{model}} completion"),
        ),
    ),
    Panel(
        "Prefill and decode of replicas",
        "Tokens a second of the last requests, as each node measures it: prefill of prompts, and "
        "decoding.",
        TOKENS,
        (
            Query(f"cortex_model_tok_s_prefill{{{BOTH}}}", "{{model}} {{node}} prefill"),
            Query(f"cortex_model_tok_s_decode{{{BOTH}}}", "{{model}} {{node}} decode"),
        ),
    ),
)

MODELS = (
    Row("Models: loads and evictions"),
    Panel(
        "Cold loads",
        "Loads because of a request, a minute.",
        COUNT,
        (
            Query(
                f"60 * sum by (model) (rate(cortex_cold_starts_total{{{BOTH}}}[$__rate_interval]))",
                "{{model}}",
            ),
        ),
        width=6,
    ),
    Panel(
        "Evictions",
        "Models that the gateway unloaded, a minute: for room, in a hand-over, because nobody "
        "asked (idle), or by a reload.",
        COUNT,
        (
            Query(
                "60 * sum by (model, reason) "
                f"(rate(cortex_evictions_total{{{BOTH}}}[$__rate_interval]))",
                "{{model}} {{reason}}",
            ),
        ),
        width=6,
    ),
    Panel(
        "Time of loads",
        "From the order to loaded: the median, and what 95 % stay below.",
        SECONDS,
        quantiles("cortex_model_load_seconds", BOTH, "model", 0.5, 0.95),
        width=6,
    ),
    Panel(
        "Loads that failed",
        "A minute, by node.",
        COUNT,
        (
            Query(
                "60 * sum by (model, node) "
                f"(rate(cortex_model_load_failures_total{{{BOTH}}}[$__rate_interval]))",
                "{{model}} {{node}}",
            ),
        ),
        width=6,
    ),
    table(
        "Models and their status",
        "What each node has, and how it is.",
        f"sum by (model, node, status) (cortex_model_status{{{BOTH}}}) == 1",
    ),
    Panel(
        "Tokens by key",
        "Tokens charged to a key, a second.",
        TOKENS,
        (rate("cortex_spend_tokens_total", MODEL, "key, kind"),),
        width=12,
        stacked=True,
    ),
)

NODES = (
    Row("Nodes"),
    Panel(
        "Up",
        "1 while a node answers polls.",
        COUNT,
        (Query(f"cortex_neuron_up{{{NODE}}}", "{{node}}"),),
        width=6,
        most=1,
    ),
    Panel(
        "Circuit open",
        "1 while a node gets no requests because they fail there.",
        COUNT,
        (Query(f"cortex_circuit_open{{{NODE}}}", "{{node}}"),),
        width=6,
        most=1,
        limits=(1,),
    ),
    Panel(
        "Device memory in use",
        "Of the whole device, whoever uses it; of a CPU what the neuron uses.",
        MEBIBYTES,
        (Query(f"cortex_device_vram_used_mb{{{NODE}}}", "{{node}} {{device}}"),),
        width=6,
    ),
    Panel(
        "Device memory free",
        "Where there is little, a load has to evict.",
        MEBIBYTES,
        (Query(f"cortex_device_vram_free_mb{{{NODE}}}", "{{node}} {{device}}"),),
        width=6,
    ),
    Panel(
        "GPU utilisation",
        "Share of the time in which the GPU does anything.",
        PERCENT,
        (Query(f"cortex_device_utilization_pct{{{NODE}}}", "{{node}} {{device}}"),),
        width=12,
        most=100,
    ),
    Panel(
        "GPU temperature",
        "From 87 degrees on a GPU slows itself down.",
        CELSIUS,
        (Query(f"cortex_device_temp_c{{{NODE}}}", "{{node}} {{device}}"),),
        width=12,
        limits=(75, 87),
    ),
)

GATEWAY = (
    Row("Gateways"),
    Panel(
        "Memory",
        "Resident memory of the process.",
        BYTES,
        (Query('process_resident_memory_bytes{job="cortex-gateway"}', "{{instance}}"),),
        width=6,
    ),
    Panel(
        "CPU",
        "Cores in use. A gateway has one event loop: near 1 it is at its end.",
        RATIO,
        (
            Query(
                'rate(process_cpu_seconds_total{job="cortex-gateway"}[$__rate_interval])',
                "{{instance}}",
            ),
        ),
        width=6,
        limits=(0.7, 0.9),
    ),
    Panel(
        "Descriptors",
        "Files and connections that are open, of those that may be.",
        RATIO,
        (
            Query(
                'process_open_fds{job="cortex-gateway"} / process_max_fds{job="cortex-gateway"}',
                "{{instance}}",
            ),
        ),
        width=6,
        limits=(0.8,),
        most=1,
    ),
    Panel(
        "Disk free",
        "Of the file system with the state directory: keys, usage, pins.",
        RATIO,
        (Query("cortex_disk_free_bytes / cortex_disk_size_bytes", "{{instance}} {{path_kind}}"),),
        width=6,
        limits=(0.02, 0.1),
        low_is_bad=True,
        most=1,
    ),
    Panel(
        "Usage that could not be written",
        "Writes that failed and are tried again, and requests whose usage is lost, a second.",
        REQUESTS,
        (
            rate("cortex_usage_write_failures_total", "", "instance, place"),
            rate("cortex_usage_lost_requests_total", "", "instance", "{{instance}} lost"),
        ),
    ),
    Panel(
        "Reloads of the configuration",
        "Since the start, by how they went.",
        COUNT,
        (Query("cortex_config_reloads_total", "{{instance}} {{result}}"),),
    ),
    table(
        "Builds",
        "What runs where.",
        "sum by (job, instance, version, python) (cortex_build_info or neuron_build_info)",
        width=8,
    ),
)


def fleet() -> Json:
    return dashboard(
        "cortex-fleet",
        "cortex: fleet",
        "Nodes, models and requests, as the gateways see them.",
        (
            Variable("node", "label_values(cortex_neuron_up, node)"),
            Variable("model", "label_values(cortex_requests_total, model)"),
        ),
        (*GLANCE, *CAPACITY, *TRAFFIC, *SPEED, *MODELS, *NODES, *GATEWAY),
    )
