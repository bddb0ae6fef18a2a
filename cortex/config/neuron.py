"""neuron.toml: one machine's settings."""

from __future__ import annotations

import re
from pathlib import Path

import attrs

from cortex.config import values
from cortex.config.catalogue import HARNESS
from cortex.config.errors import Invalid
from cortex.config.structure import NOT_A_KEY
from cortex.config.values import Seconds


@attrs.frozen
class DefaultModel:
    """A model loaded at start. ``source`` None means that the id says where the files are."""

    model_id: str = attrs.field(validator=values.model_id)
    source: str | None = None
    quant: str | None = None
    context: int | None = attrs.field(default=None, validator=values.at_least(1))
    devices: tuple[int, ...] | None = attrs.field(default=None, validator=values.device_indices)
    tensor_parallel: int | None = attrs.field(default=None, validator=values.at_least(1))
    tool_format: str | None = None
    harness: str | None = attrs.field(default=None, validator=values.one_of(HARNESS))

    @classmethod
    def named(cls, name: str) -> DefaultModel:
        """The model a person names: a local folder or GGUF file (served under its name, without
        the ending), or an id."""
        if is_local_path(name):
            place = Path(name).expanduser()
            # A file's own name counts: what a link in a cache leads to is called by its hash.
            place = place.absolute() if place.suffix == ".gguf" else place.resolve()
            called = place.name.removesuffix(".gguf")
            served = re.sub(r"[^A-Za-z0-9._:@+-]", "-", called).lstrip("._:@+-")
            if not served:
                raise Invalid(f"{name!r} names no folder a model could be called after")
            return cls(served[:200], source=str(place))
        return cls(name)


def is_local_path(name: str) -> bool:
    """Whether *name* says a place on this machine. ``org/name`` never does, folder or not."""
    return name in (".", "..", "~") or name.startswith(("/", "./", "../", "~/"))


@attrs.frozen
class NeuronConfig:
    """A neuron's settings. None leaves a choice to the neuron.

    In the file ``port`` may stand for ``listen``'s port, and ``token_file`` for ``token``.
    """

    listen: str = attrs.field(default="127.0.0.1:13131", validator=values.listen_address)
    token: str | None = attrs.field(default=None, validator=values.secret, repr=False)
    token_file: Path | None = None
    max_queue_depth: int = attrs.field(default=64, validator=values.at_least(1))
    queue_wait_seconds: Seconds = attrs.field(default=120.0, validator=values.at_least(0))
    max_batch: int | None = attrs.field(default=None, validator=values.at_least(1))
    max_batch_tokens: int | None = attrs.field(default=None, validator=values.at_least(1))
    memory_fraction: float = attrs.field(default=0.9, validator=values.more_than(0, 1))
    drain_seconds: Seconds = attrs.field(default=30.0, validator=values.at_least(0))
    # How long a token proves that a model works, for /readyz; 0: no token is asked for.
    readiness_seconds: Seconds = attrs.field(default=30.0, validator=values.at_least(0))
    threads: int | None = attrs.field(default=None, validator=values.at_least(1, 4096))
    default_models: tuple[DefaultModel, ...] = ()
    hf_cache: Path | None = None
    offline: bool = False
    hub_endpoint: str | None = attrs.field(default=None, validator=values.http_url)
    state_directory: Path = Path("~/.local/state/cortex")
    source: Path | None = attrs.field(default=None, metadata=NOT_A_KEY)
    warnings: tuple[str, ...] = attrs.field(default=(), metadata=NOT_A_KEY)

    def __attrs_post_init__(self) -> None:
        object.__setattr__(self, "state_directory", self.state_directory.expanduser())
        seen: set[str] = set()
        for index, model in enumerate(self.default_models):
            if model.model_id in seen:
                raise Invalid(
                    f"a model {model.model_id!r} is listed before",
                    f"default_models[{index}].model_id",
                )
            seen.add(model.model_id)
