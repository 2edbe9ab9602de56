"""Requests that are far too long are refused early and in little memory, whatever makes them long."""

import json
from pathlib import Path
from typing import Any

import attrs
import pytest

from neuron_jax.config import AdmissionConfig, ServerConfig
from neuron_jax.daemon.chat_schema import MAX_MESSAGES, MAX_PARTS, MAX_TOOLS
from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.json_bounds import has_too_many_values
from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.prepare import Outside, completion_job
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import read_chat, read_completion, read_tokenize
from neuron_jax.hardware.cpu import read_resident
from neuron_jax.text.tokenizer import Tokenizer
from tests.fakes.live_neuron import MODEL, LiveNeuron, with_neuron
from tests.fakes.rendering import job_of
from tests.fakes.tiny_model import write_tiny_model

USER = {"role": "user", "content": "hi"}
TOOL = {"type": "function", "function": {"name": "f"}}
MIB = 1 << 20


@pytest.mark.parametrize(
    ("body", "many"),
    [
        (b"[" * 40, True),
        (b"[" + b'"",' * 40, True),
        (b'{"a":1},' * 20, True),
        (b"1," * 40, True),
        (b'"' + b"a,[{" * 40 + b'"', False),
        (b'"' + b"a,[{" * 40, False),
        (b'"\\\\",' * 12, False),
        (b'"\\",' + b"," * 40 + b'"', False),
        (b'"\\\\"' + b"," * 40 + b'"', True),
        (b'"' + b'\\"' * 40 + b"\\", False),
        (b"[1,2,3,4,5,6,7,8,9,10,11,12]", False),
    ],
)
def test_values_are_counted_outside_of_strings(body: bytes, many: bool) -> None:
    """Commas and brackets of a text are text, whatever quotes it has; a string that is left open is one as well."""
    assert has_too_many_values(body, 30) is many


def test_a_body_of_a_million_tiny_values_is_refused_unread() -> None:
    """Twenty million empty lists fit into 60 MB of JSON and would be 1.4 GB of objects."""
    with pytest.raises(Problem, match="more than 1000000 JSON values") as raised:
        decode_object(b'{"a":[' + b"[]," * 600_000 + b"0]}")

    assert (raised.value.status, raised.value.code) == (400, "invalid_request_body")
    assert decode_object(b'{"a":"' + b"[]," * 600_000 + b'"}')["a"]


@pytest.mark.parametrize(
    ("change", "param"),
    [
        ({"messages": [USER] * (MAX_MESSAGES + 1)}, "messages"),
        ({"tools": [TOOL] * (MAX_TOOLS + 1)}, "tools"),
        ({"messages": [{**USER, "content": [{"type": "text", "text": ""}] * (MAX_PARTS + 1)}]}, "messages[0].content"),
        ({"messages": [{"role": "assistant", "tool_calls": [{}] * (MAX_PARTS + 1)}]}, "messages[0].tool_calls"),
    ],
)
def test_lists_that_no_client_means_are_refused_by_name(change: dict[str, Any], param: str) -> None:
    """Each item costs time to check before anything is known about its length."""
    with pytest.raises(Problem, match="at most") as raised:
        read_chat({"model": "m", "messages": [USER], **change})

    assert raised.value.param == param


def outside(context: int) -> Outside:
    return Outside(id="x", seed=1, created=0, max_context=context)


@pytest.fixture(scope="module")
def text(tmp_path_factory: pytest.TempPathFactory) -> ModelText:
    return read_text(write_tiny_model(tmp_path_factory.mktemp("long") / "tiny"))


class Untouched(Tokenizer):
    """A tokenizer that must not be asked for ids."""

    def __init__(self, real: Tokenizer) -> None:
        self.__dict__.update(real.__dict__)
        self._encoder = None  # type: ignore[assignment] - whoever uses it fails


def test_a_hopeless_chat_is_refused_before_it_is_rendered(text: ModelText) -> None:
    """The longest token says how many there are at least; the number told is an estimate, and says so."""
    chat = read_chat({"model": "m", "messages": [USER, {"role": "user", "content": "x" * 100_000}]})
    with pytest.raises(Problem) as raised:
        job_of(chat, attrs.evolve(text, tokenizer=Untouched(text.tokenizer)), outside(4096))

    problem = raised.value
    assert (problem.status, problem.code) == (400, "context_length_exceeded")
    assert problem.extras["max"] == 4096
    assert problem.extras["estimated"] is True
    assert "resulted in 25000 tokens (an estimate). Please reduce" in problem.message


def test_parts_of_a_message_count_together(text: ModelText) -> None:
    """Ten thousand characters in each of ten parts are a hundred thousand."""
    parts = [{"type": "text", "text": "x" * 10_000}] * 10
    chat = read_chat({"model": "m", "messages": [{"role": "user", "content": parts}]})
    with pytest.raises(Problem, match="25000 tokens"):
        job_of(chat, attrs.evolve(text, tokenizer=Untouched(text.tokenizer)), outside(4096))


def test_what_a_template_leaves_out_does_not_count(text: ModelText) -> None:
    """Reasoning of earlier turns is sent back by clients, and rendered by few templates."""
    history = [{"role": "assistant", "content": "ok", "reasoning_content": "x" * 100_000}, USER]
    chat = read_chat({"model": "m", "messages": history})

    assert job_of(chat, text, outside(4096)).prompt_tokens == len("ok") + len("hi") + 5


@pytest.mark.parametrize(("prompt", "told"), [([1] * 5000, 5000), ("x" * 5000, 5000), (["a", "x" * 5000], 5000)])
def test_a_long_prompt_is_told_its_length(text: ModelText, prompt: Any, told: int) -> None:
    """Text or ids, alone or one of several."""
    with pytest.raises(Problem) as raised:
        completion_job(read_completion({"model": "m", "prompt": prompt}), text, outside(4096))

    assert (raised.value.code, raised.value.extras["prompt_len"]) == ("context_length_exceeded", told)
    assert "estimated" not in raised.value.extras


def test_many_long_prompts_are_bounded_together(text: ModelText) -> None:
    """A hundred and twenty-eight of them could each fill the context."""
    with pytest.raises(Problem, match="tokens in one request"):
        completion_job(read_completion({"model": "m", "prompt": ["x" * 9_000] * 60}), text, outside(10_000))


def test_a_place_comes_before_any_work(tmp_path: Path) -> None:
    """With the line full nobody renders or counts a prompt: even one that the template refuses is told to come back."""

    async def use(neuron: LiveNeuron) -> None:
        admission = neuron.lifecycle.residents[0].admission
        with admission.enter(1):
            full = await neuron.chat("refuse to render")
        assert (full.status_code, full.json()["error"]["code"]) == (503, "rate_limit_exceeded")
        assert (await neuron.chat("refuse to render")).status_code == 422
        assert (admission.in_flight, admission.queued) == (0, 0)

    with_neuron(tmp_path, use, max_slots=1, queue=AdmissionConfig(max_queue_depth=0))


def test_the_line_in_front_of_tokenize_is_bounded_too(tmp_path: Path) -> None:
    """It needs no model, so it has a line of its own."""

    async def use(neuron: LiveNeuron) -> None:
        with neuron.counting.enter(1), neuron.counting.enter(1):
            full = await neuron.http.post("/tokenize", json={"model": MODEL, "prompt": "hi"})
        assert (full.status_code, full.json()["error"]["code"]) == (503, "rate_limit_exceeded")
        counted = await neuron.http.post("/tokenize", json={"model": MODEL, "prompt": "hi"})
        assert counted.json()["count"] == 2

    with_neuron(tmp_path, use, load=False, queue=AdmissionConfig(max_queue_depth=0))


def test_tokenize_counts_what_is_too_long_and_stops_somewhere(tmp_path: Path) -> None:
    """Clients ask before they send; what is many times too long is refused as a chat would be."""

    async def use(neuron: LiveNeuron) -> None:
        async def count(chars: int) -> Any:
            return await neuron.http.post("/tokenize", json={"model": MODEL, "prompt": "x" * chars})

        assert (await count(60_000)).json()["count"] == 60_000
        refused = await count(1_000_000)
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")

    with_neuron(tmp_path, use, load=False)


@pytest.mark.parametrize("size", [8, 31])
def test_a_chat_of_many_megabytes_is_refused_and_the_next_one_answered(size: int, tmp_path: Path) -> None:
    """`bench/long_requests.py` has the figures; here the daemon is well afterwards."""

    async def use(neuron: LiveNeuron) -> None:
        refused = await neuron.chat("word " * (size * MIB // 5))
        assert (refused.status_code, refused.json()["error"]["code"]) == (400, "context_length_exceeded")
        assert (await neuron.chat("still here")).json()["choices"][0]["message"]["content"] == "still here"

    with_neuron(tmp_path, use, server=ServerConfig(port=0))


def test_prompts_of_tokenize_are_read_as_elsewhere() -> None:
    """The same bounds."""
    with pytest.raises(Problem, match="at most"):
        read_tokenize({"model": "m", "messages": [USER] * (MAX_MESSAGES + 1)})


GROWS = (
    "{% set ns = namespace(s='xxxxxxxx') %}{% for i in range(40 if messages[0].content == 'grow' else 0) %}"
    "{% set ns.s = ns.s + ns.s %}{% endfor %}{{ ns.s if ns.s | length > 8 }}<|user|>{{ messages[0].content }}<|end|>"
)


def test_a_template_that_grows_harms_nobody(tmp_path: Path) -> None:
    """The chat for which it does is refused, the next one is answered, and the daemon is as large as before."""

    async def use(neuron: LiveNeuron) -> None:
        config = {"eos_token": "<|end|>", "chat_template": GROWS}
        (neuron.folder / "tokenizer_config.json").write_text(json.dumps(config))
        await neuron.load()
        before = read_resident().peak
        refused = await neuron.chat("grow")
        assert (refused.status_code, refused.json()["error"]["code"]) == (422, "template_render_failed")
        assert "MiB of memory" in refused.json()["error"]["message"]
        assert read_resident().peak - before < 100 * MIB
        assert (await neuron.chat("fine")).json()["choices"][0]["message"]["content"] == "fine"

    with_neuron(tmp_path, use, load=False)


def test_a_template_that_cannot_be_compiled_is_a_load_that_fails(tmp_path: Path) -> None:
    """Not the first chat's failure."""

    async def use(neuron: LiveNeuron) -> None:
        (neuron.folder / "tokenizer_config.json").write_text(json.dumps({"chat_template": "{{ 1 | nosuch }}"}))
        answer = await neuron.http.post("/models/load", json={"model_id": MODEL})
        assert (answer.status_code, answer.json()["error"]["kind"]) == (422, "bad_checkpoint")
        assert "nosuch" in answer.json()["error"]["message"]

    with_neuron(tmp_path, use, load=False)
