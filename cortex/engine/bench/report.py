"""A benchmark's figures as lines of text."""

from __future__ import annotations

from collections.abc import Iterator

from cortex.engine.bench.run import BenchReport


def lines(report: BenchReport) -> Iterator[str]:
    """A table of what was measured, with each figure's share of the device's own ceilings."""
    plan, ceilings = report.plan, report.ceilings
    yield f"{plan.shape}, {plan.dtype}, {plan.device}, {report.kernels}"
    yield (
        f"ceilings: {ceilings.bandwidth / 1e9:,.0f} GB/s copied (read and written), "
        f"{ceilings.matmul / 1e12:,.2f} TFLOP/s"
    )
    yield (
        f"weights {report.weight_bytes / 1e9:,.2f} GB, KV {report.kv_token_bytes / 1024:,.0f} KiB "
        "a token"
    )
    if report.decodes:
        yield ""
        yield "  batch  context       step       floor   of floor       rate"
    for decode in report.decodes:
        yield (
            f"{decode.batch:7d}  {decode.context:7d}  {decode.step * 1e3:6.2f} ms  "
            f"{decode.floor * 1e3:7.2f} ms    {decode.share:6.1%}  {decode.rate:9,.0f} tok/s"
        )
    if report.prefills:
        yield ""
        yield " prompt               time       floor   of floor       rate"
    for prefill in report.prefills:
        yield (
            f"{prefill.tokens:7d}         {prefill.seconds * 1e3:9.1f} ms  "
            f"{prefill.floor * 1e3:7.1f} ms    {prefill.share:6.1%}  {prefill.rate:9,.0f} tok/s"
        )
    whole = report.throughput
    if whole is not None:
        yield ""
        yield (
            f"{whole.requests} requests: {whole.prompt_tokens:,} tokens in, "
            f"{whole.output_tokens:,} out in {whole.seconds:.1f} s: {whole.rate:,.0f} tok/s, "
            f"{whole.share:.1%} of the floor, {whole.preemptions} preemptions"
        )
