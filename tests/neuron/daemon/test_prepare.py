"""From a checked request to what the engine gets: sampling, seeds, limits, stop ids."""

import json
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.daemon.generation import GenerationJob
from neuron_jax.daemon.model_text import read_text
from neuron_jax.daemon.prepare import Outside, completion_job, with_bound_calls
from neuron_jax.daemon.problems import Problem
from neuron_jax.daemon.schema import read_chat, read_completion
from neuron_jax.workers.frames import Sampling
from tests.fakes.rendering import job_of
from tests.fakes.tiny_model import END, MESSAGES_PART, write_tiny_model

OUTSIDE = Outside(id="x", seed=7, created=1, max_context=100)


def job(folder: Path, advice: dict[str, Any] | None = None, **fields: Any) -> GenerationJob:
    """The job of a chat with the one message `hi`, which is 5 tokens."""
    write_tiny_model(folder)
    if advice is not None:
        (folder / "generation_config.json").write_text(json.dumps(advice))
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    return job_of(read_chat(body), read_text(folder), OUTSIDE)


def test_nothing_said_is_neutral(tmp_path: Path) -> None:
    """Temperature 1 and a drawn seed; the answer may fill the context."""
    submit = job(tmp_path).submits[0]

    assert submit.sampling == Sampling(seed=7)
    assert (len(submit.prompt), submit.max_tokens, submit.stop_ids, submit.ignore_eos) == (5, 95, (END,), False)


def test_the_request_wins_over_the_models_advice(tmp_path: Path) -> None:
    """Request, then generation_config, then neutral."""
    advice = {"temperature": 0.2, "top_p": 0.9, "top_k": 20, "do_sample": True, "max_length": 9}
    sampling = job(tmp_path, advice, top_p=0.5, presence_penalty=1).submits[0].sampling

    assert sampling == Sampling(temperature=0.2, top_p=0.5, top_k=20, presence_penalty=1.0, seed=7)


def test_advice_that_a_request_would_be_refused_for_is_not_followed(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """The rest of it is; the log names file, key and value."""
    advice = {"temperature": -1, "top_p": True, "top_k": "9", "min_p": 0.1, "repetition_penalty": None}
    sampling = job(tmp_path, advice).submits[0].sampling

    assert sampling == Sampling(min_p=0.1, seed=7)
    assert len(caplog.messages) == 3
    assert all(f"{tmp_path}: generation_config.json is not followed: " in line for line in caplog.messages)
    assert "temperature" in caplog.messages[0]
    assert "-1" in caplog.messages[0]


def test_seeds_count_up_over_the_choices(tmp_path: Path) -> None:
    """Choice i has seed + i, so that one of them can be asked for again alone; it wraps at 64 bits."""
    seeds = [submit.sampling.seed for submit in job(tmp_path, n=3, seed=-2).submits]

    assert seeds == [2**64 - 2, 2**64 - 1, 0]


def test_more_tokens_than_the_context_has_are_capped(tmp_path: Path) -> None:
    """A large max_tokens is what clients send to say "as much as there is"."""
    assert job(tmp_path, max_tokens=10_000).submits[0].max_tokens == 95


@pytest.mark.parametrize(
    ("fields", "stop_ids", "ignore"),
    [
        ({"stop_token_ids": [65, END]}, (END, 65), False),
        ({"ignore_eos": True}, (), True),
        ({"ignore_eos": True, "stop_token_ids": [65]}, (65,), False),
    ],
)
def test_stop_ids(tmp_path: Path, fields: dict[str, Any], stop_ids: tuple[int, ...], ignore: bool) -> None:
    """ignore_eos forgets the end tokens, not the ids the client named."""
    submit = job(tmp_path, **fields).submits[0]

    assert (submit.stop_ids, submit.ignore_eos) == (stop_ids, ignore)


def test_one_long_prompt_refuses_the_whole_batch(tmp_path: Path) -> None:
    """Every prompt of a batch must fit."""
    request = read_completion({"model": "m", "prompt": ["a", "b" * 100]})

    with pytest.raises(Problem) as raised:
        completion_job(request, read_text(write_tiny_model(tmp_path)), OUTSIDE)

    assert (raised.value.code, raised.value.param) == ("context_length_exceeded", "prompt[1]")


def test_a_token_that_the_model_has_no_place_for_is_refused(tmp_path: Path) -> None:
    """A tokenizer may have more tokens than the model: what uses one of them is refused, whatever it comes in."""
    write_tiny_model(tmp_path)
    config = json.loads((tmp_path / "config.json").read_text())
    (tmp_path / "config.json").write_text(json.dumps(config | {"vocab_size": 100}))
    text = read_text(tmp_path)
    asked = {"prompt": "hi", "logit_bias": {"104": 1.0}}
    for param, fields in (("prompt", {"prompt": "hi"}), ("logit_bias", {**asked, "prompt": [1]})):
        with pytest.raises(Problem, match=rf"{param}: token 10\d is outside the vocabulary of 100 tokens") as raised:
            completion_job(read_completion({"model": "m", **fields}), text, OUTSIDE)
        assert raised.value.status == 400
    with pytest.raises(Problem, match="messages: token 258 is outside the vocabulary"):
        job_of(read_chat({"model": "m", "messages": [{"role": "user", "content": "\n"}]}), text, OUTSIDE)


TOOL_USE = "{{ '<|tool|>' }}{% for tool in tools %}<tool_call>{{ tool.function.name }}{% endfor %}"
NAMED = [{"name": "default", "template": MESSAGES_PART}, {"name": "tool_use", "template": TOOL_USE + MESSAGES_PART}]


def test_a_chat_with_tools_is_rendered_with_the_template_for_tools(tmp_path: Path) -> None:
    """Where a model has one of that name; every other chat with the default one, whose calls are then words."""
    write_tiny_model(tmp_path)
    (tmp_path / "tokenizer_config.json").write_text(json.dumps({"chat_template": NAMED}))
    text = read_text(tmp_path)

    def prompt(*messages: dict[str, Any], **fields: Any) -> str:
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}, *messages], **fields}
        return text.tokenizer.decode(job_of(read_chat(body), text, OUTSIDE).submits[0].prompt, skip_special=False)

    call = {"id": "1", "type": "function", "function": {"name": "f", "arguments": "{}"}}
    called = {"role": "assistant", "content": None, "tool_calls": [call]}
    assert (text.abilities.tool_call, text.tool_format) == (True, "hermes")
    assert prompt() == "<|user|>hi<|end|><|assistant|>"
    assert prompt(tools=[function()]) == "<|tool|><tool_call>f<|user|>hi<|end|><|assistant|>"
    assert '<tool_call>\n{"name": "f", "arguments": {}}\n</tool_call>' in prompt(called)


def bound(folder: Path, **fields: Any) -> Any:
    """What a chat is bound to whose model has a place for tools, if to anything."""
    write_tiny_model(folder)
    body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
    form = with_bound_calls(read_chat(body), read_text(folder)).params.form
    return form and json.loads(form.constraint.source)


def function(**more: Any) -> dict[str, Any]:
    return {"type": "function", "function": {"name": "f", "parameters": {"required": ["a"]}, **more}}


def test_only_strict_functions_are_bound_where_the_model_chooses(tmp_path: Path) -> None:
    """From where it begins a call; the others beside them take any object."""
    told = bound(tmp_path, tools=[function(), {"type": "function", "function": {"name": "g", "strict": True}}])
    alone = bound(tmp_path, tools=[function(strict=True)], parallel_tool_calls=False)

    assert bound(tmp_path, tools=[function()]) is None
    assert bound(tmp_path, tools=[function(strict=True)], tool_choice="none") is None
    assert told["trigger"] == "<tool_call>"
    assert [call["schema"] for call in told["calls"]] == [{"type": "object"}, {"type": "object"}]
    assert (told["several"], alone["several"]) == (True, False)
    assert alone["calls"][0]["schema"] == {"type": "object", "required": ["a"]}


def test_forced_calls_are_bound_strict_or_not(tmp_path: Path) -> None:
    """From the first token on."""
    told = bound(tmp_path, tools=[function()], tool_choice="required")

    assert "trigger" not in told
    assert told["calls"][0]["schema"] == {"type": "object", "required": ["a"]}


@pytest.mark.parametrize("mode", ["auto", "required"])
def test_allowed_tools_are_all_that_the_model_is_told_of(tmp_path: Path, mode: str) -> None:
    """OpenAI's third kind of choice; several of them may be called."""
    tools = [function(strict=True), {"type": "function", "function": {"name": "g"}}, function(name="h")]
    named = [{"type": "function", "function": {"name": name}} for name in ("f", "h")]
    told = bound(
        tmp_path, tools=tools, tool_choice={"type": "allowed_tools", "allowed_tools": {"mode": mode, "tools": named}}
    )

    assert len(told["calls"]) == 2
    assert told["several"]
    assert ("trigger" in told) is (mode == "auto")


def test_tools_can_be_called_where_the_answer_is_to_be_json(tmp_path: Path) -> None:
    """Unless none may be; a form that is no JSON is the whole answer's."""
    json_mode = {"response_format": {"type": "json_object"}, "tools": [function()]}
    told = bound(tmp_path, **json_mode)

    assert (told["answer"], told["calls"][0]["schema"]) == ('{"type": "object"}', {"type": "object"})
    write_tiny_model(tmp_path)
    text = read_text(tmp_path)
    for fields in ({**json_mode, "tool_choice": "none"}, {"guided_regex": "a", "tools": [function()]}):
        body = {"model": "m", "messages": [{"role": "user", "content": "hi"}], **fields}
        form = with_bound_calls(read_chat(body), text).params.form
        assert form is not None
        assert form.constraint.kind in ("json_object", "regex")
