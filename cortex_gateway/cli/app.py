"""The `cortex` program: what each command takes and does. Wiring only; the work is in the modules that it calls.

The server's libraries are imported by the commands that serve: `cortex status` answers without them.
"""

import asyncio
import logging
import os
import pathlib
import sys
from collections.abc import Callable, Coroutine, Iterable, Sequence
from functools import partial
from typing import Annotated, Any, Literal

import attrs
import cyclopts
from cyclopts import App, Parameter
from cyclopts.validators import Number

from cortex_gateway.cli import config as configuring
from cortex_gateway.cli import keys, operating, tables
from cortex_gateway.cli.api import UsageError
from cortex_gateway.cli.chat import Talk
from cortex_gateway.cli.doctor.checks import examine
from cortex_gateway.cli.flags import ASK, Ask, Model
from cortex_gateway.cli.launch import command as launching
from cortex_gateway.cli.launch.clients import CLIENTS
from cortex_gateway.config import find_config, load_config, unused_variables
from neuron_jax.common.addresses import HIGHEST_PORT, parse_host
from neuron_jax.common.errors import UserError
from neuron_jax.common.log_output import log_to_stderr
from neuron_jax.common.release import release


def _host(_: object, value: str) -> None:
    parse_host(value)


def _client(_: object, value: str) -> None:
    if value not in CLIENTS:
        raise ValueError(f"it must be one of {', '.join(CLIENTS)}")


Port = Annotated[int, Parameter(validator=Number(gte=0, lte=HIGHEST_PORT))]


def version() -> str:
    """What `cortex --version` prints."""
    return release().described("cortex")


app = App(
    name="cortex",
    help="One OpenAI and Anthropic endpoint over every open-weight model your own GPUs can serve.",
    version=version,
    help_format="plaintext",
    suppress_keyboard_interrupt=False,
)
app.command(keys.app)
configuring.app.command(operating.reread, name="reload")
app.command(configuring.app)


@app.command(name="serve")
def serve_command(
    *, config: Annotated[pathlib.Path | None, Parameter(name=["--config", "-c"], help="cortex.toml to read.")] = None
) -> int:
    """Run the gateway in front of the neurons of cortex.toml until Ctrl-C.

    Without --config: ./cortex.toml, else /etc/cortex/cortex.toml, else one neuron at 127.0.0.1:13131.
    """
    from cortex_gateway.serving import serve

    reread = partial(load_config, find_config(config), os.environ)
    settings = reread()
    _warn(unused_variables(os.environ))
    _log_to_stderr()
    _run(serve(settings, reread))
    return 0


@app.command(name="up")
def up_command(
    *,
    host: Annotated[str, Parameter(validator=_host, help="Address that both programs listen on.")] = "127.0.0.1",
    port: Annotated[Port, Parameter(help="Port of the API.")] = 31313,
    metrics_port: Annotated[Port, Parameter(help="Port of /metrics.")] = 31314,
    neuron_port: Annotated[
        int, Parameter(validator=Number(gte=1, lte=HIGHEST_PORT), help="Port of the neuron.")
    ] = 13131,
    model: Annotated[
        str, Parameter(help="demo, a built-in id, a folder, a .gguf file, or a hub id org/name.")
    ] = "demo",
    quant: Annotated[
        Literal["auto", "none"], Parameter(help="How weights are kept; none: float32 on a CPU, bfloat16 on a GPU.")
    ] = "auto",
    once: Annotated[
        bool, Parameter(negative="", help="End after the answers: exit code 0, or 1 when anything failed.")
    ] = False,
) -> int:
    """Start a neuron and the gateway on this machine, load a model, ask it a question in both dialects, stay up."""
    from cortex_gateway.up import Up, up

    asked = Up(
        host=host, port=port, metrics_port=metrics_port, neuron_port=neuron_port, model=model, quant=quant, once=once
    )
    _warn(unused_variables(os.environ, serving=False))
    return _run(up(asked, tables.console(), os.environ))


for command in operating.COMMANDS:
    app.command(command)


@app.command
def chat(
    model: Model,
    prompt: Annotated[
        str | None, Parameter(help="Ask this one thing and end. Absent: what is piped in, else a conversation.")
    ] = None,
    *,
    system: Annotated[str | None, Parameter(help="A system message to begin with.")] = None,
    temperature: Annotated[float | None, Parameter(help="0 = always the likeliest token.")] = None,
    max_tokens: Annotated[int | None, Parameter(help="The longest answer, in tokens.")] = None,
    ask: Ask = ASK,
    json: Annotated[
        bool,
        Parameter(negative="", help="Print one JSON object: text, reasoning, finish_reason, model, usage, seconds."),
    ] = False,
) -> int:
    """Talk to a model in the terminal."""
    options = {"temperature": temperature, "max_tokens": max_tokens}
    talk = Talk(
        api=ask.api(),
        model=model,
        out=tables.console(),
        options={name: value for name, value in options.items() if value is not None},
        history=[{"role": "system", "content": system}] if system else [],
    )
    if prompt is None and sys.stdin.isatty() and not json:
        talk.talk(input)
        return 0
    asked = _prompt(prompt)
    if json:
        tables.print_json(talk.non_streaming(asked))
        return 0
    return 130 if talk.ask(asked).stopped else 0


@app.command
def launch(
    client: Annotated[str, Parameter(help=f"{', '.join(CLIENTS)}.", validator=_client)],
    *arguments: Annotated[str, Parameter(help="Words for the client itself, behind --.")],
    model: Annotated[str | None, Parameter(help="The model to begin with; else the first that is loaded.")] = None,
    show: Annotated[
        bool, Parameter(name="--print", negative="", help="Print the environment and the files; change nothing.")
    ] = False,
    undo: Annotated[
        bool, Parameter(negative="", help="Put back the files as they were before the first launch.")
    ] = False,
    ask: Ask = ASK,
) -> int:
    """Set a coding agent or chat program up for this gateway, and start it."""
    places = launching.Places.of(os.environ)
    say = _teller()
    if undo:
        return launching.undo(client, places.state, say)
    request = launching.asked(ask.api(), model, places)
    if show:
        sys.stdout.write(launching.shown(client, request))
        return 0
    return launching.launch(client, request, places.state, arguments, say)


@app.command
def doctor(
    *,
    model: Annotated[str | None, Parameter(help="The model to try; else the first that is loaded.")] = None,
    ask: Ask = ASK,
    json: Annotated[bool, Parameter(negative="", help="Print the findings as JSON.")] = False,
) -> int:
    """Try what agents rely on, in each dialect, and say what to do where it does not hold."""
    api = ask.api()
    patient = launching.served(launching.pick(api.get("/v1/models")["data"], model))
    findings = []
    for finding in examine(api, patient):
        findings.append(attrs.asdict(finding))
        if not json:
            tables.show_finding(tables.console(), findings[-1])
    if json:
        tables.print_json({"model": attrs.asdict(patient), "findings": findings})
    return 0 if all(finding["holds"] for finding in findings) else 1


def run(tokens: Sequence[str]) -> int:
    """Run one command line; the exit code: 0 done, 1 it failed, 2 it was not understood, 130 interrupted."""
    try:
        code = app(tokens, exit_on_error=False, print_error=True, result_action="return_value")
    except cyclopts.CycloptsError:
        return 2
    except UserError as error:
        tables.console(stderr=True).print(f"cortex: {error}", style="red", markup=False, soft_wrap=True)
        return 2 if isinstance(error, UsageError) else 1
    except KeyboardInterrupt:
        return 130
    return code if isinstance(code, int) else 0


def main() -> None:
    """The entry point."""
    sys.exit(run(sys.argv[1:]))


def _run(work: Coroutine[Any, Any, int | None]) -> int:
    import prometheus_client
    import uvloop

    prometheus_client.disable_created_metrics()  # type: ignore[no-untyped-call]  # the library's own gap
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        return runner.run(work) or 0


def _prompt(given: str | None) -> str:
    """The prompt of the command line, else what is piped in. Raises UsageError where there is neither."""
    if given is not None:
        return given
    piped = "" if sys.stdin.isatty() else sys.stdin.read()
    if not piped.strip():
        raise UsageError('a prompt is needed: cortex chat MODEL "prompt", or pipe one in')
    return piped


def _teller() -> Callable[[str], None]:
    """Says a line on stderr: stdout is the client's."""
    out = tables.console(stderr=True)
    return lambda line: out.print(f"cortex: {line}", markup=False, soft_wrap=True)


def _warn(lines: Iterable[str]) -> None:
    for line in lines:
        tables.console(stderr=True).print(f"cortex: {line}", style="yellow", markup=False, soft_wrap=True)


def _log_to_stderr() -> None:
    log_to_stderr("%(asctime)s %(message)s", "%Y-%m-%d %H:%M:%S", os.environ)
    for chatty in ("httpx", "httpcore", "uvicorn.error"):
        logging.getLogger(chatty).setLevel(logging.WARNING)
