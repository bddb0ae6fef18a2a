"""One node, or some, from the inside: engine, memory, devices, faults."""

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
    quantile,
    quantiles,
    rate,
    table,
)

BOTH = 'model=~"$model", node=~"$node"'
NODE = 'node=~"$node"'
PROCESS = 'job="cortex-neuron", node=~"$node"'

ENGINE = (
    Row("Engine"),
    Panel(
        "Running and waiting",
        "Completions in the batch, and before it.",
        COUNT,
        (
            Query(f"neuron_requests_running{{{BOTH}}}", "{{node}} {{model}} running"),
            Query(f"neuron_requests_waiting{{{BOTH}}}", "{{node}} {{model}} waiting"),
        ),
    ),
    Panel(
        "Tokens",
        "Of prompts (with what was found in the cache), and generated.",
        TOKENS,
        (
            rate("neuron_prompt_tokens_total", BOTH, "node, model", "{{node}} {{model}} prompt"),
            rate("neuron_generation_tokens_total", BOTH, "node, model", "{{node}} {{model}} made"),
        ),
    ),
    Panel(
        "Step time",
        "One step of the engine: the median, and what 95 % stay below. Steps with a prompt's chunk "
        "take longer.",
        SECONDS,
        quantiles("neuron_step_seconds", BOTH, "model", 0.5, 0.95),
    ),
    Panel(
        "Steps",
        "A second.",
        COUNT,
        (rate("neuron_engine_steps_total", BOTH, "node, model"),),
    ),
    Panel(
        "KV cache in use",
        "Share of the blocks. Full is well, as long as nobody has to give blocks up.",
        RATIO,
        (Query(f"neuron_kv_cache_usage_ratio{{{BOTH}}}", "{{node}} {{model}}"),),
        most=1,
        limits=(0.95,),
    ),
    Panel(
        "Prefix cache hits",
        "Prompt tokens found in the prefix cache, of those looked up.",
        RATIO,
        (
            Query(
                "sum by (node, model) "
                f"(rate(neuron_prefix_cache_hits_total{{{BOTH}}}[$__rate_interval]))"
                " / sum by (node, model) "
                f"(rate(neuron_prefix_cache_queries_total{{{BOTH}}}[$__rate_interval]))",
                "{{node}} {{model}}",
            ),
        ),
        most=1,
    ),
)

REQUEST_TIMES = (
    Row("Requests"),
    Panel(
        "First token",
        "From arrival at the neuron.",
        SECONDS,
        quantiles("neuron_time_to_first_token_seconds", BOTH, "model", 0.5, 0.95),
    ),
    Panel(
        "Queue, prefill, decode: p95",
        "What 95 % of the requests stay below: to the first step, to the first token, to the last.",
        SECONDS,
        (
            quantile("neuron_request_queue_seconds", BOTH, "model", 0.95, "{{model}} queue"),
            quantile("neuron_request_prefill_seconds", BOTH, "model", 0.95, "{{model}} prefill"),
            quantile("neuron_request_decode_seconds", BOTH, "model", 0.95, "{{model}} decode"),
        ),
    ),
    Panel(
        "Between tokens",
        "A completion's mean: the median, and what 95 % stay below.",
        SECONDS,
        quantiles("neuron_inter_token_seconds", BOTH, "model", 0.5, 0.95),
    ),
    Panel(
        "Lengths, median",
        "Tokens of a prompt, and of a completion.",
        COUNT,
        (
            quantile("neuron_request_prompt_tokens", BOTH, "model", 0.5, "{{model}} prompt"),
            quantile("neuron_request_generation_tokens", BOTH, "model", 0.5, "{{model}} made"),
        ),
    ),
    Panel(
        "How requests end",
        "By finish reason, and those whose client left.",
        REQUESTS,
        (
            rate("neuron_requests_total", BOTH, "end"),
            rate("neuron_requests_aborted_total", BOTH, "model", "{{model}} aborted"),
        ),
        stacked=True,
    ),
    Panel(
        "Refused, expired, set back",
        "The queue was full; the wait in it was too long; blocks were given up for others.",
        REQUESTS,
        (
            rate("neuron_requests_rejected_total", BOTH, "model", "{{model}} refused"),
            rate("neuron_requests_expired_total", BOTH, "model", "{{model}} expired"),
            rate("neuron_preemptions_total", BOTH, "model", "{{model}} set back"),
        ),
    ),
)

MEMORY = (
    Row("Memory and devices"),
    Panel(
        "Memory of devices by ledger row",
        "What the neuron has taken, measured: weights, KV cache, workspace.",
        BYTES,
        (
            Query(
                f"sum by (node, device, model, row) (neuron_device_memory_bytes{{{BOTH}}})",
                "{{node}} {{device}} {{model}} {{row}}",
            ),
        ),
        width=12,
        stacked=True,
    ),
    Panel(
        "Estimate and measure",
        "By how much the estimate of the weights was wrong. Beyond 15 % loads are placed wrongly.",
        RATIO,
        (Query(f"abs(neuron_memory_estimate_error_ratio{{{BOTH}}})", "{{node}} {{model}}"),),
        width=6,
        limits=(0.15,),
    ),
    Panel(
        "Estimated by ledger row",
        "Before the load.",
        BYTES,
        (
            Query(
                f"sum by (node, model, row) (neuron_memory_estimated_bytes{{{BOTH}}})",
                "{{node}} {{model}} {{row}}",
            ),
        ),
        width=6,
        stacked=True,
    ),
    Panel(
        "In use and free",
        "Of the whole device, whoever uses it; of a CPU what the process uses, and what the system "
        "has left.",
        MEBIBYTES,
        (
            Query(f"neuron_device_memory_used_mb{{{NODE}}}", "{{node}} {{device}} in use"),
            Query(f"neuron_device_memory_free_mb{{{NODE}}}", "{{node}} {{device}} free"),
        ),
    ),
    Panel(
        "GPU utilisation",
        "Share of the time in which the GPU does anything.",
        PERCENT,
        (Query(f"neuron_device_utilization_pct{{{NODE}}}", "{{node}} {{device}}"),),
        most=100,
    ),
    Panel(
        "GPU temperature",
        "From 87 degrees on a GPU slows itself down.",
        CELSIUS,
        (Query(f"neuron_device_temperature_celsius{{{NODE}}}", "{{node}} {{device}}"),),
        limits=(75, 87),
    ),
)

TROUBLE = (
    Row("Faults and recovery"),
    Panel(
        "Devices that work",
        "0 once a device is lost.",
        COUNT,
        (Query(f"neuron_device_up{{{NODE}}}", "{{node}} {{device}}"),),
        most=1,
    ),
    Panel(
        "Faults and recoveries",
        "Faults that took a device from this process, and times that the process replaced itself "
        "because of one.",
        COUNT,
        (
            Query(f"neuron_device_faults_total{{{NODE}}}", "{{node}} {{device}} faults"),
            Query(f"neuron_recoveries_total{{{NODE}}}", "{{node}} recoveries"),
        ),
        limits=(1,),
    ),
    Panel(
        "Steps without enough memory",
        "A second. Such a step is taken back and tried with less.",
        COUNT,
        (rate("neuron_out_of_memory_steps_total", BOTH, "node, model"),),
    ),
    Panel(
        "Requests that failed",
        "By reason.",
        REQUESTS,
        (rate("neuron_requests_failed_total", BOTH, "model, reason"),),
        stacked=True,
    ),
    Panel(
        "Loads that failed",
        "Since the start, by reason.",
        COUNT,
        (Query(f"neuron_load_failures_total{{{NODE}}}", "{{node}} {{reason}}"),),
    ),
    Panel(
        "Engines that failed",
        "Loads because an engine had failed by itself, since the start. No line: none has.",
        COUNT,
        (Query(f"neuron_engine_restarts_total{{{BOTH}}}", "{{node}} {{model}}"),),
        limits=(1,),
    ),
)

HOST = (
    Row("Loads and process"),
    Panel(
        "Stages of loads",
        "Mean seconds of each stage of the loads in this time.",
        SECONDS,
        (
            Query(
                f"sum by (stage) (rate(neuron_load_stage_seconds_sum{{{BOTH}}}[$__rate_interval]))"
                " / sum by (stage) "
                f"(rate(neuron_load_stage_seconds_count{{{BOTH}}}[$__rate_interval]))",
                "{{stage}}",
            ),
        ),
        stacked=True,
    ),
    table(
        "Models and their status",
        "What the neuron has, and how it is.",
        f"sum by (node, model, status) (neuron_model_status{{{BOTH}}}) == 1",
        width=8,
    ),
    Panel(
        "Disk free",
        "Of the file systems with the cache of models, and with the state directory.",
        RATIO,
        (
            Query(
                f"neuron_disk_free_bytes{{{NODE}}} / neuron_disk_size_bytes{{{NODE}}}",
                "{{node}} {{path_kind}}",
            ),
        ),
        limits=(0.02, 0.1),
        low_is_bad=True,
        most=1,
    ),
    Panel(
        "Process memory",
        "Resident memory. On a CPU the models are in it.",
        BYTES,
        (Query(f"process_resident_memory_bytes{{{PROCESS}}}", "{{node}}"),),
        width=12,
    ),
    Panel(
        "CPU",
        "Cores in use.",
        COUNT,
        (Query(f"rate(process_cpu_seconds_total{{{PROCESS}}}[$__rate_interval])", "{{node}}"),),
        width=12,
    ),
)


def neuron() -> Json:
    return dashboard(
        "cortex-neuron",
        "cortex: node",
        "A neuron from the inside: engine, memory, devices, faults.",
        (
            Variable("node", "label_values(neuron_build_info, node)"),
            Variable("model", 'label_values(neuron_model_status{node=~"$node"}, model)'),
        ),
        (*ENGINE, *REQUEST_TIMES, *MEMORY, *TROUBLE, *HOST),
    )
