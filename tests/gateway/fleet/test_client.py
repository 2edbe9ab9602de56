"""The seam to a neuron: whatever it answers, or does not, becomes one of our own errors or records."""

import asyncio
from collections.abc import Callable
from typing import Any

import httpx
import pytest

from cortex_gateway import errors
from cortex_gateway.fleet.client import NeuronClient
from cortex_gateway.fleet.messages import LoadSpec, Observation
from cortex_gateway.placement.snapshot import Device, Group, Limit, LoadStatus, ModelLoad, Rank, Replica

Handler = Callable[[httpx.Request], httpx.Response]
EVENTS = {"content-type": "text/event-stream"}


def ask(handler: Handler, use: Callable[[NeuronClient], Any]) -> Any:
    async def main() -> Any:
        async with httpx.AsyncClient(transport=httpx.MockTransport(handler)) as http:
            return await use(NeuronClient(http, "beast", "http://beast:1"))

    return asyncio.run(main())


def answering(**bodies: Any) -> Handler:
    """`discovery`, `health` and `models` as given, each `{}` or `[]` when not."""
    known = {"/discovery": {}, "/health": {}, "/models": [], **{f"/{name}": body for name, body in bodies.items()}}
    return lambda request: httpx.Response(200, json=known[request.url.path])


def observe(handler: Handler) -> Any:
    return ask(handler, lambda client: client.observe())


def load(handler: Handler) -> list[LoadStatus]:
    told: list[LoadStatus] = []
    ask(handler, lambda client: client.load(LoadSpec(model_id="m"), timeout_secs=5, report=told.append))
    return told


def test_everything_a_neuron_says_is_taken() -> None:
    """Discovery, health and models joined by device index and model id."""
    seen = observe(
        answering(
            discovery={
                "hostname": "h",
                "harnesses": ["jax"],
                "devices": [{"index": 0, "name": "GPU", "kind": "cuda", "vram_total_mb": 100, "extra": 1}],
            },
            health={
                "uptime_secs": 7,
                "devices": [
                    {
                        "index": 0,
                        "vram_used_mb": 30,
                        "vram_free_mb": 60,
                        "utilization_pct": 5,
                        "temp_c": 40,
                        "power_w": 3.5,
                    }
                ],
                "models": [{"id": "m", "in_flight": 1, "queue_depth": 2, "tok_s_decode": 9.5}],
            },
            models=[
                {
                    "id": "m",
                    "status": "loaded",
                    "devices": [0],
                    "vram_used_mb": 20,
                    "capabilities": ["text"],
                    "limit": {"context": 4096, "input": 0},
                    "tool_call": True,
                    "servable": {"ok": False, "reason": "insufficient_vram", "detail": "full"},
                    "progress": {"phase": "weights", "done": 1, "total": 2, "unit": "bytes"},
                    "last_error": {"message": "x"},
                    "quant": {"chosen": "int4", "reason": "as asked"},
                    "kv_dtype": {"chosen": "int8", "reason": "as asked"},
                    "deterministic": {"chosen": True, "reason": "as asked"},
                }
            ],
        )
    )

    device = Device(
        index=0,
        name="GPU",
        vram_total_mb=100,
        vram_used_mb=30,
        vram_free_mb=60,
        utilization_pct=5,
        temp_c=40,
        power_w=3.5,
    )
    replica = Replica(
        model="m",
        status="loaded",
        devices=(0,),
        vram_used_mb=20,
        capabilities=("text",),
        limit=Limit(context=4096),
        tool_call=True,
        servable=False,
        unservable_reason="insufficient_vram",
        unservable_detail="full",
        progress=LoadStatus(phase="weights", done=1, total=2, unit="bytes"),
        last_error="{'message': 'x'}",
        quant={"chosen": "int4", "reason": "as asked"},
        kv_dtype={"chosen": "int8", "reason": "as asked"},
        deterministic={"chosen": True, "reason": "as asked"},
        load=ModelLoad(in_flight=1, queue_depth=2, tok_s_decode=9.5),
    )
    assert seen == Observation(hostname="h", harnesses=("jax",), devices=(device,), replicas=(replica,), uptime_secs=7)


def test_groups_are_taken_and_the_leaders_belongs_to_its_replica() -> None:
    """Those of two replicas of one model add up. A role that nobody knows lends; no groups at all are none."""
    rank = {"rank": 1, "host": "b", "devices": [0, 1], "pid": 7, "phase": "ready"}
    group = {"model_id": "m", "leader": "a", "world": 2, "tensor_parallel": 4, "ranks": [rank]}
    twin = {"model_id": "n", "role": "leader", "world": 2, "tensor_parallel": 2, "ranks": [rank]}
    told = {"groups": [group | {"role": "leader"}, {"model_id": "o", "role": "observer"}, twin, twin]}
    seen = observe(answering(discovery=told, health={}, models=[{"id": "m"}, {"id": "n"}, {"id": "o"}]))
    led = Group(
        model="m",
        role="leader",
        leader="a",
        world=2,
        tensor_parallel=4,
        ranks=(Rank(rank=1, host="b", devices=(0, 1), pid=7, phase="ready"),),
    )

    assert seen.groups[:2] == (led, Group(model="o", role="member", leader=""))
    assert [replica.group for replica in seen.replicas][::2] == [led, None]
    assert [replica.spread for replica in seen.replicas] == [4, 4, 0]
    assert observe(answering(discovery={"groups": None}, health={}, models=[])).groups == ()


def test_the_predecessors_words_are_understood() -> None:
    """`reloading` is loading, an unknown status is loaded, memory may be told by half."""
    seen = observe(
        answering(
            discovery={"devices": [{"index": 0, "vram_total_mb": 100}, {"index": 1, "vram_total_mb": 100}]},
            health={"devices": [{"index": 0, "vram_free_mb": 40}]},
            models=[{"id": "a", "status": "reloading"}, {"id": "b", "status": "blessed", "vram_used_mb": None}],
        )
    )

    assert [one.status for one in seen.replicas] == ["loading", "loaded"]
    assert [(one.vram_used_mb, one.vram_free_mb) for one in seen.devices] == [(60, 40), (0, 100)]


def failing(error: Exception) -> Handler:
    def handler(request: httpx.Request) -> httpx.Response:
        raise error

    return handler


@pytest.mark.parametrize(
    ("handler", "kind", "words"),
    [
        (failing(httpx.ConnectError("refused")), errors.UpstreamUnreachable, "beast cannot be reached .*: refused"),
        (failing(httpx.ConnectTimeout("")), errors.UpstreamUnreachable, "ConnectTimeout"),
        (failing(httpx.ReadTimeout("")), errors.UpstreamReadFailed, "did not answer /discovery in time"),
        (failing(httpx.ReadError("reset")), errors.UpstreamReadFailed, "broke off /discovery: reset"),
        (lambda _: httpx.Response(500, text="oops"), errors.UpstreamMalformed, "with 500: oops"),
        (lambda _: httpx.Response(200, text="<html>"), errors.UpstreamMalformed, "answered /discovery with JSON"),
        (answering(models={"not": "a list"}), errors.UpstreamMalformed, "Expected `array`"),
        (answering(models=[{"status": "loaded"}]), errors.UpstreamMalformed, "missing required field `id`"),
        (answering(health={"devices": [{"index": "x"}]}), errors.UpstreamMalformed, "Expected `int`"),
    ],
)
def test_a_look_that_fails_is_one_error(handler: Handler, kind: type[Exception], words: str) -> None:
    """Its class says what kind of failure, its message what happened where."""
    with pytest.raises(kind, match=words):
        observe(handler)


def test_a_load_stream_is_followed() -> None:
    """Comments and lines of no interest are passed over."""
    text = (
        ': hi\n\ndata: {"phase": "weights", "done": 1, "total": 2, "unit": "bytes"}\n\ndata: {"status": "loaded"}\n\n'
    )

    assert load(lambda _: httpx.Response(200, headers=EVENTS, text=text)) == [
        LoadStatus(phase="weights", done=1, total=2, unit="bytes")
    ]


@pytest.mark.parametrize(
    ("answer", "kind", "words"),
    [
        (httpx.Response(200, headers=EVENTS, text="data: {}\n\n"), errors.UpstreamReadFailed, "without saying how"),
        (httpx.Response(200, headers=EVENTS, text="data: {\n\n"), errors.UpstreamMalformed, "truncated"),
        (
            httpx.Response(200, headers=EVENTS, text='data: {"error": {"kind": "empty_repo"}}\n\n'),
            errors.LoadFailed,
            "empty_repo",
        ),
        (httpx.Response(422, json={"error": {"kind": "x", "cause": "why"}}), errors.LoadFailed, "why"),
        (httpx.Response(503, json={"error": "no CUDA", "code": "cuda_unavailable"}), errors.LoadFailed, "no CUDA"),
        (httpx.Response(400, json=["odd"]), errors.LoadFailed, "odd"),
        (httpx.Response(502, text="bad gateway"), errors.LoadFailed, "status 502"),
    ],
)
def test_a_load_that_fails_is_one_error(answer: httpx.Response, kind: type[Exception], words: str) -> None:
    """In the node's own words where it has any."""
    with pytest.raises(kind, match=words):
        load(lambda _: answer)


@pytest.mark.parametrize(
    ("answer", "loaded"),
    [
        (httpx.Response(200, json={"status": "loaded"}), True),
        (httpx.Response(400, json={"error": "m is already loaded"}), False),
    ],
)
def test_already_loaded_is_loaded(answer: httpx.Response, loaded: bool) -> None:
    """It is success, and told apart from a load that was done."""

    async def work(client: NeuronClient) -> None:
        spec = LoadSpec(model_id="m")
        assert await client.load(spec, timeout_secs=5, report=lambda _: None) is loaded

    ask(lambda _: answer, work)


def test_an_absent_option_is_absent_on_the_wire() -> None:
    """So that the node's own default holds."""
    sent: list[bytes] = []

    def handler(request: httpx.Request) -> httpx.Response:
        sent.append(request.read())
        return httpx.Response(200, json={})

    load(handler)

    assert sent == [b'{"model_id":"m","harness":"jax","quant":"auto","tensor_parallel":1}']


def test_an_unload_counts_what_is_not_there_as_gone() -> None:
    """404 is success; any other refusal is told."""
    for status in (200, 404):
        ask(lambda _, code=status: httpx.Response(code, json={}), lambda client: client.unload("m", drain_secs=1))
    with pytest.raises(errors.UpstreamMalformed, match="500: stuck"):
        ask(lambda _: httpx.Response(500, text="stuck"), lambda client: client.unload("m", drain_secs=1))


@pytest.mark.parametrize("status", [401, 403])
@pytest.mark.parametrize("use", ["observe", "load", "unload"])
def test_a_neuron_that_does_not_let_us_in_is_heard(use: str, status: int) -> None:
    """In its words, whatever it was asked."""
    words = {"error": {"message": "This neuron wants its secret.", "type": "authentication_error", "code": "x"}}
    uses: dict[str, Callable[[NeuronClient], Any]] = {
        "observe": lambda client: client.observe(),
        "load": lambda client: client.load(LoadSpec(model_id="m"), timeout_secs=5, report=lambda _: None),
        "unload": lambda client: client.unload("m", drain_secs=1),
    }
    with pytest.raises(errors.UpstreamDenied, match="beast does not let this gateway in: This neuron wants its secret"):
        ask(lambda _: httpx.Response(status, json=words), uses[use])
