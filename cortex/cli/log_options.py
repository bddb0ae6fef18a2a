"""`--log-level` and `--log-format`: what a role logs, and how."""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping
from typing import Any, TypeVar

import attrs
import click

from cortex.config.errors import nearest
from cortex.service import logs

F = TypeVar("F", bound=Callable[..., Any])

LEVELS = ("debug", "info", "warning", "error")
FORMATS = ("auto", "text", "json")
# Those that code asks `logs.get` for; a test holds the two together. Each stands for itself and for
# those below it: gateway for all of gateway.*.
AREAS = frozenset(
    {
        "cli",
        "gateway",
        *(
            f"gateway.{name}"
            for name in [
                "auth",
                "circuits",
                "defrag",
                "dispatch",
                "fleet",
                "idle",
                "images",
                "loads",
                "owner",
                "pins",
                "planner",
                "poller",
                "pulls",
                "readiness",
                "relay",
                "reload",
                "request",
                "responses",
                "router",
                "upstream",
                "usage",
            ]
        ),
        "neuron",
        *(
            f"neuron.{name}"
            for name in [
                "activation",
                "device",
                "download",
                "engine",
                "health",
                "hub",
                "lifecycle",
                "load",
                "pulls",
                "readiness",
                "request",
                "restart",
            ]
        ),
        "service",
        *(
            f"service.{name}"
            for name in ["disk", "edge", "lane", "notify", "pacer", "proof", "serve", "tls"]
        ),
    }
)


@attrs.frozen
class Levels:
    """Least level that is logged: *level*, but for the areas that are named."""

    text: str
    level: str
    areas: Mapping[str, str]


class LevelsType(click.ParamType[Levels]):
    """``info``, or ``info,gateway.router=debug``."""

    name = "levels"

    def get_metavar(self, param: click.Parameter, ctx: click.Context | None = None) -> str:
        return "LEVEL[,AREA=LEVEL...]"

    def convert(
        self, value: Any, param: click.Parameter | None, ctx: click.Context | None
    ) -> Levels:
        if isinstance(value, Levels):
            return value
        level, areas = "info", {}
        for part in filter(None, (each.strip() for each in value.split(","))):
            area, equals, named = (each.strip() for each in part.partition("="))
            wanted = (named if equals else area).lower()
            if wanted not in LEVELS:
                self.fail(f"{wanted!r} is none of {', '.join(LEVELS)}", param, ctx)
            if not equals:
                level = wanted
            elif area in AREAS:
                areas[area] = wanted
            else:
                self._fail_area(area, param, ctx)
        return Levels(value, level, areas)

    def _fail_area(
        self, area: str, param: click.Parameter | None, ctx: click.Context | None
    ) -> None:
        near = nearest(area, AREAS)
        hint = f"; did you mean {near}?" if near else ""
        listed = ", ".join(sorted(AREAS))
        self.fail(f"there is no area {area!r}{hint} The areas are {listed}", param, ctx)


def log_level_option(variable: str, default: str = "info") -> Callable[[F], F]:
    return click.option(
        "--log-level",
        type=LevelsType(),
        default=default,
        envvar=variable,
        show_default=True,
        help=f"Least level that is logged: {', '.join(LEVELS)}; also by area, as in "
        f"info,gateway.router=debug.  [env: {variable}]",
    )


def log_format_option(variable: str) -> Callable[[F], F]:
    return click.option(
        "--log-format",
        type=click.Choice(FORMATS),
        default="auto",
        envvar=variable,
        show_default=True,
        help=f"auto is json where systemd's journal reads it, else text.  [env: {variable}]",
    )


def configure(levels: Levels, form: str) -> None:
    """Log as it was asked for, to stderr."""
    logs.configure(levels.level, form, areas=levels.areas, environ=os.environ)
