"""Where a load's files come from."""

from __future__ import annotations

from pathlib import Path

import pytest

from cortex.errors import BadRequest, CheckpointError, UnsupportedLoad
from cortex.neuron.hub_files import Files, Pulled
from cortex.neuron.jobs import ReportProgress
from cortex.neuron.sources import DEMO_DIRECTORY, Sources


class NamingHub:
    """Answers with the name it was asked for."""

    async def fetch(
        self,
        repository: str,
        *,
        progress: ReportProgress,
        files: Files,
        quant: str | None = None,
        revision: str | None = None,
    ) -> Path:
        return Path("/hub") / repository / files / (quant or "") / (revision or "")

    async def pull(
        self,
        repository: str,
        *,
        progress: ReportProgress,
        quant: str | None = None,
        revision: str | None = None,
        verify: bool = False,
    ) -> Pulled:
        path = await self.fetch(
            repository, progress=progress, files="all", quant=quant, revision=revision
        )
        return Pulled(path, None, 5 if verify else 4)


async def resolve(
    source: str | None, model_id: str = "org/served", quant: str | None = None
) -> Path:
    return await Sources(NamingHub()).resolve(
        source, model_id, progress=lambda *_: None, files="all", quant=quant
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


@pytest.mark.parametrize("source", ["org/name@v1.0", "hf:org/name@v1.0"])
async def test_a_revision_follows_the_name(source: str) -> None:
    assert await resolve(source) == Path("/hub/org/name/all/v1.0")


async def test_a_pull_goes_to_the_hub_with_all_that_was_asked() -> None:
    pulled = await Sources(NamingHub()).pull(
        "org/name@v1", "served", progress=lambda *_: None, quant="q8_0", verify=True
    )
    assert pulled == Pulled(Path("/hub/org/name/all/q8_0/v1"), None, 5)


async def test_a_path_and_the_demonstration_need_no_pull(tmp_path: Path) -> None:
    sources = Sources(NamingHub())
    pulled = await sources.pull(None, "cortex/demo", progress=lambda *_: None)
    assert (pulled.path, pulled.fetched) == (DEMO_DIRECTORY, 0)
    with pytest.raises(BadRequest, match="nothing to pull"):
        await sources.pull(str(tmp_path), "served", progress=lambda *_: None)


async def test_the_demonstration_needs_no_hub() -> None:
    assert await resolve("demo") == DEMO_DIRECTORY
    assert await resolve(None, "cortex/demo") == DEMO_DIRECTORY


async def test_the_hub_hears_which_quantisation_is_wanted() -> None:
    assert await resolve("org/name", quant="q8_0") == Path("/hub/org/name/all/q8_0")


async def test_a_path_is_a_directory_or_a_gguf_file_of_this_machine(tmp_path: Path) -> None:
    assert await resolve(str(tmp_path)) == tmp_path
    with pytest.raises(CheckpointError, match="no directory or file") as caught:
        await resolve(str(tmp_path / "nothing"))
    assert caught.value.param == "source"
    (tmp_path / "file").touch()
    with pytest.raises(CheckpointError, match=r"no directory and no \.gguf file"):
        await resolve(str(tmp_path / "file"))
    for name in ("m-Q4_K_M.gguf", "m-Q8_0-00001-of-00002.gguf", "m-Q8_0-00002-of-00002.gguf"):
        (tmp_path / name).touch()
    assert await resolve(str(tmp_path)) == tmp_path / "m-Q4_K_M.gguf"
    assert await resolve(str(tmp_path), quant="q8_0") == tmp_path / "m-Q8_0-00001-of-00002.gguf"
    second = str(tmp_path / "m-Q8_0-00002-of-00002.gguf")
    assert await resolve(second) == tmp_path / "m-Q8_0-00001-of-00002.gguf"
    with pytest.raises(UnsupportedLoad, match="is no q4_k_m"):
        await resolve(second, quant="q4_k_m")


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
