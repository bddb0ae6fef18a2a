"""What was found: one finding a check, with what to do about it."""

from __future__ import annotations

from collections.abc import Iterable
from typing import Any, Final

import attrs
import click

from cortex.cli.exits import shown

OK: Final = "ok"
WARNING: Final = "warning"
FAILED: Final = "failed"


@attrs.frozen
class Finding:
    """*detail* says what was seen, *advice* what to do; it is empty where nothing is to be done."""

    role: str  # gateway or neuron
    check: str
    state: str
    detail: str
    advice: str = ""


@attrs.frozen
class Judge:
    """Makes the findings of one role."""

    role: str

    def ok(self, check: str, detail: str) -> Finding:
        return Finding(self.role, check, OK, detail)

    def warning(self, check: str, detail: str, advice: str) -> Finding:
        return Finding(self.role, check, WARNING, detail, advice)

    def failed(self, check: str, detail: str, advice: str) -> Finding:
        return Finding(self.role, check, FAILED, detail, advice)


def body(findings: Iterable[Finding]) -> dict[str, Any]:
    """As JSON."""
    listed = [attrs.asdict(finding) for finding in findings]
    return {"ok": all(each["state"] != FAILED for each in listed), "checks": listed}


def show(finding: Finding) -> None:
    """Print one finding as soon as it is known; its advice on a line of its own."""
    line = f"{finding.state:8} {finding.role:8} {finding.check}: {finding.detail}"
    click.echo(shown(line))
    if finding.advice:
        click.echo(f"{'':18}-> {shown(finding.advice)}")


def summary(findings: Iterable[Finding]) -> str:
    states = [finding.state for finding in findings]
    counts = ", ".join(f"{states.count(state)} {state}" for state in (OK, WARNING, FAILED))
    return f"{len(states)} checks: {counts}"
