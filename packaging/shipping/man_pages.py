"""The manual: cortex(1) and a page a command from its own help, the files from their reference."""

from __future__ import annotations

import re
import time
from collections.abc import Iterator
from typing import Any

from shipping import mdoc
from shipping.errors import PackagingError
from shipping.stamp import Stamp

CONFIGURATION_FILES = {
    "cortex.toml": ("the gateway's configuration", "cortex-gateway 1"),
    "models.toml": ("the catalogue of models that a gateway can have loaded", "cortex-gateway 1"),
    "neuron.toml": ("a neuron's configuration", "cortex-neuron 1"),
}
# The page of the program of that name, in the neuron's package, tells of this command too.
NEURON = "cortex neuron"


def head(stamp: Stamp, title: str, section: int, name: str, summary: str) -> Iterator[str]:
    day = time.gmtime(stamp.epoch)
    yield f".Dd {time.strftime('%B', day)} {day.tm_mday}, {day.tm_year}"
    yield f".Dt {title.upper()} {section}"
    yield f".Os cortex {stamp.version.partition('~')[0]}"
    yield from (".Sh NAME", f".Nm {name}", f".Nd {mdoc.inline(summary)}")


def paragraphs(text: str) -> Iterator[str]:
    """A command's help: paragraphs, and blocks behind click's mark that keep their lines."""
    for number, part in enumerate(re.split(r"\n\s*\n", text.strip())):
        lines = [line.strip() for line in part.splitlines()]
        if number:
            yield ".Pp"
        if lines[0] == "\b":
            yield from mdoc.unfilled(lines[1:])
        else:
            yield from mdoc.filled(mdoc.inline(" ".join(lines)))


def options(command: dict[str, Any]) -> Iterator[str]:
    yield ".Bl -tag -width indent"
    for flags, said in command["options"]:
        yield f".It {mdoc.option_flags(flags)}"
        yield from mdoc.filled(mdoc.inline(said))
    yield ".El"


def synopsis(words: str, command: dict[str, Any]) -> Iterator[str]:
    yield f".Nm {words}"
    yield ".Op Ar options"
    for name in command["arguments"]:
        yield f".Ar {mdoc.argument(name)}"
    if command["commands"]:
        yield ".Ar command"
        yield ".Op Ar arguments"


def listing(commands: list[dict[str, Any]]) -> Iterator[str]:
    yield ".Bl -tag -width indent"
    for each in commands:
        yield f".It Ic {mdoc.argument(each['path'].partition(' ')[2])}"
        yield from mdoc.filled(mdoc.inline(each["summary"]) + ".")
    yield ".El"


def ending(command: dict[str, Any], references: list[str]) -> Iterator[str]:
    if command["epilog"]:
        title, _, codes = command["epilog"].partition(":")
        if title != "Exit codes":
            raise PackagingError(f"{command['path']} ends in something else than its exit codes")
        yield ".Sh EXIT STATUS"
        yield ".Bl -tag -width indent"
        for code in codes.strip().rstrip(".").split("; "):
            number, _, meaning = code.partition(" ")
            yield f".It {number}"
            yield from mdoc.filled(mdoc.inline(meaning[:1].upper() + meaning[1:] + "."))
        yield ".El"
    if references:
        yield ".Sh SEE ALSO"
        ordered = sorted(references, key=lambda name: name.split()[::-1])
        for each in ordered:
            yield f".Xr {each}" + (" ," if each != ordered[-1] else "")


def page_name(path: str) -> str:
    return path.replace(" ", "-")


def command_page(
    stamp: Stamp, command: dict[str, Any], parent: dict[str, Any] | None
) -> Iterator[str]:
    """The page of one command of cortex, or of cortex itself."""
    path = command["path"]
    yield from head(stamp, page_name(path), 1, page_name(path), command["summary"])
    yield ".Sh SYNOPSIS"
    yield from synopsis(path, command)
    yield ".Sh DESCRIPTION"
    yield from paragraphs(command["help"])
    yield ".Sh OPTIONS"
    yield from options(command)
    if command["commands"]:
        yield ".Sh COMMANDS"
        yield from listing(command["commands"])
    if parent is None:
        references = ["cortex.toml 5", "models.toml 5"]
    else:
        references = [f"{page_name(parent['path'])} 1"]
    references += [f"{page_name(each['path'])} 1" for each in command["commands"]]
    yield from ending(command, references)


def neuron_page(stamp: Stamp, program: dict[str, Any]) -> Iterator[str]:
    """The page of the program cortex-neuron: all of cortex, with torch, and what it is here for."""
    (neuron,) = (each for each in program["commands"] if each["path"] == NEURON)
    yield from head(stamp, "cortex-neuron", 1, "cortex-neuron", "cortex with torch: a neuron")
    yield ".Sh SYNOPSIS"
    yield ".Nm cortex-neuron neuron"
    yield ".Op Ar options"
    yield ".Nm cortex-neuron"
    yield ".Ar command"
    yield ".Op Ar arguments"
    yield ".Sh DESCRIPTION"
    yield from mdoc.filled(
        "The program of the packages cortex-neuron-cpu and cortex-neuron-cuda. It knows the same "
        "commands as cortex, of which this host runs the first:"
    )
    yield from listing([neuron, *(each for each in program["commands"] if each is not neuron)])
    yield ".Pp"
    yield from mdoc.filled(f"{mdoc.literal('cortex-neuron COMMAND --help')} says more of each.")
    yield ".Sh OPTIONS OF THE NEURON"
    yield from paragraphs(neuron["help"])
    yield from options(neuron)
    yield from ending(neuron, ["neuron.toml 5"])


def command_pages(stamp: Stamp, program: dict[str, Any]) -> dict[str, str]:
    """The pages of the package cortex by file name: cortex.1, cortex-up.1 ..."""
    found: dict[str, str] = {}

    def add(command: dict[str, Any], parent: dict[str, Any] | None) -> None:
        if command["path"] != NEURON:
            found[f"{page_name(command['path'])}.1"] = text_of(command_page(stamp, command, parent))
        for each in command["commands"]:
            add(each, command)

    add(program, None)
    return found


def text_of(lines: Iterator[str]) -> str:
    return "\n".join(lines) + "\n"


def file_page(stamp: Stamp, name: str, reference: str) -> str:
    """The page of a configuration file, from its part of docs/configuration.md."""
    summary, reader = CONFIGURATION_FILES[name]
    part = reference.partition(f"\n## {name}\n")[2]
    part = re.split(r"^## ", part, flags=re.MULTILINE)[0]
    general = reference.partition("\nThere is no search for files.")
    types = general[2].partition("\n\n## ")[0]
    if not part or not types:
        raise PackagingError(f"docs/configuration.md has no part on {name}")
    place = f"A TOML file. The packages install it as `/etc/cortex/{name}`."
    lines = [
        *head(stamp, name, 5, name, summary),
        ".Sh DESCRIPTION",
        *mdoc.filled(mdoc.inline(place)),
        ".Pp",
        *mdoc.from_markdown("There is no search for files." + types),
        ".Sh KEYS",
        *mdoc.from_markdown(part),
        ".Sh SEE ALSO",
        f".Xr {reader}",
    ]
    return text_of(iter(lines))
