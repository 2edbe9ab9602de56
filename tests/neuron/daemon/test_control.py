"""The control routes: what a host says of itself, loading with progress, unloading, default models, metrics."""

import asyncio
import json
from pathlib import Path
from typing import Any

import attrs
import httpx
import pytest

from neuron_jax.config import ModelSpec
from neuron_jax.daemon.assign import assign
from neuron_jax.errors import LoadError
from neuron_jax.weights.sources import BUILT_IN
from tests.fakes.live_neuron import MODEL, LiveNeuron, config_for, running, sse_events, still_devices, with_neuron
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

SSE = {"accept": "text/event-stream"}


async def load(neuron: LiveNeuron, **body: Any) -> httpx.Response:
    return await neuron.http.post("/models/load", json={"model_id": MODEL, **body})


def test_version_and_discovery(tmp_path: Path) -> None:
    """Every field of the wire is there, and a CPU host says that it is one."""

    async def use(neuron: LiveNeuron) -> None:
        version = (await neuron.http.get("/version")).json()
        found = (await neuron.http.get("/discovery")).json()

        assert version.keys() == {
            "package_version",
            "git_sha",
            "git_dirty",
            "python_version",
            "jax_version",
            "features",
        }
        assert found["devices"][0] == {
            "index": 0,
            "name": "still CPU",
            "kind": "cpu",
            "vram_total_mb": 1000,
            "compute_capability": None,
        }
        assert (found["harnesses"], found["cuda_unavailable_reason"]) == (["jax"], "no NVIDIA driver")
        assert found["max_prompt_tokens"] == 0

    with_neuron(tmp_path, use, load=False)


def test_programs_that_could_not_be_compiled_are_shown(tmp_path: Path) -> None:
    """By name in the model's view, as a number in the metrics; nothing is shown where all could."""

    async def use(neuron: LiveNeuron) -> None:
        await neuron.chat("a first answer brings the engine's load along")
        (model, *_) = (await neuron.http.get("/models")).json()
        metrics = (await neuron.http.get("/metrics")).text

        assert model.get("dropped_programs", []) == dropped
        assert f'neuron_programs_dropped{{model="{MODEL}"}} {len(dropped)}.0' in metrics

    for dropped in ([], ["step 2", "step 8"]):
        with_neuron(tmp_path, use, dropped=dropped)


def test_models_before_and_after_loading(tmp_path: Path) -> None:
    """Unloaded with limits and an estimate, then loaded with process, plan, devices and formats."""

    async def use(neuron: LiveNeuron) -> None:
        before = (await neuron.http.get("/models")).json()
        await neuron.load()
        after = (await neuron.http.get("/models")).json()

        assert [model["id"] for model in before] == [MODEL, *BUILT_IN]
        assert before[0]["status"] == "unloaded"
        assert (before[0]["limit"]["context"], before[0]["vram_estimate_mb"]) == (4096, 1)
        assert (before[0]["tool_call"], before[0]["aliases"]) == (True, ["tiny"])
        assert (after[0]["status"], after[0]["devices"], after[0]["vram_used_mb"]) == ("loaded", [1], 3)
        assert after[0]["quant"] == {"chosen": "none", "reason": "a double has no weights"}
        assert after[0]["kv_dtype"] == {"chosen": "float32", "reason": "a double has no cache"}
        assert after[0]["deterministic"] == {"chosen": False, "reason": "a double invents its tokens"}
        assert after[0]["attention"] == {"chosen": "none", "reason": "a double attends to nothing"}
        assert after[0]["plan"][0] == {"what": "weights", "bytes": 1 << 20}
        assert after[0]["pid"] == neuron.pid()
        assert after[0]["limit"] == {"context": 4096, "input": 4095, "output": 4095}

    with_neuron(tmp_path, use, load=False)


def test_endpoint_and_capabilities(tmp_path: Path) -> None:
    """The endpoint is this daemon, for loaded models only; capabilities are known from files too."""

    async def use(neuron: LiveNeuron) -> None:
        async def get(part: str) -> tuple[int, Any]:
            answer = await neuron.http.get(f"/models/{part}")
            return answer.status_code, answer.json()

        assert (await get("org%2Ftiny/endpoint"))[0] == 404
        assert await get("org%2Ftiny/capabilities") == (200, {"capabilities": ["text"]})
        assert (await get("other%2Fmodel/capabilities"))[0] == 404
        await neuron.load()
        assert await get("org%2Ftiny/endpoint") == (200, {"url": neuron.url})
        assert (await get("tiny/endpoint"))[0] == 200

    with_neuron(tmp_path, use, load=False)


def test_loading_twice(tmp_path: Path) -> None:
    """Two loads at once are one; a third says already loaded."""

    async def use(neuron: LiveNeuron) -> None:
        both = await asyncio.gather(load(neuron), load(neuron, quant="none"))
        again = await load(neuron)

        assert [answer.json() for answer in both] == [{"status": "loaded"}] * 2
        assert (again.status_code, again.json()) == (400, {"error": "org/tiny is already loaded"})
        assert (neuron.folder / "starts").read_text() == "1"

    with_neuron(tmp_path, use, load=False, load_seconds=0.2)


def test_a_load_tells_how_far_it_is(tmp_path: Path) -> None:
    """With Accept: text/event-stream the phases, then the outcome; /models shows progress meanwhile."""

    async def use(neuron: LiveNeuron) -> None:
        streaming = asyncio.create_task(neuron.http.post("/models/load", json={"model_id": MODEL}, headers=SSE))
        await until(lambda: neuron.lifecycle.residents and neuron.lifecycle.residents[0].status.progress)
        info = (await neuron.http.get("/models")).json()[0]
        refused = await neuron.chat("hello")
        events = [json.loads(event) for event in sse_events((await streaming).text)]

        assert info["status"] == "loading"
        assert info["progress"]["phase"] == "weights"
        assert (refused.status_code, refused.json()["error"]["code"]) == (503, "service_unavailable")
        assert events[-1] == {"status": "loaded"}
        assert events[0].keys() == {"phase", "done", "total", "unit"}
        assert events[-2] == {"phase": "weights", "done": 100, "total": 100, "unit": "bytes"}

    with_neuron(tmp_path, use, load=False, load_seconds=0.3)


@pytest.mark.parametrize("stream", [False, True])
def test_a_model_that_does_not_fit(tmp_path: Path, stream: bool) -> None:
    """422 (or an error event) with kind, plan and suggestion; the model is listed as failed and can be tried again."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.http.post("/models/load", json={"model_id": MODEL}, headers=SSE if stream else {})
        body = json.loads(sse_events(answer.text)[-1]) if stream else answer.json()

        assert answer.status_code == (200 if stream else 422)
        assert body["error"] == {
            "kind": "does_not_fit",
            "model_id": MODEL,
            "message": "too big: weights 1 MiB. Give 3 MiB more",
            "plan": [{"what": "weights", "bytes": 1000}],
            "suggestion": "Give 3 MiB more",
        }
        info = (await neuron.http.get("/models")).json()[0]
        assert (info["status"], info["servable"]["reason"]) == ("failed", "unavailable")
        assert (await neuron.chat("x")).status_code == 503
        write_tiny_model(neuron.folder, max_slots=2)
        assert (await load(neuron)).json() == {"status": "loaded"}

    with_neuron(tmp_path, use, load=False, fail=["does_not_fit", "too big: weights 1 MiB. Give 3 MiB more"])


def test_a_failed_load_says_whether_the_model_is_offered_here_at_all(tmp_path: Path) -> None:
    """One that was only ever asked for, by a folder that is no model, is told from one that the host has and cannot load."""

    async def use(neuron: LiveNeuron) -> None:
        await load(neuron)
        (tmp_path / "empty").mkdir()
        body = {"model_id": "asked-for", "source": str(tmp_path / "empty")}
        assert (await neuron.http.post("/models/load", json=body)).status_code == 422
        listed = {info["id"]: info for info in (await neuron.http.get("/models")).json()}

        assert [(listed[name]["status"], listed[name]["offered"]) for name in (MODEL, "asked-for")] == [
            ("failed", True),
            ("failed", False),
        ]

    with_neuron(tmp_path, use, load=False, die_loading=3)


def test_an_engine_that_dies_while_loading(tmp_path: Path) -> None:
    """engine_failed, with its last words."""

    async def use(neuron: LiveNeuron) -> None:
        error = (await load(neuron)).json()["error"]

        assert error["kind"] == "engine_failed"
        assert "told to die while loading" in error["message"]

    with_neuron(tmp_path, use, load=False, die_loading=3)


def _fault(*_: Any) -> Any:
    raise RuntimeError("nobody foresaw this")


def test_a_load_that_fails_for_a_reason_that_nobody_foresaw_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """For who asked first and who joined; the model is failed rather than loading, and can be loaded again."""

    async def use(neuron: LiveNeuron) -> None:
        with monkeypatch.context() as patched:
            patched.setattr("neuron_jax.daemon.resident.read_text", _fault)
            for answer in await asyncio.gather(load(neuron), load(neuron)):
                assert answer.status_code == 422, answer.text
                assert answer.json()["error"]["kind"] == "engine_failed"
                assert answer.json()["error"]["message"] == "RuntimeError: nobody foresaw this"
        assert [one.status.stage for one in neuron.lifecycle.residents] == ["failed"]
        assert (await load(neuron)).json() == {"status": "loaded"}

    with_neuron(tmp_path, use, load=False)


@pytest.mark.parametrize(
    ("body", "status", "words"),
    [
        ({}, 400, "model_id: is missing; allowed: a string of 1 to 512 characters"),
        ({"model_id": 3}, 400, "model_id: found 3"),
        ({"model_id": "m" * 100_000}, 400, "a string of 1 to 512 characters"),
        ({"model_id": MODEL, "quant": "int8" * 100_000}, 400, 'allowed: "auto", '),
        ({"model_id": MODEL, "quant": "int9"}, 400, 'did you mean "int8"?'),
        ({"model_id": MODEL, "kv_dtype": "fp16"}, 400, 'allowed: "auto", "float32", "bfloat16", "int8", "fp8"'),
        ({"model_id": MODEL, "deterministic": "yes"}, 400, 'deterministic: found "yes"'),
        ({"model_id": MODEL, "harness": "vllm"}, 400, 'allowed: "jax", "candle"'),
        ({"model_id": MODEL, "devices": [7]}, 422, "bad_devices"),
        ({"model_id": MODEL, "tensor_parallel": 3}, 422, "bad_devices"),
        ({"model_id": "nonsense"}, 422, "repo_fetch_failed"),
        ({"model_id": "x/y", "source": "/no/such/folder"}, 422, "repo_fetch_failed"),
    ],
)
def test_a_load_that_cannot_be(tmp_path: Path, body: dict[str, Any], status: int, words: str) -> None:
    """400 with a text for a wrong body, 422 with a kind for a model that cannot be had; nothing is left behind."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.http.post("/models/load", json=body)
        streamed = await neuron.http.post("/models/load", json=body, headers=SSE)

        assert answer.status_code == streamed.status_code == status, streamed.text
        assert words in str(answer.json()["error"])
        assert len(answer.text) < 2000
        assert isinstance(answer.json()["error"], str) == (status == 400)

    with_neuron(tmp_path, use, load=False)


def test_unload_answers(tmp_path: Path) -> None:
    """400 without a name, 404 for what is not loaded; a loading model can be unloaded, its caller gets 503."""

    async def use(neuron: LiveNeuron) -> None:
        async def unload(**body: Any) -> httpx.Response:
            return await neuron.http.post("/models/unload", json=body)

        assert ((await unload()).status_code, (await unload()).json()) == (400, {"error": "missing model_id"})
        assert (await unload(model_id=MODEL, drain_secs=-1)).status_code == 400
        assert (await unload(model_id=MODEL)).status_code == 404
        loading = asyncio.create_task(load(neuron))
        await until(lambda: neuron.lifecycle.residents and neuron.lifecycle.residents[0].status.progress)
        assert (await unload(model_id=MODEL)).json() == {"status": "unloaded"}
        assert (await loading).status_code == 503
        assert neuron.lifecycle.residents == ()

    with_neuron(tmp_path, use, load=False, load_seconds=60)


def test_the_load_goes_on_when_its_caller_leaves(tmp_path: Path) -> None:
    """A client that gives up does not waste the work: the model serves anyway."""

    async def use(neuron: LiveNeuron) -> None:
        asking = asyncio.create_task(neuron.http.post("/models/load", json={"model_id": MODEL}, headers=SSE))
        await until(lambda: neuron.lifecycle.residents and neuron.lifecycle.residents[0].status.progress)
        asking.cancel()
        await asyncio.gather(asking, return_exceptions=True)
        await until(lambda: neuron.lifecycle.residents[0].status.stage == "loaded")
        assert (await neuron.chat("x")).status_code == 200
        assert f'neuron_requests_total{{model="{MODEL}",outcome="ok"}} 1.0' in (await neuron.http.get("/metrics")).text

    with_neuron(tmp_path, use, load=False, load_seconds=0.3)


def test_default_models_are_loaded_at_start(tmp_path: Path) -> None:
    """One after the other; /health tells what failed and what serves."""
    folder = write_tiny_model(tmp_path / "tiny")
    good = ModelSpec(model_id=MODEL, source=str(folder))
    bad = ModelSpec(model_id="x/y", source="/no/such/folder")
    config = attrs.evolve(config_for(folder, tmp_path), models=(), default_models=(bad, good))

    async def run() -> dict[str, Any]:
        async with running(config) as (url, lifecycle), httpx.AsyncClient(base_url=url, timeout=30) as http:
            assert (await http.get("/health")).json()["activation"]["state"] == "pre_warming"
            await until(lambda: lifecycle.default_models.state == "ready")
            health: dict[str, Any] = (await http.get("/health")).json()
            return health

    health = asyncio.run(run())

    assert health["activation"]["completed"] == [MODEL]
    assert [failed["model_id"] for failed in health["activation"]["failed"]] == ["x/y"]
    assert [model["id"] for model in health["models"]] == [MODEL]


def test_a_fault_with_one_default_model_leaves_the_next_its_turn(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Whatever it is: the neuron does not stay `pre_warming`."""
    folder = write_tiny_model(tmp_path / "tiny")
    models = tuple(ModelSpec(model_id=name, source=str(folder)) for name in ("x/y", MODEL))
    config = attrs.evolve(config_for(folder, tmp_path), models=(), default_models=models)
    monkeypatch.setattr("neuron_jax.daemon.lifecycle.Lifecycle.load", _fault)

    async def run() -> None:
        async with running(config) as (_, lifecycle):
            await until(lambda: lifecycle.default_models.state == "ready")
            said = "RuntimeError: nobody foresaw this"
            assert lifecycle.default_models.failed == [("x/y", said), (MODEL, said)]

    asyncio.run(run())


def test_metrics_name_what_happened(tmp_path: Path) -> None:
    """Counters of requests and tokens, histograms of time, gauges of engine and devices."""

    async def use(neuron: LiveNeuron) -> None:
        await neuron.chat("hello")
        text = (await neuron.http.get("/metrics")).text

        label = f'{{model="{MODEL}"}}'
        assert f"neuron_prompt_tokens_total{label} 8.0" in text
        assert f"neuron_completion_tokens_total{label} 6.0" in text
        assert f"neuron_time_to_first_token_seconds_count{label} 1.0" in text
        assert f"neuron_inter_token_seconds_count{label} 5.0" in text
        assert f"neuron_request_duration_seconds_count{label} 1.0" in text
        assert f"neuron_model_up{label} 1.0" in text
        assert f"neuron_pages{label} 1024.0" in text
        assert f"neuron_engine_restarts_total{label} 0.0" in text
        assert 'neuron_device_vram_free_mb{device="1"} 200.0' in text

    with_neuron(tmp_path, use)


@pytest.mark.parametrize(
    ("spec", "crowd", "expected"),
    [
        (ModelSpec(model_id="m"), {}, (3,)),
        (ModelSpec(model_id="m", tensor_parallel=2), {}, (2, 3)),
        (ModelSpec(model_id="m"), {3: 1}, (2,)),
        (ModelSpec(model_id="m", devices=(1, 0)), {}, (1, 0)),
        (ModelSpec(model_id="m", devices=(0, 1), tensor_parallel=2), {}, (0, 1)),
    ],
)
def test_devices_are_those_named_or_the_emptiest(
    spec: ModelSpec, crowd: dict[int, int], expected: tuple[int, ...]
) -> None:
    """Explicit devices win; else fewest models, then most free memory."""
    devices = still_devices(4)

    assert assign(spec, devices.hardware, devices._sampler.sample(), crowd) == expected


@pytest.mark.parametrize(
    "spec",
    [
        ModelSpec(model_id="m", devices=(0, 9)),
        ModelSpec(model_id="m", devices=(0, 1), tensor_parallel=3),
        ModelSpec(model_id="m", tensor_parallel=5),
    ],
)
def test_devices_that_are_not_there_are_refused(spec: ModelSpec) -> None:
    """bad_devices says what this host has."""
    devices = still_devices(4)

    with pytest.raises(LoadError) as raised:
        assign(spec, devices.hardware, (), {})

    assert raised.value.kind == "bad_devices"


def test_no_request_names_code(tmp_path: Path) -> None:
    """A transform is a file of Python, which only the operator's own file may name."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await load(neuron, transform=str(tmp_path / "steer.py"))

        assert answer.status_code == 400
        assert "only neuron.toml can name it" in answer.json()["error"]

    with_neuron(tmp_path, use, load=False)
