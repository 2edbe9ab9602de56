"""`cortex up`: a neuron, the gateway and one model on this machine, for a newcomer. Knows neuron_jax by its command only."""

import asyncio
import contextlib
import importlib.util
import json
import pathlib
import re
import sys
import time
from collections.abc import AsyncIterator, Callable, Mapping
from typing import Any, Literal

import attrs
import httpx
from attrs import field, frozen
from rich.console import Console

from cortex_gateway import child, serving
from cortex_gateway.cli.api import message
from cortex_gateway.cli.progress import LoadBars
from cortex_gateway.config import Config, GatewayConfig, Neuron, state_path
from cortex_gateway.errors import CortexError
from cortex_gateway.fleet.client import NeuronClient
from cortex_gateway.fleet.credentials import showing, shown
from cortex_gateway.fleet.messages import LoadSpec
from cortex_gateway.placement.snapshot import LoadStatus, ModelConfig
from cortex_gateway.speed import tokens_per_second
from neuron_jax.common.addresses import Address, is_every_ipv6
from neuron_jax.common.errors import UserError
from neuron_jax.common.files import OwnSecret, secret_of
from neuron_jax.common.reader import Reader

ALIASES = {"demo": "smollm2-135m-instruct"}
QUESTION = "What is the capital of France?"
MOST_TOKENS = 64
NODE = "local"
NEURON = (sys.executable, "-m", "neuron_jax", "serve")
DRAIN_SECS = 5.0
START_SECS = 120.0
LOAD_SECS = 24 * 3600.0
HUB = re.compile(r"(?:hf:)?(?P<repo>[\w.-]+/[\w.-]+)(?:@[\w./-]+?)?(?::[\w./-]+)?")


class UpError(UserError):
    """`cortex up` cannot go on. The message says what to do."""


@frozen(kw_only=True)
class Up:
    """The flags of `cortex up`."""

    host: str = "127.0.0.1"
    port: int = 31313
    metrics_port: int = 31314
    neuron_port: int = 13131
    model: str = "demo"
    quant: Literal["auto", "none"] = "auto"
    once: bool = False


@frozen(kw_only=True)
class Target:
    """What `--model` means: the id it gets, and where its weights are when the id does not say."""

    id: str
    source: str | None = None


@frozen(kw_only=True)
class DialectTrial:
    """How one dialect is asked, by curl and by us."""

    name: str
    path: str
    text: Callable[[dict[str, Any]], str]  # what an event adds to the answer
    tokens: Callable[[dict[str, Any]], int | None]  # completion tokens so far, where an event says
    streaming: Mapping[str, Any] = field(factory=dict)  # what a streamed request needs to have its tokens counted

    def body(self, model: str) -> dict[str, Any]:
        messages = [{"role": "user", "content": QUESTION}]
        return {"model": model, "max_tokens": MOST_TOKENS, "temperature": 0, "messages": messages}

    def curl(self, url: str, model: str) -> str:
        """One line for a shell, right as it stands."""
        return f"curl {url}{self.path} -H 'Content-Type: application/json' -d '{json.dumps(self.body(model))}'"


def _chat_text(event: dict[str, Any]) -> str:
    return "".join((choice.get("delta") or {}).get("content") or "" for choice in event.get("choices", []))


def _chat_tokens(event: dict[str, Any]) -> int | None:
    return (event.get("usage") or {}).get("completion_tokens")


def _messages_text(event: dict[str, Any]) -> str:
    return (event.get("delta") or {}).get("text") or ""


def _messages_tokens(event: dict[str, Any]) -> int | None:
    return (event.get("usage") or {}).get("output_tokens")


DIALECTS = (
    DialectTrial(
        name="OpenAI",
        path="/v1/chat/completions",
        text=_chat_text,
        tokens=_chat_tokens,
        streaming={"stream_options": {"include_usage": True}},
    ),
    DialectTrial(name="Anthropic", path="/v1/messages", text=_messages_text, tokens=_messages_tokens),
)


@frozen(kw_only=True)
class Stage:
    """Everything that one run works with. `ready` is set once the model has answered."""

    asked: Up
    target: Target
    config: Config
    command: tuple[str, ...]
    log: pathlib.Path
    out: Console
    ready: asyncio.Event = field(factory=asyncio.Event)

    @property
    def neuron(self) -> str:
        return self.config.neurons[0].endpoint

    @property
    def model(self) -> str:
        """The short name a person would type."""
        return self.asked.model if self.asked.model in ALIASES else self.target.id


async def up(asked: Up, out: Console, environ: Mapping[str, str], *, neuron: tuple[str, ...] | None = None) -> int:
    """The whole command; the exit code. `neuron` stands in for the neuron's own command in tests.

    Raises UpError and ListenError with a message for the user. Afterwards nothing that it started is left.
    """
    target = target_of(asked.model)
    if neuron is None and importlib.util.find_spec("jax") is None:
        raise UpError("the neuron needs JAX, which is not installed here: pip install 'cortex-jax[neuron]'")
    if "NEURON_SERVER__TLS_CERT" in environ:
        raise UpError(
            "NEURON_SERVER__TLS_CERT is set, and `cortex up` speaks plain HTTP: use `neuron serve`, `cortex serve`"
        )
    command = (*(neuron or NEURON), "--host", asked.host, "--port", str(asked.neuron_port))
    config = attrs.evolve(config_of(asked, target, _secret(environ)), state=state_path(None, None, environ))
    stage = Stage(asked=asked, target=target, config=config, command=command, log=log_path(environ), out=out)
    with contextlib.ExitStack() as sockets:
        listeners = serving.bind(config, api_setting="--port", metrics_setting="--metrics-port")
        sockets.callback(listeners.api.close)
        sockets.callback(listeners.metrics.close)
        serving.listen(str(Address(asked.host, asked.neuron_port)), "--neuron-port").close()
        with serving.stop_signals() as stop:
            return await _until_stopped(stop, stage, listeners)


def target_of(model: str) -> Target:
    """Raises UpError for a path that is not there and for a name that can be nothing."""
    path = pathlib.Path(model).expanduser()
    looks_like_path = model.startswith((".", "/", "~")) or (model.endswith(".gguf") and not model.startswith("hf:"))
    if path.exists() and (looks_like_path or "/" in model):
        resolved = path.resolve()
        return Target(id=resolved.stem if resolved.is_file() else resolved.name, source=str(resolved))
    if looks_like_path:
        raise UpError(f"--model {model}: there is no such file or folder")
    hub = HUB.fullmatch(model)
    if hub is not None:
        return Target(id=hub["repo"], source=None if model == hub["repo"] else f"hf:{model.removeprefix('hf:')}")
    return Target(id=ALIASES.get(model, model))


def config_of(asked: Up, target: Target, secret: str | None = None) -> Config:
    """The gateway in front of the one neuron, which keeps in mind how to load the model again."""
    endpoint = f"http://{Address(_reachable(asked.host), asked.neuron_port)}"
    gateway = GatewayConfig(
        listen=str(Address(asked.host, asked.port)),
        metrics_listen=str(Address(asked.host, asked.metrics_port)),
        drain_secs=DRAIN_SECS,
    )
    return Config(
        gateway=gateway,
        neurons=(Neuron(name=NODE, endpoint=endpoint, secret=secret),),
        models=(ModelConfig(id=target.id, source=target.source, quant=asked.quant),),
        aliases=ALIASES,
    )


def _secret(environ: Mapping[str, str]) -> str | None:
    """What the neuron, which has our environment, will ask for. Raises ConfigError."""
    reader = Reader("environment")
    ours = {name: environ[name] for name in ("NEURON_SECRET", "NEURON_SECRET_FILE") if name in environ}
    told = reader.read(OwnSecret, {}, "NEURON_", ours)
    secret = secret_of(reader, "secret", told.secret, told.secret_file)
    reader.finish()
    return secret


def log_path(environ: Mapping[str, str]) -> pathlib.Path:
    """Where the neuron's output goes: the same cache folder that the neuron uses."""
    if environ.get("CORTEX_CACHE"):
        return pathlib.Path(environ["CORTEX_CACHE"]).expanduser() / "neuron.log"
    base = pathlib.Path(environ["XDG_CACHE_HOME"]) if environ.get("XDG_CACHE_HOME") else pathlib.Path.home() / ".cache"
    return base.expanduser() / "cortex" / "neuron.log"


async def _until_stopped(stop: serving.Stop, stage: Stage, listeners: serving.Listeners) -> int:
    """The exit code: 0 when it had come up, 130 when the user stopped it before."""
    task = asyncio.create_task(_show(stage, listeners, stop.hurry))
    stopped = asyncio.create_task(stop.asked.wait())
    await asyncio.wait({task, stopped}, return_when=asyncio.FIRST_COMPLETED)
    stopped.cancel()
    task.cancel()
    with contextlib.suppress(asyncio.CancelledError):
        await task
    return 0 if stage.ready.is_set() else 130


async def _show(stage: Stage, listeners: serving.Listeners, hurry: asyncio.Event) -> None:
    """Ends when `--once` is satisfied; otherwise it is cancelled."""
    out = stage.out
    async with child.child(stage.command, stage.log, hurry=hurry) as process, _alive(process, stage.log):
        out.print(f"[bold]cortex[/] on this machine, serving [bold]{stage.target.id}[/]")
        with LoadBars(out) as bars:
            bars.report(LoadStatus(phase="starting"))
            await _answering(stage.neuron)
            await _load(stage, bars)
        async with serving.running(stage.config, listeners, hurry=hurry) as gateway:
            url = gateway.url.replace("//0.0.0.0:", "//127.0.0.1:").replace("//[::]:", "//[::1]:")
            for notice in gateway.notices:
                out.print(f"\n{notice}", style="bold red", markup=False, soft_wrap=True)
            _introduce(stage, url, gateway.metrics_url)
            for dialect in DIALECTS:
                await _ask(dialect, url, stage)
            out.print(f"\nready {gateway.url}", style="bold", soft_wrap=True)
            stage.ready.set()
            if not stage.asked.once:
                out.print("Ctrl-C stops it, a second one at once.", style="dim")
                await asyncio.Event().wait()


@contextlib.asynccontextmanager
async def _alive(process: asyncio.subprocess.Process, log: pathlib.Path) -> AsyncIterator[None]:
    """The block, cut short by UpError with the neuron's last words when the neuron ends before it."""
    task = asyncio.current_task()
    assert task is not None
    died = asyncio.create_task(process.wait())
    died.add_done_callback(lambda wait: None if wait.cancelled() else task.cancel())
    try:
        yield
    except asyncio.CancelledError:
        if not died.done() or died.cancelled():
            raise
        task.uncancel()
        raise UpError(
            f"the neuron ended with code {died.result()}; the end of {log}:\n{child.last_lines(log)}"
        ) from None
    finally:
        died.cancel()


async def _answering(endpoint: str) -> None:
    """Wait for the neuron's first answer; its death ends the wait."""
    async with httpx.AsyncClient(base_url=endpoint, trust_env=False) as http:
        deadline = time.monotonic() + START_SECS
        while time.monotonic() < deadline:
            with contextlib.suppress(httpx.TransportError):
                if (await http.get("/version")).is_success:
                    return
            await asyncio.sleep(0.1)
    raise UpError(f"the neuron did not answer at {endpoint} within {START_SECS:.0f} s")


async def _load(stage: Stage, bars: LoadBars) -> None:
    spec = LoadSpec(model_id=stage.target.id, source=stage.target.source, quant=stage.asked.quant)
    hooks = {"request": showing(shown(stage.config.neurons))}
    async with httpx.AsyncClient(trust_env=False, event_hooks=hooks) as http:
        try:
            await NeuronClient(http, NODE, stage.neuron).load(spec, timeout_secs=LOAD_SECS, report=bars.report)
        except CortexError as error:
            raise UpError(f"{spec.model_id} could not be loaded: {error.message}") from error


def _introduce(stage: Stage, url: str, metrics_url: str) -> None:
    stage.out.print()
    for what, where in (("API", f"{url}/v1"), ("metrics", f"{metrics_url}/metrics"), ("neuron", stage.neuron)):
        stage.out.print(f"  {what:<9}[cyan]{where}[/]", soft_wrap=True)
    for dialect in DIALECTS:
        stage.out.print(f"\n  {dialect.name}", style="dim")
        stage.out.print(dialect.curl(url, stage.model), markup=False, soft_wrap=True)


async def _ask(dialect: DialectTrial, url: str, stage: Stage) -> None:
    """Stream one answer to the terminal. Raises UpError where there is none."""
    out = stage.out
    out.print(f"\n[dim]{dialect.name}[/]  {QUESTION}")
    body = {**dialect.body(stage.model), "stream": True, **dialect.streaming}
    asked = time.perf_counter()
    times: list[float] = []
    tokens = 0
    async with httpx.AsyncClient(base_url=url, timeout=httpx.Timeout(None, connect=5.0), trust_env=False) as http:
        async for event in _events(http, dialect.path, body):
            if text := dialect.text(event):
                times.append(time.perf_counter())
                out.print(text, end="", style="green", markup=False, soft_wrap=True)
                out.file.flush()
            tokens = dialect.tokens(event) or tokens
    if not times:
        raise UpError(f"{stage.model} gave an empty answer to {dialect.path}; the neuron's log is {stage.log}")
    out.print(f"\n{_pace(tokens, times[-1] - asked, times[-1] - times[0])}", style="dim")


def _pace(tokens: int, seconds: float, span: float) -> str:
    """`8 tokens in 0.41 s, 42.1 tokens/s`: the whole time, and the speed from the first token to the last, `span` later."""
    speed = tokens_per_second(tokens, span)
    whole = f"{tokens} {'token' if tokens == 1 else 'tokens'} in {seconds:.2f} s"
    return whole if speed is None else f"{whole}, {speed:.1f} tokens/s"


async def _events(http: httpx.AsyncClient, path: str, body: dict[str, Any]) -> AsyncIterator[dict[str, Any]]:
    """The events of our own gateway's answer. Raises UpError with its words when it refuses or breaks off."""
    async with _mapped(path), http.stream("POST", path, json=body) as response:
        if not response.is_success:
            raise UpError(
                f"{path} answered {response.status_code}: {(await response.aread()).decode(errors='replace')}"
            )
        async for line in response.aiter_lines():
            if line.startswith("data:") and line[5:].strip() != "[DONE]":
                yield _event(path, line[5:])


def _event(path: str, data: str) -> dict[str, Any]:
    event: dict[str, Any] = json.loads(data)
    if "error" in event:
        raise UpError(f"{path} failed midway: {message(event)}")
    return event


@contextlib.asynccontextmanager
async def _mapped(path: str) -> AsyncIterator[None]:
    try:
        yield
    except httpx.HTTPError as error:
        raise UpError(f"{path} broke off: {error}") from error


def _reachable(host: str) -> str:
    return "::1" if is_every_ipv6(host) else "127.0.0.1" if host == "0.0.0.0" else host  # noqa: S104 -- not bound to
