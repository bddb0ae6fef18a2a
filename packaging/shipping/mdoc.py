"""Text as mdoc(7) wants it: escapes, and the small Markdown of our own pages."""

from __future__ import annotations

import re
import textwrap
from collections.abc import Iterable, Iterator

WIDTH = 79
SPAN = re.compile(r"`([^`]+)`|\[(?:`(.*?)`|([^\]]*))\]\([^)]*\)|\*\*([^*]+)\*\*|\*([^*\s][^*]*)\*")
FENCE = "```"
SENTENCE_END = re.compile(r"([.!?](?:\\f[RBI]|[)\"])*) +")


def escaped(text: str) -> str:
    """*text* with nothing in it that roff would act on, but for a first character."""
    return text.replace("\\", "\\e")


def argument(text: str) -> str:
    """*text* as one argument of a macro."""
    return quoted(escaped(text))


def quoted(text: str) -> str:
    """*text*, which is marked up already, as one argument of a macro."""
    return '"' + text.replace('"', "\\(dq") + '"'


def literal(text: str) -> str:
    """*text* as one types it: bold, and its hyphens as they are."""
    return "\\fB" + escaped(text).replace("-", "\\-") + "\\fR"


def inline(text: str) -> str:
    """A line of Markdown: code in bold, links by their text, emphasis in italics."""

    def replaced(found: re.Match[str]) -> str:
        code, linked_code, link, strong, emphasis = found.groups()
        if code or linked_code:
            return literal(code or linked_code)
        if link is not None:
            return escaped(link)
        return f"\\fI{escaped(strong or emphasis)}\\fR"

    parts, end = [], 0
    for found in SPAN.finditer(text):
        parts += [escaped(text[end : found.start()]), replaced(found)]
        end = found.end()
    return "".join([*parts, escaped(text[end:])])


def filled(text: str) -> Iterator[str]:
    """Lines of input for a paragraph that is marked up already."""
    for sentence in SENTENCE_END.sub(r"\1\n", " ".join(text.split())).splitlines():
        for line in textwrap.wrap(sentence, WIDTH, break_on_hyphens=False, break_long_words=False):
            yield "\\&" + line if line[:1] in ".'" else line


def unfilled(lines: Iterable[str]) -> Iterator[str]:
    """A block that keeps its lines."""
    yield ".Bd -literal -offset indent"
    for line in lines:
        text = escaped(line).replace("-", "\\-")
        yield "\\&" + text if text[:1] in ".'" else text
    yield ".Ed"


def option_flags(record: str) -> str:
    """Click's `-m, --model MODEL` as an item's macros."""
    words: list[str] = []
    for form in re.split(r"(?:, | / )(?=-)", record):
        name, _, metavar = form.partition(" ")
        words += [",", "Fl", name.removeprefix("-").replace("-", "\\-")]
        if metavar:
            words += ["Ar", argument(metavar)]
    return " ".join(words[1:])


def table(rows: list[list[str]]) -> Iterator[str]:
    """A table whose first column names something: as a list of it and what is said of it."""
    yield ".Bl -tag -width indent"
    header, *body = rows
    for name, *rest in body:
        yield f".It {quoted(inline(name))}"
        said = [
            f"{inline(title)}: {inline(cell)}." if title in ("type", "default") else inline(cell)
            for title, cell in zip(header[1:], rest, strict=True)
            if cell
        ]
        for part in said:
            yield from filled(part[:1].upper() + part[1:])
    yield ".El"


def cells_of(line: str) -> list[str]:
    return [cell.strip() for cell in re.split(r"(?<!\\)\|", line.strip().strip("|"))]


def blocks_of(markdown: str) -> Iterator[list[str]]:
    """The paragraphs, tables, headings and fenced blocks of *markdown*, each as its lines."""
    block: list[str] = []
    fenced = False
    for line in [*markdown.splitlines(), ""]:
        if line.startswith(FENCE):
            fenced = not fenced
        if fenced or line.strip():
            block.append(line)
            continue
        if block:
            yield block
        block = []


def from_markdown(markdown: str) -> Iterator[str]:
    """mdoc lines for a part of a page: its headings become sections."""
    after_break = True
    for block in blocks_of(markdown):
        first = block[0]
        if first.startswith("#"):
            title = re.sub(r"[`*]", "", first.lstrip("# "))
            yield f".Ss {argument(title)}"
            block, after_break = block[1:], True
            if not block:
                continue
            first = block[0]
        if first.startswith(FENCE):
            yield from unfilled(line for line in block if not line.startswith(FENCE))
        elif first.startswith("|"):
            yield from table([cells_of(line) for line in block if not line.startswith("|--")])
        else:
            if not after_break:
                yield ".Pp"
            yield from filled(inline(" ".join(block)))
        after_break = False
