"""The command line of one host: its commands, one line run, and what an error is to a terminal; must not know HTTP or JAX."""

from collections.abc import Callable, Mapping, Sequence
from typing import Annotated

import attrs
from cyclopts import App, CycloptsError, Parameter
from cyclopts.validators import Number
from rich.console import Console

from models.native.build import cache_folder, described
from neuron_jax.cli import files, health, measure, ranks
from neuron_jax.cli.common import ConfigFile, Environ, Json, check_host, configured, fail, look, print_json
from neuron_jax.common.addresses import HIGHEST_PORT
from neuron_jax.common.errors import ConfigError
from neuron_jax.common.release import release, version_of
from neuron_jax.errors import NeuronError
from neuron_jax.tables import print_hardware
from neuron_jax.terminal import console

_EXTRA = {"pynvml", "jinja2", "tokenizers", "numpy", "ml_dtypes", "jax", "flax", "huggingface_hub", "orbax"}


def version() -> str:
    """What `neuron --version` prints."""
    jax = version_of("jax")
    return release().described(
        "neuron", jax=jax or "not installed", kernels=described(cache_folder()) if jax else "none"
    )


def run(tokens: Sequence[str], environ: Mapping[str, str]) -> int:
    """Runs one command line; the exit code."""
    try:
        command, bound, hidden = app.parse_args(tokens, exit_on_error=False, error_console=Console(stderr=True))
        given = {"environ": environ} if "environ" in hidden else {}
        return command(*bound.args, **bound.kwargs, **given) or 0
    except CycloptsError:  # it has printed itself
        return 2
    except ConfigError as error:
        return fail(error, 2)
    except NeuronError as error:
        return fail(error, 1)
    except ModuleNotFoundError as error:
        if (error.name or "").split(".")[0] not in _EXTRA:
            raise
        return fail(f"{error.name} is not installed: pip install 'cortex-jax[neuron]'", 1)
    except KeyboardInterrupt:
        return 130


def serve(
    *,
    config: ConfigFile = None,
    host: Annotated[str | None, Parameter(validator=check_host)] = None,
    port: Annotated[int | None, Parameter(validator=Number(gte=0, lte=HIGHEST_PORT))] = None,
    environ: Environ,
) -> None:
    """Serve models until Ctrl-C.

    Parameters
    ----------
    host:
        The address to listen on. Overrides the configuration.
    port:
        The port to listen on, 0 for any free one. Overrides the configuration.
    """
    loaded = configured(config, environ)
    from neuron_jax.daemon.app import serve as serve_forever

    server = attrs.evolve(
        loaded.server,
        host=loaded.server.host if host is None else host,
        port=loaded.server.port if port is None else port,
    )
    serve_forever(attrs.evolve(loaded, server=server))


def discover(*, config: ConfigFile = None, as_json: Json = False, environ: Environ) -> None:
    """Show this host's devices and how busy they are."""
    hardware, loads = look(configured(config, environ), environ)
    found = attrs.asdict(hardware)
    found["devices"] = [attrs.asdict(d) | attrs.asdict(load) for d, load in zip(hardware.devices, loads, strict=True)]
    print_json(found) if as_json else print_hardware(found, console())


app = App(
    name="neuron", help="Serves open-weight models on this host, on JAX.", version=version, version_format="plaintext"
)
COMMANDS: Sequence[Callable[..., int | None]] = (
    serve,
    health.health,
    discover,
    files.pull,
    files.convert,
    files.models,
    files.rm,
    measure.plan,
    measure.bench,
    measure.quality,
    ranks.tp_smoke,
    ranks.worker,
)
for _command in COMMANDS:
    app.command(_command)
