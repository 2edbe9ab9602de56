"""Commands about models' files on this host: get, convert, list, delete; must not know HTTP or JAX."""

from contextlib import closing
from pathlib import Path

from neuron_jax.cli.common import ConfigFile, Environ, Json, Model, WeightFlags, configured, look, print_json
from neuron_jax.tables import print_models
from neuron_jax.terminal import MEGABYTE, console, show_progress

AS_FOUND = WeightFlags()
"""Weights stay as their files have them, for as many devices as a load would take."""


def pull(
    model: str,
    *,
    revision: str | None = None,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> None:
    """Get a model's files: only those that are needed, going on where an earlier pull was stopped, and checked.

    Parameters
    ----------
    model:
        A built-in name, a configured id or alias, or org/name[@revision][:file.gguf] of the hub.
    revision:
        A branch, tag or commit of the hub's repository.
    """
    from neuron_jax.local_models import pull as pull_files

    with closing(pull_files(configured(config, environ), model, revision)) as records:
        (found,) = show_progress(records, console(stderr=True))
    if as_json:
        return print_json(found)
    console().print(f"{found['path']} ({found['bytes'] / MEGABYTE:,.1f} MB)", markup=False, soft_wrap=True)
    return None


def convert(
    model: Model,
    out: Path,
    *,
    weights: WeightFlags = AS_FOUND,
    config: ConfigFile = None,
    as_json: Json = False,
    environ: Environ,
) -> None:
    """Write a model as an engine of this host keeps it, quantized and sharded, so that the next load only reads.

    Parameters
    ----------
    out:
        A folder that is not there yet. It is loaded as any other.
    weights:
        How weights are to be kept and spread.
    """
    from neuron_jax.converting import convert as converted
    from neuron_jax.planning import resolve

    loaded = configured(config, environ)
    found = resolve(loaded, *look(loaded, environ), weights.request(model))
    with closing(converted(found, out, environ)) as records:
        (last,) = show_progress(records, console(stderr=True))
    if as_json:
        return print_json(last)
    made = ", ".join(f"{key} {value}" for key, value in last["made"].items())
    console().print(f"{last['path']} ({made})", markup=False, soft_wrap=True)
    return None


def models(*, config: ConfigFile = None, as_json: Json = False, environ: Environ) -> None:
    """List the models that this host could load, and where their files are."""
    from neuron_jax.local_models import listed

    found = [one.as_json() for one in listed(configured(config, environ))]
    print_json(found) if as_json else print_models(found, console())


def rm(model: str, *, config: ConfigFile = None, environ: Environ) -> None:
    """Delete a model's files from the cache, whole or partly fetched. Files elsewhere are left alone.

    Parameters
    ----------
    model:
        A built-in name, a configured id or alias, or org/name[@revision][:file.gguf] of the hub.
    """
    from neuron_jax.local_models import remove

    freed = remove(configured(config, environ), model)
    console().print(f"removed {model}: {freed / MEGABYTE:,.1f} MB", markup=False, soft_wrap=True)
