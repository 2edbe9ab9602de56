"""What a neuron can be told: TOML, then NEURON_A__B variables, as frozen records; must not know HTTP, JAX or models.

This is the only module that reads the environment, and it gets it as an argument. A variable names a key
(`NEURON_SERVER__PORT=13131`, `NEURON_DEFAULT_MODELS__0__MODEL_ID=demo`), or a whole table or list in TOML
(`NEURON_PEERS='[{name = "a", endpoint = "http://a:13131"}]'`). Other programs use the same prefix, and orchestrators set
NEURON_PORT for a service of that name: what sets nothing here is told, and stops nothing.
"""

import difflib
import re
import tomllib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
from attrs import field, frozen

from neuron_jax.common.addresses import parse_host, parse_url
from neuron_jax.common.tls import TlsFileError, client_context, server_context
from neuron_jax.common.variables import unused
from neuron_jax.errors import ConfigError

PREFIX = "NEURON_"
HARNESSES = ("jax", "candle")
"""`candle` is what a predecessor's files say; models are served by JAX either way."""

T = TypeVar("T")
S = TypeVar("S", "AccessConfig", "PeerConfig")
R = TypeVar("R", "ServerConfig", "PeerConfig")


@frozen
class ValueRule:
    """What one value may be: `read` takes a TOML value or raises ValueError, `parse` makes one of a variable's text.

    `explains`: the words of the ValueError say what is wrong, and they are told instead of `allowed`. `hidden`: what was
    found is in no message.
    """

    allowed: str
    read: Callable[[Any], Any]
    parse: Callable[[str], Any] = str
    explains: bool = False
    hidden: bool = False


def _integer(low: int, high: int) -> ValueRule:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high:
            raise ValueError(value)
        return value

    return ValueRule(f"an integer from {low} to {high}", read, int)


def _power(low: int, high: int) -> ValueRule:
    def read(value: Any) -> int:
        if type(value) is not int or not low <= value <= high or value & (value - 1):
            raise ValueError(value)
        return value

    return ValueRule(f"a power of two from {low} to {high}", read, int)


def _number(low: float, high: float) -> ValueRule:
    def read(value: Any) -> float:
        if type(value) not in (int, float) or not low <= value <= high:
            raise ValueError(value)
        return float(value)

    return ValueRule(f"a number from {low:g} to {high:g}", read, float)


def _text(value: Any) -> str:
    if type(value) is not str or not value.strip():
        raise ValueError(value)
    return value


def _secret(value: Any) -> str:
    if type(value) is not str or not re.fullmatch(r"[!-~]([ -~]*[!-~])?", value):
        raise ValueError
    return value


def _path(value: Any) -> Path:
    return Path(_text(value)).expanduser()


def _parsed(parse: Callable[[str], str]) -> Callable[[Any], str]:
    """Of a text alone; the ValueError of `parse` has the words."""

    def read(value: Any) -> str:
        if type(value) is not str:
            raise ValueError("must be a text")
        return parse(value)

    return read


def _one_of(*names: str) -> ValueRule:
    def read(value: Any) -> str:
        if value not in names:
            raise ValueError(value)
        return cast("str", value)

    return ValueRule("one of " + ", ".join(names), read)


def _texts(value: Any) -> tuple[str, ...]:
    if type(value) is not list:
        raise ValueError(value)
    return tuple(_text(item) for item in value)


def _indices(value: Any) -> tuple[int, ...]:
    if type(value) is not list or not value or len(set(value)) != len(value):
        raise ValueError(value)
    return tuple(_integer(0, 1023).read(item) for item in value)


def _flag(value: Any) -> bool:
    if type(value) is not bool:
        raise ValueError(value)
    return value


TEXT = ValueRule("a text that is not empty", _text)
HOST = ValueRule("a name or an IP address", _parsed(parse_host), explains=True)
ENDPOINT = ValueRule("a URL like http://host:13131", _parsed(parse_url), explains=True)
FLAG = ValueRule("true or false", _flag, lambda text: {"true": True, "false": False}.get(text.lower(), text))
PATH = ValueRule("a path", _path)
A_FILE = {"rule": PATH}
"""The metadata of a file that may be named, relative to the configuration."""
SECRET = ValueRule("a word of visible ASCII characters", _secret, hidden=True)
MEGABYTES = _integer(0, 2**31)
TEXTS = ValueRule("a list of texts", _texts, lambda text: text.split(","))
INDICES = ValueRule(
    "a list of different device indices", _indices, lambda text: [int(item) for item in text.split(",")]
)


def _setting(rule: ValueRule, default: Any = attrs.NOTHING) -> Any:
    return field(default=default, metadata={"rule": rule}, kw_only=True, repr=not rule.hidden)


@frozen
class AccessConfig:
    """Who may use this neuron, at the top of the file. `secret` is what callers show, read from `secret_file` where that
    is named; without one, `trust_network` lets other hosts load and unload models."""

    secret: str = _setting(SECRET, "")
    secret_file: Path | None = field(default=None, metadata=A_FILE, kw_only=True)
    trust_network: bool = _setting(FLAG, False)


@frozen
class ServerConfig:
    """Where the daemon listens. `drain_secs` is how long work in flight may take to end at shutdown.

    `allowed_hosts`: names it answers to besides IP addresses and local ones; `allowed_origins`: web pages that may ask it.
    `tls_*`: PEM files; with `tls_client_ca` whoever connects needs a certificate that it signed.
    """

    host: str = _setting(HOST, "127.0.0.1")
    port: int = _setting(_integer(0, 65535), 13131)
    max_body_mb: int = _setting(_integer(1, 1024), 32)
    drain_secs: float = _setting(_number(0, 3600), 30.0)
    allowed_hosts: tuple[str, ...] = _setting(TEXTS, ())
    allowed_origins: tuple[str, ...] = _setting(TEXTS, ())
    tls_cert: Path | None = field(default=None, metadata=A_FILE, kw_only=True)
    tls_key: Path | None = field(default=None, metadata=A_FILE, kw_only=True)
    tls_client_ca: Path | None = field(default=None, metadata=A_FILE, kw_only=True)


@frozen
class CacheConfig:
    """Where fetched models and compiled programs stay."""

    models_dir: Path = field(metadata={"rule": PATH}, kw_only=True)
    compile_dir: Path = field(metadata={"rule": PATH}, kw_only=True)


@frozen
class EngineConfig:
    """Limits of every engine process; 0 leaves a number to the memory plan. Megabytes are MiB."""

    kv_mb: int = _setting(MEGABYTES, 0)
    memory_mb: int = _setting(MEGABYTES, 0)
    max_context: int = _setting(_integer(0, 2**31), 0)
    max_slots: int = _setting(_integer(0, 4096), 0)
    chunk_tokens: int = _setting(_integer(0, 2**20), 0)
    decode_steps: int = _setting(_integer(0, 64), 0)
    speculate: int = _setting(_integer(-1, 64), -1)
    page_size: int = _setting(_power(1, 128), 16)
    prefix_cache: bool = _setting(FLAG, True)
    min_free_mb: int = _setting(_integer(-1, 2**31), -1)
    cpu_devices: int = _setting(_integer(1, 64), 1)
    threads: int = _setting(_integer(0, 1024), 0)


@frozen
class AdmissionConfig:
    """The bounded queue in front of every model: how many may wait, and for how many seconds."""

    max_queue_depth: int = _setting(_integer(0, 100_000), 32)
    max_wait_secs: float = _setting(_number(0, 86_400), 120.0)


@frozen
class RanksConfig:
    """Devices lent to other neurons' models, and borrowed from them. `address` is this host as its peers reach it.

    `secret`: the neuron's own where it is left out; with neither nothing is lent or borrowed. Ranks have `deadline_secs` to
    meet.
    """

    address: str = _setting(HOST, "127.0.0.1")
    secret: str = _setting(SECRET, "")
    deadline_secs: float = _setting(_number(1, 3600), 60.0)


@frozen
class WatchdogConfig:
    """What counts as hung, in seconds: a step, besides 20 times what it usually takes; the first run of a program; a
    process that says nothing."""

    step_secs: float = _setting(_number(0.1, 86_400), 30.0)
    first_step_secs: float = _setting(_number(0.1, 86_400), 300.0)
    silent_secs: float = _setting(_number(1, 86_400), 10.0)


@frozen
class PeerConfig:
    """Another neuron that may lend devices to models which this one leads. `secret`: what it wants, by default ours.

    `tls_ca`: PEM file of who signed its certificate; `tls_cert`, `tls_key`: ours, where it asks for one.
    """

    name: str = _setting(TEXT)
    endpoint: str = _setting(ENDPOINT)
    secret: str = _setting(SECRET, "")
    secret_file: Path | None = field(default=None, metadata=A_FILE, kw_only=True)
    tls_ca: Path | None = field(default=None, metadata=A_FILE, kw_only=True)
    tls_cert: Path | None = field(default=None, metadata=A_FILE, kw_only=True)
    tls_key: Path | None = field(default=None, metadata=A_FILE, kw_only=True)


@frozen
class ModelSpec:
    """One model as a load request, `[[models]]` or `[[default_models]]` names it (docs/wire.md section 1)."""

    model_id: str = _setting(TEXT)
    source: str | None = _setting(TEXT, None)
    harness: str = _setting(_one_of(*HARNESSES), "jax")
    quant: str = _setting(_one_of("auto", "none", "stored", "int8", "int4", "fp8"), "auto")
    kv_dtype: str = _setting(_one_of("auto", "float32", "bfloat16", "int8", "fp8"), "auto")
    deterministic: bool = _setting(FLAG, False)
    tensor_parallel: int = _setting(_integer(1, 64), 1)
    ranks: str = _setting(_one_of("host", "device"), "host")
    hosts: tuple[str, ...] = _setting(TEXTS, ())
    devices: tuple[int, ...] | None = _setting(INDICES, None)
    max_context: int | None = _setting(_integer(1, 2**31), None)
    kv_mb: int | None = _setting(_integer(1, 2**31), None)
    memory_mb: int | None = _setting(_integer(1, 2**31), None)
    replicas: int = _setting(_integer(1, 64), 1)
    aliases: tuple[str, ...] = _setting(TEXTS, ())


@frozen
class NeuronConfig:
    """Everything a neuron is told at start. `models` is what the host offers, `default_models` is loaded at start.

    `environ` is the environment that engine processes inherit, without our secrets; it may hold others, so it is never shown.
    """

    cache: CacheConfig
    access: AccessConfig = AccessConfig()
    server: ServerConfig = ServerConfig()
    engine: EngineConfig = EngineConfig()
    admission: AdmissionConfig = AdmissionConfig()
    ranks: RanksConfig = RanksConfig()
    watchdog: WatchdogConfig = WatchdogConfig()
    peers: tuple[PeerConfig, ...] = ()
    models: tuple[ModelSpec, ...] = ()
    default_models: tuple[ModelSpec, ...] = ()
    environ: Mapping[str, str] = field(factory=dict, repr=False)


TABLES: Mapping[str, type] = {
    "server": ServerConfig,
    "cache": CacheConfig,
    "engine": EngineConfig,
    "admission": AdmissionConfig,
    "ranks": RanksConfig,
    "watchdog": WatchdogConfig,
}
LISTS = ("models", "default_models", "harnesses", "peers")
TOP = tuple(item.name for item in attrs.fields(AccessConfig))
"""Keys that stand outside all tables. `port` of the predecessor does too, but NEURON_PORT is not ours."""
SETTABLE = (*TABLES, *LISTS, *TOP)


OTHER_VARIABLES = (
    "NEURON_CC_",  # AWS Neuron
    "NEURON_COMPILE_",
    "NEURON_FRAMEWORK_",
    "NEURON_RT_",
)
"""What is no setting of ours, and is set with reason: all of it, in one list. A name with `_` at its end is a beginning."""


@frozen
class _Variable:
    """A value that came from the environment, until its rule has parsed it; `text` is no text where it was TOML."""

    name: str
    text: Any
    toml: bool = False


def cache_root(environ: Mapping[str, str]) -> Path:
    """The user's cache folder: $CORTEX_CACHE, else $XDG_CACHE_HOME/cortex, else ~/.cache/cortex."""
    if environ.get("CORTEX_CACHE"):
        return Path(environ["CORTEX_CACHE"]).expanduser()
    if environ.get("XDG_CACHE_HOME"):
        return Path(environ["XDG_CACHE_HOME"]).expanduser() / "cortex"
    home = environ.get("HOME")
    return (Path(home) if home else Path.home()) / ".cache" / "cortex"


def load_config(path: Path | None, environ: Mapping[str, str]) -> NeuronConfig:
    """Defaults, then the file at `path`, then `environ`. Raises ConfigError naming origin, key, found and allowed."""
    origin = str(path) if path else "defaults"
    tree = _read_file(path) if path else {}
    _merge_variables(tree, environ)
    folder = path.parent if path else Path()
    config = _build_config(tree, origin, cache_root(environ), folder)
    return attrs.evolve(config, environ={name: environ[name] for name in environ if not _may_hold_secrets(name)})


def read_record(cls: type[T], table: Mapping[str, Any], origin: str, prefix: str = "") -> T:
    """`table` as the attrs class `cls`. Raises ConfigError on an unknown key, a wrong value, or a missing one."""
    fields = {item.name: item for item in attrs.fields(cast("type[attrs.AttrsInstance]", cls))}
    for key in table:
        if key not in fields:
            raise _unknown_key(table[key], key, fields, origin, prefix)
    for name, item in fields.items():
        if item.default is attrs.NOTHING and name not in table:
            where = _origin_of(dict(table), origin) if all(map(_is_told_by_variable, table.values())) else origin
            raise ConfigError(f"{where}: {prefix}{name} is missing; it must be {item.metadata['rule'].allowed}")
    return cls(**{key: _value(fields[key].metadata["rule"], table[key], origin, prefix + key) for key in table})


def _read_file(path: Path) -> dict[str, Any]:
    try:
        return tomllib.loads(path.read_text("utf-8"))
    except FileNotFoundError as error:
        raise ConfigError(f"{path}: no such file") from error
    except (OSError, UnicodeDecodeError) as error:
        raise ConfigError(f"{path}: cannot be read: {error}") from error
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{path}: not TOML: {error}") from error


def unused_variables(environ: Mapping[str, str]) -> list[str]:
    """A line for each NEURON_ variable that sets nothing."""
    tables = (f"{table}__{item.name}" for table, cls in TABLES.items() for item in attrs.fields(cls))
    settings = [f"{PREFIX}{key.upper()}" for key in (*tables, *SETTABLE)]
    return unused(environ, PREFIX, settings, OTHER_VARIABLES)


def _merge_variables(tree: dict[str, Any], environ: Mapping[str, str]) -> None:
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        keys = name[len(PREFIX) :].lower().split("__")
        if len(keys) > 1:
            _put(tree, keys, _Variable(name, environ[name]))
        elif keys[0] in SETTABLE:
            value = _Variable(name, environ[name])
            tree[keys[0]] = value if keys[0] in TOP else _from_toml(value)


def _from_toml(variable: _Variable) -> Any:
    """The table or list in a variable, each value marked with where it came from."""
    try:
        return _marked(variable.name, tomllib.loads(f"value = {variable.text}")["value"])
    except tomllib.TOMLDecodeError as error:
        raise ConfigError(f"{variable.name}: not TOML: {error}") from error


def _marked(name: str, value: Any) -> Any:
    if isinstance(value, dict):
        return {key: _marked(name, item) for key, item in value.items()}
    if isinstance(value, list) and all(isinstance(item, dict) for item in value):
        return [_marked(name, item) for item in value]
    return _Variable(name, value, toml=True)


def _put(tree: dict[str, Any], keys: Sequence[str], variable: _Variable) -> None:
    node: Any = tree
    for position, key in enumerate(keys[:-1]):
        node = _child(node, key, variable, wants_list=keys[position + 1].isdigit())
    if not isinstance(node, dict) or not keys[-1]:
        raise ConfigError(f"{variable.name}: {'.'.join(keys)} is not a key of a table")
    node[keys[-1]] = variable


def _child(node: Any, key: str, variable: _Variable, *, wants_list: bool) -> Any:
    if isinstance(node, dict):
        return node.setdefault(key, [] if wants_list else {})
    if isinstance(node, list) and key.isdigit() and int(key) <= len(node):
        if int(key) == len(node):
            node.append({})
        return node[int(key)]
    raise ConfigError(f"{variable.name}: there is nothing at {key!r} to set a key of")


def _may_hold_secrets(name: str) -> bool:
    """A variable of this program or of the gateway that is nothing to a process which computes."""
    whole = ("NEURON_PEERS", "NEURON_RANKS", "CORTEX_NEURONS", "CORTEX_GATEWAY")
    return name in whole or (name.startswith((PREFIX, "CORTEX_")) and ("SECRET" in name or "KEY" in name))


def _build_config(tree: Mapping[str, Any], origin: str, root: Path, folder: Path) -> NeuronConfig:
    for key, value in tree.items():
        if key not in (*SETTABLE, "port"):
            raise _unknown_key(value, key, (*SETTABLE, "port"), origin, "")
    access = _with_secret(AccessConfig, {key: tree[key] for key in TOP if key in tree}, origin, "", folder)
    ranks = read_record(RanksConfig, _table(tree, "ranks", origin), origin, "ranks.")
    ranks = attrs.evolve(ranks, secret=ranks.secret or access.secret)
    server = dict(_table(tree, "server", origin))
    if "port" in tree and server.setdefault("port", tree["port"]) != tree["port"]:
        raise ConfigError(f"{origin}: port = {tree['port']!r} and server.port = {server['port']!r}; give one of them")
    cache = {"models_dir": str(root / "models"), "compile_dir": str(root / "compiled"), **_table(tree, "cache", origin)}
    for at, harness in _numbered(tree, "harnesses", origin):
        read_record(_Harness, harness, origin, at)
    return NeuronConfig(
        access=access,
        cache=read_record(CacheConfig, cache, origin, "cache."),
        server=_with_tls(read_record(ServerConfig, server, origin, "server."), server, origin, "server.", folder),
        engine=read_record(EngineConfig, _table(tree, "engine", origin), origin, "engine."),
        admission=read_record(AdmissionConfig, _table(tree, "admission", origin), origin, "admission."),
        ranks=ranks,
        watchdog=read_record(WatchdogConfig, _table(tree, "watchdog", origin), origin, "watchdog."),
        peers=tuple(
            _with_tls(_with_secret(PeerConfig, table, origin, at, folder), table, origin, at, folder)
            for at, table in _numbered(tree, "peers", origin)
        ),
        models=_specs(tree, "models", origin),
        default_models=_specs(tree, "default_models", origin),
    )


def _with_secret(cls: type[S], table: Mapping[str, Any], origin: str, prefix: str, folder: Path) -> S:
    """The record, with the secret that it names a file for; of a secret and a file the one in the environment counts."""
    given = {key: table[key] for key in ("secret", "secret_file") if key in table}
    told = {key: value for key, value in given.items() if isinstance(value, _Variable)} or given
    if len(told) > 1:
        raise ConfigError(f"{_origin_of(given, origin)}: {prefix}secret and {prefix}secret_file: give one of them")
    record = read_record(cls, {key: table[key] for key in table if key not in given or key in told}, origin, prefix)
    if record.secret_file is None:
        return record
    path = folder / record.secret_file
    where = f"{_origin_of(told, origin)}: {prefix}secret_file = {str(path)!r}"
    try:
        return attrs.evolve(record, secret=_secret(path.read_text("utf-8").strip()))
    except OSError as error:
        raise ConfigError(f"{where}: cannot be read: {error.strerror}") from error
    except ValueError as error:
        raise ConfigError(f"{where}: allowed in the file is {SECRET.allowed}") from error


def _with_tls(record: R, table: Mapping[str, Any], origin: str, prefix: str, folder: Path) -> R:
    """The record with the paths of its TLS files as they are opened, and each of them looked at."""
    names = [item.name for item in attrs.fields(type(record)) if item.name.startswith("tls_")]
    named = {name: folder / getattr(record, name) for name in names if getattr(record, name)}
    found = attrs.evolve(record, **named)
    if not named:
        return record
    first = next(iter(named))
    where = f"{_origin_of(table[first], origin)}: {prefix}{first}"
    if isinstance(found, PeerConfig) and not found.endpoint.startswith("https://"):
        raise ConfigError(f"{where} is for an https:// endpoint; it is {found.endpoint}")
    if found.tls_cert is None and (found.tls_key or isinstance(found, ServerConfig)):
        raise ConfigError(f"{where} needs tls_cert beside it")
    try:
        _open_tls(found)
    except TlsFileError as error:
        key = f"tls_{error.which}"
        raise ConfigError(f"{_origin_of(table[key], origin)}: {prefix}{key}: {error}") from error
    return found


def _open_tls(record: ServerConfig | PeerConfig) -> None:
    if isinstance(record, PeerConfig):
        client_context(record.tls_ca, record.tls_cert, record.tls_key)
    elif record.tls_cert:
        server_context(record.tls_cert, record.tls_key, record.tls_client_ca)


@frozen
class _Harness:
    """A predecessor's `[[harnesses]]` entry: checked, and there is only one kind of engine to choose."""

    name: str = _setting(_one_of(*HARNESSES))


def _specs(tree: Mapping[str, Any], key: str, origin: str) -> tuple[ModelSpec, ...]:
    specs = tuple(read_record(ModelSpec, table, origin, at) for at, table in _numbered(tree, key, origin))
    names = [name for spec in specs for name in (spec.model_id, *spec.aliases)]
    for name in names:
        if names.count(name) > 1:
            raise ConfigError(
                f"{origin}: {key}: the name {name!r} is given to two models; every name needs one meaning"
            )
    return specs


def _numbered(tree: Mapping[str, Any], key: str, origin: str) -> list[tuple[str, Mapping[str, Any]]]:
    """Each of the tables with what its keys begin with in messages."""
    return [(f"{key}[{index}].", table) for index, table in enumerate(_tables(tree, key, origin))]


def _table(tree: Mapping[str, Any], key: str, origin: str) -> Mapping[str, Any]:
    value = tree.get(key, {})
    if not isinstance(value, dict):
        raise ConfigError(f"{_origin_of(value, origin)}: {key} = {_found(value)}: allowed is a table [{key}]")
    return value


def _tables(tree: Mapping[str, Any], key: str, origin: str) -> Sequence[Mapping[str, Any]]:
    value = tree.get(key, [])
    if not isinstance(value, list) or not all(isinstance(item, dict) for item in value):
        raise ConfigError(f"{_origin_of(value, origin)}: {key} = {_found(value)}: allowed is tables [[{key}]]")
    return value


def _value(rule: ValueRule, value: Any, origin: str, key: str) -> Any:
    try:
        return rule.read(_parsed_by(rule, value))
    except (ValueError, TypeError) as error:
        wrong = str(error) if rule.explains else f"allowed is {rule.allowed}{_nearest(value, rule)}"
        found = "" if rule.hidden else f" = {_found(value)}"
        raise ConfigError(f"{_origin_of(value, origin)}: {key}{found}: {wrong}") from None if rule.hidden else error


def _parsed_by(rule: ValueRule, value: Any) -> Any:
    if not isinstance(value, _Variable):
        return value
    return value.text if value.toml else rule.parse(value.text)


def _nearest(value: Any, rule: ValueRule) -> str:
    names = rule.allowed.removeprefix("one of ").split(", ") if rule.allowed.startswith("one of ") else []
    close = difflib.get_close_matches(str(value.text if isinstance(value, _Variable) else value), names, 1, 0.5)
    return f"; nearest: {close[0]}" if close else ""


def _unknown_key(value: Any, key: str, known: Any, origin: str, prefix: str) -> ConfigError:
    close = difflib.get_close_matches(key, known, 1, 0.5)
    nearest = f"; nearest: {prefix}{close[0]}" if close else ""
    allowed = ", ".join(sorted(known))
    return ConfigError(f"{_origin_of(value, origin)}: unknown key {prefix}{key}{nearest}; allowed: {allowed}")


def _origin_of(value: Any, origin: str) -> str:
    found = value
    while isinstance(found, (dict, list)) and found:
        found = next(iter(found.values())) if isinstance(found, dict) else found[0]
    return found.name if isinstance(found, _Variable) else origin


def _is_told_by_variable(value: Any) -> bool:
    return _origin_of(value, "") != ""


def _found(value: Any) -> str:
    """For a message. A table may hold a secret, so its values are not shown."""
    found = value.text if isinstance(value, _Variable) else value
    if isinstance(found, dict):
        return "a table"
    return (
        "a list of tables" if isinstance(found, list) and any(isinstance(item, dict) for item in found) else repr(found)
    )
