"""Where a load's files come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import BadRequest, CheckpointError
from cortex.neuron.hub_files import Files
from cortex.neuron.jobs import ReportProgress
from cortex.neuron.sources import DEMO_DIRECTORY, Sources


class NamingHub:
    """Answers with the name it was asked for."""

    async def fetch(self, repository: str, *, progress: ReportProgress, files: Files) -> Path:
        return Path("/hub") / repository / files


async def resolve(source: str | None, model_id: str = "org/served") -> Path:
    return await Sources(NamingHub()).resolve(
        source, model_id, progress=lambda *_: None, files="all"
    )


@pytest.mark.parametrize(
    ("source", "repository"),
    [
        (None, "org/served"),
        ("Qwen/Qwen3-0.6B", "Qwen/Qwen3-0.6B"),
        ("hf:org/name", "org/name"),
        ("huggingface:org/name", "org/name"),
    ],
)
async def test_a_name_is_a_repository_on_the_hub(source: str | None, repository: str) -> None:
    assert await resolve(source) == Path("/hub") / repository / "all"


async def test_the_demonstration_needs_no_hub() -> None:
    assert await resolve("demo") == DEMO_DIRECTORY
    assert await resolve(None, "cortex/demo") == DEMO_DIRECTORY


async def test_a_path_is_a_directory_of_this_machine(tmp_path: Path) -> None:
    assert await resolve(str(tmp_path)) == tmp_path
    (tmp_path / "file").touch()
    for missing in (tmp_path / "nothing", tmp_path / "file"):
        with pytest.raises(CheckpointError, match="no directory"):
            await resolve(str(missing))


@pytest.mark.parametrize(
    "source",
    [
        "name",
        "org/name/more",
        "org/..",
        "org/a..b",
        "a--b/name",
        "org/.hidden",
        "hf:../../etc",
        "hf:/etc",
        "s3:org/name",
        "org/na me",
        "org/name\n",
        "org/" + "n" * 100,
    ],
)
async def test_what_names_nothing_is_the_callers_mistake(source: str) -> None:
    with pytest.raises(BadRequest) as caught:
        await resolve(source)
    assert caught.value.param == "source"
