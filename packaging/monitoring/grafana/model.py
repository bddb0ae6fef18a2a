"""One model, or some: who asks, where the time goes, what the replicas do."""

from __future__ import annotations

from layout import (
    COUNT,
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
)

BOTH = 'model=~"$model", node=~"$node"'

DEMAND = (
    Row("Demand"),
    Panel(
        "Requests by dialect",
        "By the API that the client speaks.",
        REQUESTS,
        (rate("cortex_requests_total", BOTH, "dialect"),),
        stacked=True,
    ),
    Panel(
        "Errors",
        "By error code. Codes of 4xx are the caller's, overloaded excepted.",
        REQUESTS,
        (rate("cortex_request_errors_total", BOTH, "reason"),),
        stacked=True,
    ),
    Panel(
        "Waiting in the gateway",
        "For a seat at a replica. The neurons' own queues are short.",
        COUNT,
        (Query('sum by (model) (cortex_queue_waiting{model=~"$model"})', "{{model}}"),),
    ),
    Panel(
        "Saturation",
        "Requests that a replica works on, of those it takes at a time.",
        PERCENT,
        (
            Query(
                f"100 * cortex_model_in_flight{{{BOTH}}}"
                f" / clamp_min(cortex_model_max_in_flight{{{BOTH}}}, 1)",
                "{{model}} {{node}}",
            ),
        ),
        limits=(80, 100),
    ),
    Panel(
        "Under way",
        "Requests that a gateway has sent to a replica.",
        COUNT,
        (Query(f"sum by (model, node) (cortex_in_flight{{{BOTH}}})", "{{model}} {{node}}"),),
    ),
    Panel(
        "Replica's queue",
        "Requests that wait at a neuron, and how many it lets wait.",
        COUNT,
        (
            Query(f"cortex_model_queue_depth{{{BOTH}}}", "{{model}} {{node}}"),
            Query(f"cortex_model_max_queue_depth{{{BOTH}}}", "{{model}} {{node}} at most"),
        ),
    ),
)

LATENCY = (
    Row("Latency"),
    Panel(
        "Where the time goes",
        "Seconds of requests spent in each stage, a second. The stages add up to the requests' "
        "durations; docs/operations.md says what each is.",
        SECONDS,
        (rate("cortex_stage_seconds_sum", BOTH, "stage"),),
        width=12,
        stacked=True,
    ),
    Panel(
        "First tokens",
        "How many streams had their first token after how long.",
        SECONDS,
        (
            Query(
                "sum by (le) "
                f"(increase(cortex_time_to_first_token_seconds_bucket{{{BOTH}}}[$__rate_interval]))",
                "{{le}}",
            ),
        ),
        kind="heatmap",
        width=12,
    ),
    Panel(
        "First token",
        "The median, and what 95 % stay below. The objective is 95 % within 5 seconds.",
        SECONDS,
        quantiles("cortex_time_to_first_token_seconds", BOTH, "model", 0.5, 0.95),
        limits=(5,),
    ),
    Panel(
        "Between tokens",
        "Between two frames with tokens of a stream. Above 0.1 s it reads as a stutter.",
        SECONDS,
        quantiles("cortex_inter_token_seconds", BOTH, "model", 0.5, 0.95),
        limits=(0.1, 0.25),
    ),
    Panel(
        "Duration",
        "From a request's head to the end of its answer.",
        SECONDS,
        quantiles("cortex_request_duration_seconds", BOTH, "model", 0.5, 0.95),
    ),
)

TOKEN_RATES = (
    Row("Tokens"),
    Panel(
        "Tokens of all requests",
        "Of prompts, of completions.",
        TOKENS,
        (
            rate("cortex_prompt_tokens_total", BOTH, "model", "{{model}} prompt"),
            rate("cortex_completion_tokens_total", BOTH, "model", "{{model}} completion"),
        ),
    ),
    Panel(
        "Speed of a request",
        "Completion tokens a second of one request while it decodes: the median, and what 95 % "
        "exceed.",
        TOKENS,
        quantiles("cortex_tokens_per_second", BOTH, "model", 0.5, 0.05),
    ),
    Panel(
        "Prompt tokens found in a cache",
        "Of all prompt tokens. Little where conversations go on means that sessions change "
        "replicas.",
        RATIO,
        (
            Query(
                "sum by (model) "
                f"(rate(cortex_cached_prompt_tokens_total{{{BOTH}}}[$__rate_interval]))"
                f" / sum by (model) (rate(cortex_prompt_tokens_total{{{BOTH}}}[$__rate_interval]))",
                "{{model}}",
            ),
        ),
        most=1,
    ),
)

REPLICAS = (
    Row("Replicas (from the neurons)"),
    Panel(
        "KV cache in use",
        "Share of the blocks. Full is well, as long as nobody has to give blocks up.",
        RATIO,
        (Query(f"neuron_kv_cache_usage_ratio{{{BOTH}}}", "{{model}} {{node}}"),),
        most=1,
        limits=(0.95,),
    ),
    Panel(
        "Preemptions",
        "Completions that gave their blocks up for others, a second: their prompts are read again.",
        COUNT,
        (rate("neuron_preemptions_total", BOTH, "model, node"),),
    ),
    Panel(
        "Running and waiting",
        "Completions in the batch, and before it.",
        COUNT,
        (
            Query(f"neuron_requests_running{{{BOTH}}}", "{{model}} {{node}} running"),
            Query(f"neuron_requests_waiting{{{BOTH}}}", "{{model}} {{node}} waiting"),
        ),
    ),
)


def model() -> Json:
    return dashboard(
        "cortex-model",
        "cortex: model",
        "Demand, latency and tokens of a model, and what its replicas do.",
        (
            Variable("model", "label_values(cortex_requests_total, model)"),
            Variable("node", "label_values(cortex_neuron_up, node)"),
        ),
        (*DEMAND, *LATENCY, *TOKEN_RATES, *REPLICAS),
    )
