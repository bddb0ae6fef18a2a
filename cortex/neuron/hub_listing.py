"""What a repository holds at a revision, as the hub's own library asks for it. Blocks."""

from __future__ import annotations

import difflib
from functools import partial
from typing import Any

import attrs

from cortex.errors import BadRequest, CheckpointError, clip
from cortex.neuron.download import REFUSALS, refuse
from cortex.neuron.hub_files import RemoteFile
from cortex.neuron.snapshots import COMMIT

SEARCHED = 200  # models of an author, or of a name, that are looked through


class OutOfReach(Exception):
    """The hub cannot be reached, or must not be."""


class UnknownRepository(CheckpointError):
    """The hub has no such repository, as far as this token may see."""


@attrs.frozen
class Listing:
    commit: str
    files: tuple[RemoteFile, ...]


def list_files(
    repository: str, revision: str, *, endpoint: str | None, token: str | None, seconds: float
) -> Listing:
    """*seconds* bound each wait for the hub. `OutOfReach`, `BadRequest` for a name that can be
    none, `CheckpointError` for what is not there or not for this *token*."""
    from huggingface_hub import HfApi
    from huggingface_hub.errors import (
        GatedRepoError,
        HfHubHTTPError,
        HFValidationError,
        RepositoryNotFoundError,
        RevisionNotFoundError,
    )

    api = HfApi(endpoint=endpoint, token=token or False)
    try:
        info = api.model_info(repository, revision=revision, files_metadata=True, timeout=seconds)
    except HFValidationError as exc:
        raise BadRequest(f"the hub allows no name like '{clip(repository)}'") from exc
    except GatedRepoError as exc:
        raise CheckpointError(
            f"{clip(repository)} is gated: accept its terms and set HF_TOKEN"
        ) from exc
    except RepositoryNotFoundError as exc:
        raise UnknownRepository(
            f"the hub has no model {clip(repository)}, or shows it to others only"
        ) from exc
    except RevisionNotFoundError as exc:
        raise CheckpointError(
            f"{clip(repository)} has no revision {clip(revision)}", param="revision"
        ) from exc
    except HfHubHTTPError as exc:
        status = exc.response.status_code
        if status in REFUSALS:
            refuse(repository, status)
        raise OutOfReach(f"the hub answered {status}") from exc
    except Exception as exc:  # whatever its HTTP client raises when there is no network
        raise OutOfReach(f"the hub cannot be reached: {clip(exc, 200)}") from exc
    if not info.sha or not COMMIT.fullmatch(info.sha):
        raise CheckpointError(f"the hub names no commit of {clip(repository)}")
    return Listing(info.sha, tuple(_remote_files(info.siblings or ())))


def near_names(repository: str, *, endpoint: str | None, token: str | None) -> list[str]:
    """Models of the hub that *repository* may have been meant to be; none where it does not say."""
    from huggingface_hub import HfApi

    api = HfApi(endpoint=endpoint, token=token or False)
    author, _, name = repository.partition("/")
    searches = (
        partial(api.list_models, author=author, limit=SEARCHED),
        partial(api.list_models, search=name, limit=SEARCHED),
    )
    for search in searches:
        try:
            models = [model.id for model in search()]
        except Exception:  # it is a hint: whatever goes wrong, the error is told without it
            return []
        names = {model.casefold(): model for model in models}
        near = difflib.get_close_matches(repository.casefold(), names, n=3, cutoff=0.6)
        if near:
            return [names[each] for each in near]
    return []


def _remote_files(siblings: Any) -> list[RemoteFile]:
    files: list[RemoteFile] = []
    for sibling in siblings:
        lfs = sibling.lfs
        etag = lfs.sha256 if lfs is not None else sibling.blob_id
        size = lfs.size if lfs is not None else sibling.size
        if isinstance(etag, str) and isinstance(size, int):
            file = RemoteFile(str(sibling.rfilename), size, etag, lfs is not None)
            if file.is_sound:
                files.append(file)
    return files
