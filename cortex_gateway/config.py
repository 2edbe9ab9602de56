"""What an operator may write in cortex.toml, models.toml and CORTEX_A__B; reads files at start, knows no fleet."""

import os
import pathlib
import tomllib
from collections.abc import Callable, Mapping
from typing import Any, Literal, TypeVar

from attrs import Attribute, evolve, field, frozen
from attrs.validators import ge, min_len

from cortex_gateway.origins import is_host, is_origin
from cortex_gateway.placement.snapshot import Cost, Limit, ModelConfig
from cortex_gateway.settings import HIDDEN, NESTED, At, ConfigError, Reader, variables
from neuron_jax.common.addresses import parse_address, parse_url
from neuron_jax.common.tls import TlsFileError, client_context, server_context
from neuron_jax.common.variables import unused

DEFAULT_PLACES = (pathlib.Path("cortex.toml"), pathlib.Path("/etc/cortex/cortex.toml"))
T = TypeVar("T", "GatewayConfig", "Neuron")
ENV_PREFIX = "CORTEX_"
STATE_FILE = "cortex-state.db"
ANSWERS_FILE = "cortex-answers.db"
OTHER_VARIABLES = (
    "CORTEX_API_KEY",  # the commands of `cortex`
    "CORTEX_CACHE",  # `cortex up`, and neurons
    "CORTEX_ENDPOINT",  # the commands of `cortex`
    "CORTEX_NATIVE",  # neurons
    "CORTEX_THREADS",  # the same, set for an engine by its configuration
    "CORTEX_URL",  # the notebooks
)
"""What is no setting of the gateway, and is set with reason: all of it, in one list."""
REMOVED = {
    "entitlements": "keys are no longer written here: make each with `cortex keys add NAME` (a rolling budget is "
    "--tokens-per-minute; a balance has no counterpart), write [auth] required = true for require_auth = true, remove this",
    "upstream": "an upstream authority is not in this release: remove it",
}

__all__ = [
    "AnswersConfig",
    "Auth",
    "Config",
    "ConfigError",
    "Cost",
    "EvictionConfig",
    "GatewayConfig",
    "Limit",
    "ModelConfig",
    "Neuron",
    "find_config",
    "load_config",
    "state_path",
    "unused_variables",
]


def _address(_: object, __: "Attribute[str]", value: str) -> None:
    parse_address(value)


def _url(_: object, __: "Attribute[str]", value: str) -> None:
    parse_url(value)


def _hosts(_: object, __: "Attribute[tuple[str, ...]]", value: tuple[str, ...]) -> None:
    if not all(map(is_host, value)):
        raise ValueError('each must be a name without a port, as "llm.example.com"; "*" is any')


def _origins(_: object, __: "Attribute[tuple[str, ...]]", value: tuple[str, ...]) -> None:
    if not all(map(is_origin, value)):
        raise ValueError('each must be as a browser writes it, as "https://chat.example.com:8080"; "*" is any')


@frozen(kw_only=True)
class GatewayConfig:
    """[gateway]: where the program listens and how long it is patient."""

    listen: str = field(default="127.0.0.1:31313", validator=_address)  # host:port of the API
    metrics_listen: str = field(default="127.0.0.1:31314", validator=_address)  # host:port of /metrics
    hosts: tuple[str, ...] = field(default=(), validator=_hosts)  # other names that the control routes answer to
    origins: tuple[str, ...] = field(default=(), validator=_origins)  # other web pages that may call it
    max_body_mb: int = field(default=32, validator=ge(1))  # a larger request body is refused with 413
    wait_secs: float = field(default=600.0, validator=ge(0))  # a request may queue this long for room on a node
    max_waiting: int = field(default=256, validator=ge(1))  # requests that may queue at once
    load_timeout_secs: float = field(default=1800.0, validator=ge(1))  # one load, download included
    watch_secs: float = field(default=2.0, validator=ge(0.05))  # between two looks at a node
    look_timeout_secs: float = field(default=5.0, validator=ge(0.05))  # a look without an answer for so long is missed
    read_timeout_secs: float = field(default=60.0, validator=ge(0.1))  # between two pieces of a request, before 408
    write_timeout_secs: float = field(default=60.0, validator=ge(0.1))  # that a client takes nothing of its answer
    drain_secs: float = field(default=30.0, validator=ge(0))  # running requests get this long at shutdown and unload
    neuron_secret: str | None = field(default=None, repr=False, metadata=HIDDEN)  # of neurons without one of their own
    neuron_secret_file: str | None = None
    tls_cert: str | None = None  # PEM files of the API's certificate and key, relative to cortex.toml
    tls_key: str | None = None
    metrics_tls: bool = False  # the same for /metrics


@frozen(kw_only=True)
class EvictionConfig:
    """[eviction]: who leaves when a model does not fit, and when a node's engines are started afresh."""

    strategy: Literal["lru", "priority"] = "lru"
    defrag_after_cycles: int = field(
        default=0, validator=ge(0)
    )  # unloads on a node before its engines restart; 0 = never


@frozen(kw_only=True)
class Auth:
    """[auth]: who is asked for a key. The keys are in the database at `state`, made by `cortex keys add`."""

    required: bool | None = None  # inference needs a key; None = it does not, and where others reach it that is told
    metrics: bool = False  # /metrics needs a key of scope admin
    state: str | None = None  # path of the database, relative to this file; None = see `state_path`


@frozen(kw_only=True)
class AnswersConfig:
    """[answers]: what /v1/responses keeps, beside the database of keys."""

    keep_hours: float = field(default=720.0, validator=ge(0))  # since an answer was last used
    max_mb: int = field(default=512, validator=ge(1))  # of all keys' together


@frozen(kw_only=True)
class Neuron:
    """[[neurons]]: one host of the fleet."""

    name: str = field(validator=min_len(1))
    endpoint: str = field(validator=_url, converter=parse_url)  # http://host:port
    secret: str | None = field(default=None, repr=False, metadata=HIDDEN)  # what it wants to be shown
    secret_file: str | None = None
    tls_ca: str | None = None  # PEM: who signed its certificate, where the system does not know
    tls_cert: str | None = None  # PEM: what it is shown, where it asks for a certificate
    tls_key: str | None = None


@frozen(kw_only=True)
class CortexToml:
    """cortex.toml as it stands."""

    models_config: str | None = None  # path of models.toml, relative to this file
    gateway: GatewayConfig = GatewayConfig()
    eviction: EvictionConfig = EvictionConfig()
    auth: Auth = Auth()
    answers: AnswersConfig = AnswersConfig()
    neurons: tuple[Neuron, ...] = ()


@frozen(kw_only=True)
class ModelsToml:
    """models.toml as it stands."""

    models: tuple[ModelConfig, ...] = ()
    aliases: Mapping[str, str] = field(factory=dict)  # name -> id, one step only


@frozen(kw_only=True)
class Config:
    """Everything the gateway was told, checked and merged. `state` is where its database is; None = it has none."""

    gateway: GatewayConfig = GatewayConfig()
    eviction: EvictionConfig = EvictionConfig()
    auth: Auth = Auth()
    answers: AnswersConfig = AnswersConfig()
    state: pathlib.Path | None = None
    neurons: tuple[Neuron, ...] = (Neuron(name="local", endpoint="http://127.0.0.1:13131"),)
    models: tuple[ModelConfig, ...] = ()
    aliases: Mapping[str, str] = field(factory=dict)

    @property
    def answers_path(self) -> pathlib.Path | None:
        """Where answers are kept, in a database of their own; None = in memory."""
        return None if self.state is None else self.state.with_name(ANSWERS_FILE)


def find_config(path: pathlib.Path | None, places: tuple[pathlib.Path, ...] = DEFAULT_PLACES) -> pathlib.Path | None:
    """The file to read: the one named, else the first default place that exists, else None (defaults only)."""
    if path is not None:
        return path
    return next((place for place in places if place.is_file()), None)


def load_config(path: pathlib.Path | None, environ: Mapping[str, str]) -> Config:
    """Read and check everything. Raises ConfigError that lists every problem with file, key, found and allowed."""
    reader = Reader(removed=REMOVED)
    at = At(str(path) if path else "defaults")
    table = _parse(path) if path else {}
    top = reader.read(CortexToml, reader.with_environment(CortexToml, table, ENV_PREFIX, environ), at)
    reader.finish()
    models = _read_models(top, path, reader)
    if path and not top.neurons:
        reader.complain(
            at.key("neurons"), 'needs at least one [[neurons]] with name and endpoint = "http://host:13131"'
        )
    neurons = _with_secrets(top.gateway, top.neurons or Config().neurons, path, reader)
    reader.unique(at.key("neurons.name"), [neuron.name for neuron in neurons])
    folder = path.parent if path else pathlib.Path()
    gateway = _checked_gateway(top.gateway, at.key("gateway"), folder, reader)
    neurons = tuple(
        _checked_neuron(one, at.key("neurons").item(index), folder, reader) for index, one in enumerate(neurons)
    )
    reader.finish()
    return Config(
        gateway=gateway,
        eviction=top.eviction,
        auth=top.auth,
        answers=top.answers,
        state=state_path(top.auth.state, path, environ),
        neurons=neurons,
        models=models.models,
        aliases=dict(models.aliases),
    )


def _with_secrets(
    gateway: GatewayConfig, neurons: tuple[Neuron, ...], path: pathlib.Path | None, reader: Reader
) -> tuple[Neuron, ...]:
    """Each neuron with the secret that it is shown: its own, else that of [gateway]."""
    at, folder = At(str(path) if path else "defaults"), path.parent if path else pathlib.Path()
    common = reader.secret(
        at.key("gateway"), "neuron_secret", gateway.neuron_secret, gateway.neuron_secret_file, folder
    )
    found = []
    for index, one in enumerate(neurons):
        here = at.key("neurons").item(index)
        own = reader.secret(here, "secret", one.secret, one.secret_file, folder)
        found.append(evolve(one, secret=own or common))
        if any(other.secret != found[-1].secret for other in found if _same_place(other, one)):
            reader.complain(here.key("secret"), f"is not that of another neuron at the same address, {one.endpoint}")
    return tuple(found)


def _checked_gateway(gateway: GatewayConfig, at: At, folder: pathlib.Path, reader: Reader) -> GatewayConfig:
    """With the paths of its TLS files as they are opened, and each of them looked at."""
    found = _with_paths(gateway, folder, "tls_cert", "tls_key")
    cert = found.tls_cert
    if cert is None:
        for name in ("tls_key", "metrics_tls"):
            if getattr(found, name):
                reader.complain(at.key(name), "needs tls_cert beside it")
        return found
    _look(reader, at, lambda: server_context(cert, found.tls_key))
    return found


def _checked_neuron(neuron: Neuron, at: At, folder: pathlib.Path, reader: Reader) -> Neuron:
    names = ("tls_ca", "tls_cert", "tls_key")
    found = _with_paths(neuron, folder, *names)
    named = [name for name in names if getattr(found, name)]
    if named and not found.endpoint.startswith("https://"):
        reader.complain(at.key(named[0]), f"is for an https:// endpoint; it is {found.endpoint}")
    elif found.tls_key and not found.tls_cert:
        reader.complain(at.key("tls_key"), "needs tls_cert beside it")
    elif named:
        _look(reader, at, lambda: client_context(found.tls_ca, found.tls_cert, found.tls_key))
    return found


def _with_paths(record: T, folder: pathlib.Path, *names: str) -> T:
    named = {name: getattr(record, name) for name in names if getattr(record, name)}
    changes: dict[str, Any] = {name: str(folder / pathlib.Path(file).expanduser()) for name, file in named.items()}
    return evolve(record, **changes)


def _look(reader: Reader, at: At, open_files: Callable[[], object]) -> None:
    try:
        open_files()
    except TlsFileError as error:
        reader.complain(at.key(f"tls_{error.which}"), str(error))


def _same_place(one: Neuron, other: Neuron) -> bool:
    return one.endpoint.split("/")[:3] == other.endpoint.split("/")[:3]


def state_path(told: str | None, config: pathlib.Path | None, environ: Mapping[str, str]) -> pathlib.Path:
    """Where the database is: as told, else beside the config file, else in the user's folder for state.

    Source: XDG Base Directory Specification, XDG_STATE_HOME, which counts only when it is absolute.
    """
    if told is not None or config is not None:
        folder = config.parent if config else pathlib.Path(os.curdir)
        return (folder / pathlib.Path(told or STATE_FILE).expanduser()).absolute()
    home = pathlib.Path(environ.get("XDG_STATE_HOME", ""))
    return (home if home.is_absolute() else pathlib.Path.home() / ".local" / "state") / "cortex" / STATE_FILE


def unused_variables(environ: Mapping[str, str], *, serving: bool = True) -> list[str]:
    """A line for each CORTEX_ variable that sets nothing; with `serving` off (`cortex up`) settings set nothing, too."""
    if serving:
        return unused(environ, ENV_PREFIX, variables(CortexToml, ENV_PREFIX), OTHER_VARIABLES)
    ignored = [name for name in sorted(environ) if name.startswith(ENV_PREFIX) and NESTED in name]
    return [
        *unused(environ, ENV_PREFIX, (), OTHER_VARIABLES),
        *(f"environment: {name} is not used: only `cortex serve` is configured" for name in ignored),
    ]


def _parse(path: pathlib.Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as error:
        raise ConfigError([f"{path}: cannot be read: {error.strerror}"]) from error
    except (tomllib.TOMLDecodeError, UnicodeDecodeError) as error:
        raise ConfigError([f"{path}: not valid TOML: {error}"]) from error


def _read_models(top: CortexToml, path: pathlib.Path | None, reader: Reader) -> ModelsToml:
    """models.toml, its names checked against each other and its pins against the nodes."""
    if top.models_config is None:
        return ModelsToml()
    file = (path.parent if path else pathlib.Path(os.curdir)) / pathlib.Path(top.models_config).expanduser()
    at = At(str(file))
    read = reader.read(ModelsToml, _parse(file), at)
    reader.finish()
    ids = [model.id for model in read.models]
    nodes = [neuron.name for neuron in top.neurons or Config().neurons]
    reader.unique(at.key("models.id"), ids)
    for alias, target in read.aliases.items():
        _check_alias(reader, at.key("aliases").key(alias), alias in ids, target if target in read.aliases else None)
    for index, model in enumerate(read.models):
        here = at.key("models").item(index)
        for pin in set(model.pinned_on) - set(nodes):
            reader.unknown(here.key("pinned_on"), pin, nodes)
        _check_hosts(reader, here, model, nodes)
    return read


def _check_hosts(reader: Reader, at: At, model: ModelConfig, nodes: list[str]) -> None:
    reader.unique(at.key("hosts"), list(model.hosts))
    for host in sorted(set(model.hosts) - set(nodes)):
        reader.unknown(at.key("hosts"), host, nodes)
    for pin in sorted(set(model.pinned_on) & set(nodes) - set(model.hosts)) if model.hosts else ():
        reader.unknown(at.key("pinned_on"), pin, model.hosts)


def _check_alias(reader: Reader, at: At, shadows: bool, chained: str | None) -> None:
    if shadows:
        reader.complain(at, "is the id of a model as well; an alias needs a name of its own")
    if chained is not None:
        reader.complain(at, f'found "{chained}", which is an alias; name the model id itself')
