"""The fenced blocks of README.md and docs/, and what becomes of each when the pages are tried.

Blocks of ``sh``, ``console`` and ``python`` are run, in order, against one live `cortex up`;
``json``, ``toml`` and ``yaml`` must parse. What cannot be run is listed here, with the reason.
"""

from __future__ import annotations

import re
from pathlib import Path

import attrs

ROOT = Path(__file__).resolve().parents[2]
PAGES = [ROOT / "README.md", *sorted((ROOT / "docs").rglob("*.md"))]
FENCE = re.compile(r"^([ \t]*)```([\w-]*)[^\n]*\n(.*?)^[ \t]*```[ \t]*$", re.MULTILINE | re.DOTALL)
RUN = frozenset({"sh", "console", "python"})
PARSED = frozenset({"json", "toml", "yaml"})
# Other names of what is run, under which a block would go untried.
MISNAMED = frozenset({"bash", "shell", "zsh", "py", "python3", "shell-session"})

SETS_UP = "it is what the stack of these tests is started with"
RECURSES = "it runs these tests"
BUILDS = "tests/packaging builds it"
TWO_ROLES = "its last two commands run until they are stopped; tests/system starts the roles so"
MEASURES = "a measurement: minutes of an idle machine, and peers that are installed by hand"
NEEDS_GPU = "needs an NVIDIA GPU"
NEEDS_HUB = "needs the network and gigabytes; tests/cli pulls from a hub of its own"
NEEDS_INSTALLED = "looks at a host with the packages; tests/cli/doctor makes one up"
SECOND_HOST = "its hosts are the reader's; tests/system starts the roles so"
INSTALLS = "it changes the system; tests/packaging installs the packages"
SOAKS = "goes on for twenty minutes; tests/chaos has its parts"
NEEDS = "needs {} itself; the page says with which version it was tried"

# (page, how the block begins) -> why it is not run.
NOT_RUN: dict[tuple[str, str], str] = {
    ("README.md", "python3 cortex.py up"): SETS_UP,
    ("README.md", "python3 cortex.py test"): RECURSES,
    ("README.md", ".venv/bin/python -m cortex check"): TWO_ROLES,
    ("README.md", "packaging/build"): BUILDS,
    ("docs/benchmarks.md", ".venv/bin/python tests/bench/gateway/run.py"): MEASURES,
    ("docs/benchmarks.md", "PYTHONPATH=.:tests .venv/bin/python -m simulation"): MEASURES,
    ("docs/benchmarks.md", "PYTHONPATH=. .venv/bin/python tests/bench/peers.py"): MEASURES,
    ("docs/benchmarks.md", "python3 cortex.py up"): MEASURES,
    ("docs/benchmarks.md", "cortex bench --model"): MEASURES,
    ("docs/benchmarks.md", "python3 tests/bench/cuda_engine.py"): NEEDS_GPU,
    ("docs/clients/aider.md", "OPENAI_API_BASE="): NEEDS.format("aider"),
    ("docs/clients/claude-code.md", "export ANTHROPIC_BASE_URL"): NEEDS.format("Claude Code"),
    ("docs/clients/cline.md", "cline auth"): NEEDS.format("Cline"),
    ("docs/clients/continue.md", "cn --config"): NEEDS.format("Continue"),
    ("docs/clients/langchain.md", "from langchain_anthropic"): NEEDS.format("LangChain"),
    ("docs/clients/langchain.md", "from langchain_openai"): NEEDS.format("LangChain"),
    ("docs/clients/langchain.md", "import litellm"): NEEDS.format("LiteLLM"),
    ("docs/clients/open-webui.md", "export OPENAI_API_BASE_URL"): NEEDS.format("Open WebUI"),
    ("docs/clients/opencode.md", "opencode run"): NEEDS.format("opencode"),
    ("docs/getting-started.md", "python3 cortex.py up"): SETS_UP,
    ("docs/getting-started.md", "python3 cortex.py check"): SECOND_HOST,
    ("docs/getting-started.md", "packaging/packages deb"): INSTALLS,
    ("docs/install.md", "sudo "): INSTALLS,
    ("docs/operations.md", "cortex doctor --config"): NEEDS_INSTALLED,
    ("docs/operations.md", "cortex pull"): NEEDS_HUB,
    ("docs/troubleshooting.md", "cortex status"): NEEDS_INSTALLED,
    ("docs/reliability.md", "PYTHONPATH=.:tests python -m chaos.soak"): SOAKS,
}

# (page, how the block begins) -> what it prints before it is stopped: it would go on for ever.
ENDLESS: dict[tuple[str, str], str] = {
    ("docs/operations.md", "curl -N"): r"(?m)^(data|event):",
}

# What the pages call by a name that only their reader can fill in, or that a small machine lacks.
STAND_INS = {
    "YOUR_MODEL": "cortex/demo",
    "Qwen/Qwen3-8B": "cortex/demo",
    "--node gpu1": "--node local",
}


@attrs.frozen
class Block:
    """A fenced block: the page it is on, its language, its text without the indentation."""

    page: str
    language: str
    text: str

    @property
    def first(self) -> str:
        return self.text.partition("\n")[0]

    @property
    def commands(self) -> str:
        """What is run of it: of a console the lines after the prompt."""
        if self.language != "console":
            return self.text
        return "".join(f"{line[2:]}\n" for line in self.text.splitlines() if line[:2] == "$ ")

    @property
    def output(self) -> list[str]:
        """The lines that a console shows as what its commands print."""
        if self.language != "console":
            return []
        lines = self.text.splitlines()
        return [line for line in lines if line.strip() and line[:2] != "$ "]

    def entry(self, table: dict[tuple[str, str], str]) -> tuple[str, str] | None:
        """The key of *table* that means this block."""
        keys = (k for k in table if k[0] == self.page and self.commands.startswith(k[1]))
        return next(keys, None)

    def __str__(self) -> str:
        return f"{self.page}: {self.first[:60]}"


def blocks_of(page: str, text: str) -> list[Block]:
    """The fenced blocks of a page."""
    found = []
    for indent, language, body in FENCE.findall(text):
        lines = (line.removeprefix(indent) for line in body.splitlines(keepends=True))
        found.append(Block(page, language, "".join(lines)))
    return found


def all_blocks() -> list[Block]:
    """Those of README.md and of every page below docs/."""
    return [
        block
        for page in PAGES
        for block in blocks_of(page.relative_to(ROOT).as_posix(), page.read_text())
    ]


def runnable(page: str) -> list[Block]:
    """The blocks of *page* that are run, in order."""
    mine = (block for block in all_blocks() if block.page == page and block.language in RUN)
    return [block for block in mine if block.entry(NOT_RUN) is None]


def resembles(expected: str, line: str) -> bool:
    """Whether *line* is what a page shows as *expected*: figures and columns' widths may differ,
    and ``...`` stands for anything."""
    pattern = ""
    for part in re.findall(r"\.\.\.|…|\d[\d.:,]*|\s+|[^\s\d.…]+|.", expected.strip()):
        if part in ("...", "…"):
            pattern += ".*"
        elif part[0].isdigit():
            pattern += r"\d[\d.:,]*"
        else:
            pattern += r"\s+" if part.isspace() else re.escape(part)
    return re.fullmatch(pattern, line.strip()) is not None


def missing(expected: list[str], output: str) -> list[str]:
    """The lines of *expected* that *output* does not have, in that order."""
    rest = iter(output.splitlines())
    return [line for line in expected if not any(resembles(line, each) for each in rest)]
