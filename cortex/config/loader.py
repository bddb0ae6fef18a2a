"""Files and environment to configurations. The environment wins over the file.

There is no search: a file is read when it is named (by a flag, or by ``CORTEX_CONFIG`` and
``NEURON_CONFIG``), and it must be there then. Without one the defaults and the environment hold.
The one exception is the catalogue: models.toml beside cortex.toml is read when it exists.
"""

from __future__ import annotations

import tomllib
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any, TypeVar

import attrs

from cortex.config import legacy
from cortex.config.catalogue import Catalogue, CatalogueFile
from cortex.config.environment import Overlay, overlay
from cortex.config.errors import ConfigError as ConfigError
from cortex.config.errors import Invalid, unknown
from cortex.config.gateway import CORTEX, GatewayConfig, NeuronNode
from cortex.config.neuron import DefaultModel, NeuronConfig, is_local_path
from cortex.config.structure import structure
from cortex.config.values import join_listen, split_listen

T = TypeVar("T")

MODELS_FILE = "models.toml"
NEURON_LISTEN = "127.0.0.1:13131"
TOKEN_LIMIT = 4096  # bytes of a token file

GATEWAY_VARIABLES = frozenset({"CORTEX_NEURONS", "CORTEX_NEURON_TOKEN"})
NEURON_VARIABLES = frozenset({"NEURON_DEFAULT_MODELS"})


def load_gateway(path: Path | None, environ: Mapping[str, str]) -> GatewayConfig:
    """The gateway's configuration from *path*, or ``$CORTEX_CONFIG``, and *environ*.

    ``CORTEX_NEURONS`` (``name=url,name2=url2``) stands in for the file's neurons;
    ``CORTEX_NEURON_TOKEN`` is the token of every neuron that has none of its own, but of no server
    of another make, which would learn it.
    """
    path = _named(path, "CORTEX_CONFIG", environ)
    table = read_toml(path) if path else {}
    warnings = _translate(table, legacy.GATEWAY, path)
    _anchor(table, path, "models_config")
    _anchor_each([table.get("gateway")], path, "tls_certificate", "tls_key")
    _anchor_each(table.get("neurons"), path, "token_file")
    variables = overlay(table, GatewayConfig, "CORTEX_", environ, reserved=GATEWAY_VARIABLES)
    listed = environ.get("CORTEX_NEURONS", "")
    if listed:
        table["neurons"] = _neurons_listed(listed)
        variables.origins["neurons"] = "CORTEX_NEURONS"
    config = _structure(table, GatewayConfig, path, variables)
    if not config.neurons:
        warnings.append("there are no neurons: no model can be served")
    token = environ.get("CORTEX_NEURON_TOKEN") or None
    nodes = _checked(
        lambda: tuple(_with_own_token(node, index) for index, node in enumerate(config.neurons)),
        _place(path),
    )
    nodes = _checked(
        lambda: tuple(_with_token(node, token) for node in nodes),
        "environment variable CORTEX_NEURON_TOKEN",
    )
    models = config.models_config
    if models is None and path is not None and (path.parent / MODELS_FILE).is_file():
        models = path.parent / MODELS_FILE
    return attrs.evolve(
        config,
        neurons=nodes,
        models_config=models,
        source=path,
        warnings=(*warnings, *variables.warnings),
    )


def load_catalogue(config: GatewayConfig) -> Catalogue:
    """The catalogue *config* points to; empty where it points to none."""
    if config.models_config is None:
        return Catalogue()
    catalogue = read_catalogue(config.models_config)
    names = {node.name for node in config.neurons}
    strays = [
        f"{config.models_config}: pinned_on of {entry.id}: "
        + unknown(f"neuron {name!r}", name, names)
        for entry in catalogue.models.values()
        for name in entry.pinned_on
        if name not in names
    ]
    return attrs.evolve(catalogue, warnings=(*catalogue.warnings, *strays))


def read_catalogue(path: Path) -> Catalogue:
    """The models and aliases in *path*."""
    table = read_toml(path)
    warnings = _translate(table, legacy.CATALOGUE, path)
    file = _structure(table, CatalogueFile, path, Overlay())
    return _checked(lambda: Catalogue(file.models, file.aliases, tuple(warnings)), str(path))


def load_neuron(path: Path | None, environ: Mapping[str, str]) -> NeuronConfig:
    """The neuron's configuration from *path*, or ``$NEURON_CONFIG``, and *environ*.

    ``NEURON_DEFAULT_MODELS`` (``id,id2``, or folders) stands in for the file's default models.
    """
    path = _named(path, "NEURON_CONFIG", environ)
    table = read_toml(path) if path else {}
    warnings = _translate(table, legacy.NEURON, path)
    if "port" in table and "listen" not in table:
        warnings.append('port without listen is bound to 127.0.0.1; for all: listen = "0.0.0.0"')
    _checked(lambda: _fold_port(table, replace=False), str(path))
    _anchor(table, path, "token_file", "hf_cache", "state_directory")
    _anchor_sources(table, path)
    variables = overlay(
        table, NeuronConfig, "NEURON_", environ, extra={"port": int}, reserved=NEURON_VARIABLES
    )
    _checked(lambda: _fold_port(table, replace=True), "environment variable NEURON_PORT")
    table.setdefault("state_directory", str(state_directory(environ)))
    config = _structure(table, NeuronConfig, path, variables)
    return _checked(
        lambda: attrs.evolve(
            config,
            token=_token(config, variables),
            default_models=_default_models(config, environ),
            source=path,
            warnings=(*warnings, *variables.warnings),
        ),
        _place(path),
    )


def state_directory(environ: Mapping[str, str]) -> Path:
    """Where a role keeps what must survive it: systemd's choice, else the user's."""
    from_systemd = environ.get("STATE_DIRECTORY", "").split(":")[0]
    if from_systemd:
        return Path(from_systemd)
    home = environ.get("XDG_STATE_HOME", "")
    base = (
        Path(home)
        if home.startswith("/")
        else Path(environ.get("HOME") or Path.home(), ".local/state")
    )
    return base / "cortex"


def read_toml(path: Path) -> dict[str, Any]:
    """The tables of *path*; ConfigError when it is not there or is no TOML."""
    try:
        return tomllib.loads(path.read_bytes().decode("utf-8"))
    except OSError as exc:
        raise ConfigError(f"{path}: {exc.strerror or exc}") from None
    except (UnicodeDecodeError, RecursionError):
        raise ConfigError(f"{path}: is no TOML in UTF-8") from None
    except tomllib.TOMLDecodeError as exc:
        raise ConfigError(f"{path}: {' '.join(str(exc).split())}") from None


def _named(path: Path | None, variable: str, environ: Mapping[str, str]) -> Path | None:
    if path is None and environ.get(variable):
        path = Path(environ[variable])
    return path.expanduser() if path else None


def _place(path: Path | None) -> str:
    return str(path) if path else "configuration"


def _checked(build: Callable[[], T], place: str) -> T:
    try:
        return build()
    except Invalid as invalid:
        where = f"{place}: {invalid.path}" if invalid.path else place
        raise ConfigError(f"{where}: {invalid}") from None


def _translate(
    table: dict[str, Any], rules: tuple[legacy.Rule, ...], path: Path | None
) -> list[str]:
    warnings = _checked(lambda: legacy.translate(table, rules), _place(path))
    return [f"{path}: {warning}" for warning in warnings]


def _structure(table: dict[str, Any], cls: type[T], path: Path | None, variables: Overlay) -> T:
    """*table* as a *cls*; an error names the variable that set the value, or else the file."""
    try:
        return structure(table, cls)
    except Invalid as invalid:
        variable = variables.origins.get(invalid.path.partition("[")[0])
        if variable:
            raise ConfigError(f"environment variable {variable}: {invalid}") from None
        raise ConfigError(f"{_place(path)}: {invalid.path or 'file'}: {invalid}") from None


def _anchor(table: dict[str, Any], path: Path | None, *keys: str) -> None:
    """Make *keys*' relative paths relative to the folder of the file they are written in."""
    for key in keys:
        value = table.get(key)
        if path is not None and type(value) is str and value and not value.startswith("~"):
            table[key] = str(path.parent / value)


def _anchor_each(tables: Any, path: Path | None, *keys: str) -> None:
    """The same in each of an array of tables."""
    for table in tables if isinstance(tables, list) else []:
        if isinstance(table, dict):
            _anchor(table, path, *keys)


def _anchor_sources(table: dict[str, Any], path: Path | None) -> None:
    models = table.get("default_models")
    for model in models if isinstance(models, list) else []:
        if isinstance(model, dict) and is_local_path(str(model.get("source", ""))):
            model["source"] = str(Path(model["source"]).expanduser())
            _anchor(model, path, "source")


def _neurons_listed(text: str) -> list[dict[str, str]]:
    nodes: list[dict[str, str]] = []
    for item in filter(None, (part.strip() for part in text.split(","))):
        name, equals, endpoint = item.partition("=")
        if not equals:
            raise ConfigError(
                f"environment variable CORTEX_NEURONS: expected name=url,…, got {item!r}"
            )
        nodes.append({"name": name.strip(), "endpoint": endpoint.strip()})
    return nodes


def _with_own_token(node: NeuronNode, index: int) -> NeuronNode:
    """*node* with the token that its file holds, where it names one."""
    if node.token_file is None:
        return node
    where = f"neurons[{index}].token_file"
    if node.token is not None:
        raise Invalid("token is given too; keep one of the two", where)
    return attrs.evolve(node, token=_token_in(node.token_file, where))


def _with_token(node: NeuronNode, token: str | None) -> NeuronNode:
    common = token if node.kind == CORTEX else None
    return attrs.evolve(node, endpoint=node.endpoint.rstrip("/"), token=node.token or common)


def _fold_port(table: dict[str, Any], *, replace: bool) -> None:
    """Turn ``port`` into the port of ``listen``; *replace* one that is there already."""
    listen = table.get("listen")
    if "port" not in table or type(listen) not in (str, type(None)):
        return
    port = table.pop("port")
    if type(port) is not int or not 0 <= port <= 65535:
        raise Invalid(f"expected a port (0 to 65535), got {port!r}", "port")
    host, listed = split_listen(listen or NEURON_LISTEN)
    if listen and listed not in (None, port) and not replace:
        raise Invalid(f"listen says {listed}; keep one of the two", "port")
    table["listen"] = join_listen(host, port)


def _token(config: NeuronConfig, variables: Overlay) -> str | None:
    """The token, read from its file where it is in one. A variable wins over the file's keys."""
    path = config.token_file
    if path is None or ("token" in variables.origins and "token_file" not in variables.origins):
        return config.token
    if config.token is not None and "token_file" not in variables.origins:
        raise Invalid("token is given too; keep one of the two", "token_file")
    return _token_in(path, "token_file")


def _token_in(path: Path, where: str) -> str:
    """The token that the file *path* holds; *where* is the key that names it."""
    try:
        with path.open("rb") as file:
            token = file.read(TOKEN_LIMIT).decode("ascii").strip()
    except OSError as exc:
        raise Invalid(f"{path}: {exc.strerror or exc}", where) from None
    except UnicodeDecodeError:
        raise Invalid(f"{path}: a token is visible ASCII characters", where) from None
    if not token:
        raise Invalid(f"{path} is empty", where)
    return token


def _default_models(config: NeuronConfig, environ: Mapping[str, str]) -> tuple[DefaultModel, ...]:
    names = environ.get("NEURON_DEFAULT_MODELS", "")
    if not names:
        return config.default_models
    return tuple(DefaultModel.named(n.strip()) for n in names.split(",") if n.strip())
