"""Files that settings name, secrets and those of TLS: found from the configuration's folder, and looked at at start."""

from pathlib import Path
from typing import Any, TypeVar, cast

import attrs
from attrs import field, frozen

from neuron_jax.common.addresses import parse_url
from neuron_jax.common.kinds import FILLED, HIDDEN, URL, read_secret
from neuron_jax.common.reader import Reader
from neuron_jax.common.tls import TlsFileError, client_context, server_context

T = TypeVar("T")


@frozen(kw_only=True)
class OwnSecret:
    """At the top of neuron.toml: what callers show to this neuron. Empty: nothing."""

    secret: str = field(default="", repr=False, metadata=HIDDEN)
    secret_file: Path | None = None  # or the file that holds it


@frozen(kw_only=True)
class RemoteNeuron:
    """[[neurons]] of cortex.toml, [[peers]] of neuron.toml: another host's neuron, what it is shown, and whom to trust."""

    name: str = field(validator=FILLED)
    endpoint: str = field(validator=URL, converter=parse_url)  # http://host:port
    secret: str | None = field(default=None, repr=False, metadata=HIDDEN)  # what it wants to be shown
    secret_file: Path | None = None  # or the file that holds it
    tls_ca: Path | None = None  # PEM: who signed its certificate, where the system does not know
    tls_cert: Path | None = None  # PEM: what it is shown, where it asks for a certificate
    tls_key: Path | None = None


def secret_of(reader: Reader, path: str, word: str | None, file: Path | None) -> str | None:
    """The secret at `path`, or what its file holds; of the two the one in the environment counts."""
    here, there = path, f"{path}_file"
    if word and file:
        told = [one for one in (here, there) if reader.is_told_outside(one)]
        if len(told) != 1:
            reader.complain(here, f"is there besides {there}; give one of them")
            return None
        file = file if told == [there] else None
    if file is None:
        return word
    place = reader.folder / file
    try:
        return read_secret(place.read_bytes().decode(errors="replace").strip())
    except OSError as error:
        reader.complain(there, f"{place} cannot be read: {error.strerror}")
    except ValueError as error:
        reader.complain(there, f"{error} in {place}")
    return None


def with_tls_files(reader: Reader, path: str, record: T) -> T:
    """The record at `path` with its TLS files as they are opened. It connects to its `endpoint`, or else it listens."""
    told: Any = record
    names = [
        item.name for item in attrs.fields(type(told)) if item.name.startswith("tls_") and getattr(told, item.name)
    ]
    found = attrs.evolve(told, **{name: reader.folder / getattr(told, name) for name in names})
    endpoint = getattr(found, "endpoint", None)
    if endpoint and names and not endpoint.startswith("https://"):
        reader.complain(f"{path}.{names[0]}", f"is for an https:// endpoint; it is {endpoint}")
    elif alone := [name for name in names if not found.tls_cert and (endpoint is None or name == "tls_key")]:
        reader.complain(f"{path}.{alone[0]}", "needs tls_cert beside it")
    elif names:
        _open(reader, path, found, listens=endpoint is None)
    return cast("T", found)


def _open(reader: Reader, path: str, record: Any, *, listens: bool) -> None:
    try:
        if listens:
            server_context(record.tls_cert, record.tls_key, getattr(record, "tls_client_ca", None))
        else:
            client_context(record.tls_ca, record.tls_cert, record.tls_key)
    except TlsFileError as error:
        reader.complain(f"{path}.tls_{error.which}", str(error))
