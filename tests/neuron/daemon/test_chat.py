"""Chat and completions that succeed: text, ends, usage, choices, log-probabilities, tools, thinking."""

import json
from pathlib import Path
from typing import Any

import pytest

from tests.fakes.live_neuron import MODEL, LiveNeuron, sse_events, with_neuron

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
CALL = '<tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call>'


def chunks_of(text: str) -> list[dict[str, Any]]:
    *chunks, done = sse_events(text)
    assert done == "[DONE]"
    return [json.loads(chunk) for chunk in chunks]


def text_of(chunks: list[dict[str, Any]], index: int = 0, key: str = "content") -> str:
    deltas = [choice["delta"] for chunk in chunks for choice in chunk["choices"] if choice["index"] == index]
    return "".join(delta.get(key) or "" for delta in deltas)


def test_a_whole_chat_answer(tmp_path: Path) -> None:
    """One choice, its end, and usage that counts the end token."""

    async def use(neuron: LiveNeuron) -> None:
        answer = (await neuron.chat("hello")).json()

        assert answer["object"] == "chat.completion"
        assert answer["model"] == MODEL
        assert answer["choices"] == [
            {
                "index": 0,
                "message": {"role": "assistant", "content": "hello"},
                "logprobs": None,
                "finish_reason": "stop",
                "stop_reason": None,
            }
        ]
        assert answer["usage"] == {
            "prompt_tokens": 8,
            "completion_tokens": 6,
            "total_tokens": 14,
            "prompt_tokens_details": {"cached_tokens": 0},
        }

    with_neuron(tmp_path, use)


def test_the_grammar_of_a_stream(tmp_path: Path) -> None:
    """Role, content, finish, usage, [DONE]; one id and created; usage null on every chunk before its own."""

    async def use(neuron: LiveNeuron) -> None:
        answer = await neuron.chat("hey", stream=True, stream_options={"include_usage": True})
        chunks = chunks_of(answer.text)

        assert answer.headers["content-type"] == "text/event-stream; charset=utf-8"
        assert (answer.headers["cache-control"], answer.headers["x-accel-buffering"]) == ("no-cache", "no")
        assert [chunk["choices"][0]["delta"] for chunk in chunks[:-1]] == [
            {"role": "assistant", "content": ""},
            {"content": "h"},
            {"content": "e"},
            {"content": "y"},
            {},
        ]
        assert [chunk["choices"][0]["finish_reason"] for chunk in chunks[:-1]] == [None] * 4 + ["stop"]
        assert chunks[-1]["choices"] == []
        assert chunks[-1]["usage"]["total_tokens"] == 10
        assert all(chunk["usage"] is None for chunk in chunks[:-1])
        assert len({(chunk["id"], chunk["created"], chunk["object"]) for chunk in chunks}) == 1

    with_neuron(tmp_path, use)


def test_usage_is_absent_unless_asked_for(tmp_path: Path) -> None:
    """Clients that break on `choices: []` never see it by default."""

    async def use(neuron: LiveNeuron) -> None:
        chunks = chunks_of((await neuron.chat("hey", stream=True)).text)

        assert all("usage" not in chunk and chunk["choices"] for chunk in chunks)

    with_neuron(tmp_path, use)


def test_the_usage_comment_stands_before_the_end(tmp_path: Path) -> None:
    """A proxy counts tokens from a comment that no client sees, whatever stream_options say."""

    async def use(neuron: LiveNeuron) -> None:
        *_, comment, done = (await neuron.chat("hey", stream=True)).text.strip().split("\n\n")

        assert done == "data: [DONE]"
        assert json.loads(comment.removeprefix(": usage "))["total_tokens"] == 10

    with_neuron(tmp_path, use)


def test_a_usage_comment_stands_before_the_first_token(tmp_path: Path) -> None:
    """A proxy knows what the prompt was, also of a stream that is cut off."""

    async def use(neuron: LiveNeuron) -> None:
        _, comment, first, *_ = (await neuron.chat("hey", stream=True)).text.strip().split("\n\n")
        usage = json.loads(comment.removeprefix(": usage "))

        assert json.loads(first.removeprefix("data: "))["choices"][0]["delta"]["content"]
        assert (usage["prompt_tokens"], usage["prompt_tokens_details"]) == (6, {"cached_tokens": 0})

    with_neuron(tmp_path, use)


def test_continuous_usage_is_on_every_chunk(tmp_path: Path) -> None:
    """The role chunk already tells how long the prompt is."""

    async def use(neuron: LiveNeuron) -> None:
        chunks = chunks_of(
            (await neuron.chat("hey", stream=True, stream_options={"continuous_usage_stats": True})).text
        )

        assert [chunk["usage"]["completion_tokens"] for chunk in chunks] == [0, 1, 2, 3, 4]
        assert {chunk["usage"]["prompt_tokens"] for chunk in chunks} == {6}

    with_neuron(tmp_path, use)


@pytest.mark.parametrize("n", [1, 3])
def test_usage_tells_what_of_the_prompt_was_cached(tmp_path: Path, n: int) -> None:
    """Of several choices the first is the one that found it there; the others find what that one left."""

    async def use(neuron: LiveNeuron) -> None:
        text = "[[cached 16]][[say ok]] and so on"
        whole = (await neuron.chat(text, n=n)).json()["usage"]
        options = {"include_usage": True, "continuous_usage_stats": True}
        chunks = chunks_of((await neuron.chat(text, n=n, stream=True, stream_options=options)).text)
        said = [chunk["usage"]["prompt_tokens_details"]["cached_tokens"] for chunk in chunks]
        metrics = (await neuron.http.get("/metrics")).text

        assert whole["prompt_tokens_details"] == {"cached_tokens": 16}
        assert said == [0] * n + [16] * (len(chunks) - n)
        assert f'neuron_cached_prompt_tokens_total{{model="{MODEL}"}} 32.0' in metrics

    with_neuron(tmp_path, use)


def test_a_stop_string_never_leaks(tmp_path: Path) -> None:
    """Text ends before it, the reason names it, and what was generated after it is not counted."""

    async def use(neuron: LiveNeuron) -> None:
        whole = (await neuron.chat("abc STOP def", stop=["STOP", "zzz"])).json()
        chunks = chunks_of((await neuron.chat("abc STOP def", stop="STOP", stream=True)).text)

        assert whole["choices"][0]["message"]["content"] == text_of(chunks) == "abc "
        assert (whole["choices"][0]["finish_reason"], whole["choices"][0]["stop_reason"]) == ("stop", "STOP")
        assert chunks[-1]["choices"][0]["stop_reason"] == "STOP"
        assert whole["usage"]["completion_tokens"] == 8
        assert neuron.lifecycle.residents[0].client is not None
        assert neuron.lifecycle.residents[0].client.open == 0

    with_neuron(tmp_path, use)


def test_stop_token_ids_end_with_their_id_as_reason(tmp_path: Path) -> None:
    """The token's own text is left out; its id is the stop_reason."""

    async def use(neuron: LiveNeuron) -> None:
        choice = (await neuron.chat("ab!cd", stop_token_ids=[ord("!")])).json()["choices"][0]

        assert (choice["message"]["content"], choice["stop_reason"]) == ("ab", ord("!"))

    with_neuron(tmp_path, use)


def test_max_tokens_end_with_length(tmp_path: Path) -> None:
    """max_completion_tokens wins over max_tokens."""

    async def use(neuron: LiveNeuron) -> None:
        choice = (await neuron.chat("abcdef", max_tokens=5, max_completion_tokens=3)).json()["choices"][0]

        assert (choice["message"]["content"], choice["finish_reason"]) == ("abc", "length")

    with_neuron(tmp_path, use)


def test_ignore_eos_goes_on_to_the_length(tmp_path: Path) -> None:
    """The end token does not end it; max_tokens does."""

    async def use(neuron: LiveNeuron) -> None:
        choice = (await neuron.chat("ab", max_tokens=5, ignore_eos=True)).json()["choices"][0]

        assert (choice["message"]["content"], choice["finish_reason"]) == ("ababa", "length")

    with_neuron(tmp_path, use)


def test_several_choices(tmp_path: Path) -> None:
    """n answers, each with its own end; the prompt is counted once."""

    async def use(neuron: LiveNeuron) -> None:
        whole = (await neuron.chat("abc", n=3)).json()
        chunks = chunks_of((await neuron.chat("abc", n=3, stream=True)).text)

        assert [choice["index"] for choice in whole["choices"]] == [0, 1, 2]
        assert {choice["message"]["content"] for choice in whole["choices"]} == {"abc"}
        assert (whole["usage"]["prompt_tokens"], whole["usage"]["completion_tokens"]) == (6, 12)
        assert [text_of(chunks, index) for index in range(3)] == ["abc"] * 3
        assert sum(choice["finish_reason"] == "stop" for chunk in chunks for choice in chunk["choices"]) == 3

    with_neuron(tmp_path, use)


def test_characters_are_never_split(tmp_path: Path) -> None:
    """Bytes of one character arrive as separate tokens and leave as one piece of text."""

    async def use(neuron: LiveNeuron) -> None:
        chunks = chunks_of((await neuron.chat("né 😀", stream=True)).text)

        contents = [choice["delta"].get("content") for chunk in chunks for choice in chunk["choices"]]
        assert [content for content in contents if content] == ["n", "é", " ", "😀"]

    with_neuron(tmp_path, use)


def test_chat_logprobs(tmp_path: Path) -> None:
    """Token, bytes, log-probability and alternatives of every token but the end token, streamed or not."""

    async def use(neuron: LiveNeuron) -> None:
        whole = (await neuron.chat("é", logprobs=True, top_logprobs=2)).json()["choices"][0]["logprobs"]["content"]
        chunks = chunks_of((await neuron.chat("é", logprobs=True, top_logprobs=2, stream=True)).text)
        streamed = [choice["logprobs"] for chunk in chunks for choice in chunk["choices"] if choice["logprobs"]]

        assert [row["bytes"] for row in whole] == [[0xC3], [0xA9]]
        assert whole[0]["top_logprobs"] == [
            {"token": "\ufffd", "logprob": -0.5, "bytes": [0xC3]},
            {"token": "\ufffd", "logprob": -1.5, "bytes": [0xC4]},
        ]
        assert [row for part in streamed for row in part["content"]] == whole

    with_neuron(tmp_path, use)


def test_completions(tmp_path: Path) -> None:
    """A raw prompt, a batch of prompts and token ids, with log-probabilities in the old shape."""

    async def use(neuron: LiveNeuron) -> None:
        async def complete(prompt: Any, **more: Any) -> dict[str, Any]:
            answer = await neuron.http.post("/v1/completions", json={"model": "tiny", "prompt": prompt, **more})
            body: dict[str, Any] = answer.json()
            return body

        one = await complete("abé", logprobs=1)
        many = await complete(["ab", [99, 100]], n=2)

        assert (one["object"], one["model"]) == ("text_completion", "tiny")
        assert one["choices"][0]["text"] == "abé"
        assert one["choices"][0]["logprobs"]["text_offset"] == [0, 1, 2, 2]
        assert one["choices"][0]["logprobs"]["top_logprobs"][0] == {"a": -0.5}
        parts = (await complete("a😀", logprobs=2))["choices"][0]["logprobs"]

        assert parts["tokens"] == ["a", *(rf"bytes:\x{byte:02x}" for byte in "😀".encode())]
        assert parts["text_offset"] == [0, 1, 1, 1, 1]
        assert [len(row) for row in parts["top_logprobs"]] == [2] * 5
        assert [choice["text"] for choice in many["choices"]] == ["ab", "ab", "cd", "cd"]
        assert many["usage"]["prompt_tokens"] == 4
        best = await complete("ab", n=1, best_of=3, echo=True)
        assert [choice["text"] for choice in best["choices"]] == ["abab"]
        assert best["usage"]["completion_tokens"] == 9
        assert best["choices"][0]["logprobs"] is None
        assert (await complete("ab", suffix="c"))["error"]["param"] == "suffix"

    with_neuron(tmp_path, use)


def test_a_completion_stream(tmp_path: Path) -> None:
    """Text chunks, a finish chunk, usage, [DONE]."""

    async def use(neuron: LiveNeuron) -> None:
        body = {"model": MODEL, "prompt": "ab", "stream": True, "stream_options": {"include_usage": True}}
        chunks = chunks_of((await neuron.http.post("/v1/completions", json=body)).text)

        assert [choice["text"] for chunk in chunks for choice in chunk["choices"]] == ["a", "b", ""]
        assert chunks[-2]["choices"][0]["finish_reason"] == "stop"
        assert chunks[-1]["usage"]["total_tokens"] == 5

    with_neuron(tmp_path, use)


def test_tool_calls(tmp_path: Path) -> None:
    """A call the model writes becomes a tool call with finish_reason tool_calls, streamed and whole."""

    async def use(neuron: LiveNeuron) -> None:
        whole = (await neuron.chat(f"[[say {CALL}]]", tools=[TOOL])).json()["choices"][0]
        chunks = chunks_of((await neuron.chat(f"[[say {CALL}]]", tools=[TOOL], stream=True)).text)
        calls = [
            call for chunk in chunks for choice in chunk["choices"] for call in choice["delta"].get("tool_calls", [])
        ]

        assert whole["finish_reason"] == chunks[-1]["choices"][0]["finish_reason"] == "tool_calls"
        assert whole["message"]["content"] is None
        function = whole["message"]["tool_calls"][0]["function"]
        assert (function["name"], json.loads(function["arguments"])) == ("look", {"at": "sky"})
        assert (calls[0]["index"], calls[0]["type"], calls[0]["function"]["name"]) == (0, "function", "look")
        assert json.loads("".join(call["function"]["arguments"] for call in calls)) == {"at": "sky"}

    with_neuron(tmp_path, use)


@pytest.mark.parametrize(
    ("stop", "least", "text"),
    [("X", 0, "ab"), ("X", 2, "ab"), ("X", 3, "abXcd"), ("Xc", 3, "ab"), ("X", 6, "abXcdXef")],
)
def test_min_tokens_come_before_a_stop_string(stop: str, least: int, text: str, tmp_path: Path) -> None:
    """A stop string counts where a token after the first min_tokens completes it; until then it is text."""

    async def use(neuron: LiveNeuron) -> None:
        answer = (await neuron.chat("[[say abXcdXef]]", stop=stop, min_tokens=least)).json()
        choice = answer["choices"][0]
        stopped = choice["stop_reason"] is not None

        assert choice["message"]["content"] == text
        assert answer["usage"]["completion_tokens"] == len(text) + (len(stop) if stopped else 1)
        assert stopped is (least < 6)

    with_neuron(tmp_path, use)


def test_a_single_call_ends_the_answer(tmp_path: Path) -> None:
    """With `parallel_tool_calls: false` the first call is the end: nothing after it is generated, shown or counted."""
    twice = f"[[say {CALL}{CALL}[[rest]]"

    async def use(neuron: LiveNeuron) -> None:
        alone = {"tools": [TOOL], "parallel_tool_calls": False}
        both = (await neuron.chat(twice, tools=[TOOL])).json()
        whole = (await neuron.chat(twice, **alone)).json()
        chunks = chunks_of(
            (await neuron.chat(twice, stream=True, stream_options={"include_usage": True}, **alone)).text
        )
        starts = [
            c for c in chunks for choice in c["choices"] for c in choice["delta"].get("tool_calls", []) if "id" in c
        ]

        assert len(both["choices"][0]["message"]["tool_calls"]) == 2
        assert len(whole["choices"][0]["message"]["tool_calls"]) == len(starts) == 1
        assert whole["choices"][0]["finish_reason"] == "tool_calls"
        said = len(CALL.removesuffix("</tool_call>"))
        assert whole["usage"]["completion_tokens"] == chunks[-1]["usage"]["completion_tokens"] == said
        assert (await neuron.chat("hi", **alone)).json()["choices"][0]["finish_reason"] == "stop"

    with_neuron(tmp_path, use)


def test_length_beats_tool_calls(tmp_path: Path) -> None:
    """A call that max_tokens cut off is no finished call; it is closed, and one that had not begun leaves nothing."""

    async def use(neuron: LiveNeuron) -> None:
        cut = (await neuron.chat(f"[[say {CALL}]]", tools=[TOOL], max_tokens=50)).json()["choices"][0]
        begun = (await neuron.chat(f"[[say {CALL}]]", tools=[TOOL], max_tokens=14)).json()["choices"][0]

        assert cut["finish_reason"] == begun["finish_reason"] == "length"
        assert cut["message"]["content"] is None
        assert json.loads(cut["message"]["tool_calls"][0]["function"]["arguments"]) == {"at": "s"}
        assert not begun["message"]["content"]
        assert "tool_calls" not in begun["message"]

    with_neuron(tmp_path, use)


def test_thinking_is_told_apart(tmp_path: Path) -> None:
    """Text inside the thinking tags is reasoning under both names, and counted in the usage."""

    async def use(neuron: LiveNeuron) -> None:
        thought = "[[say hm</think>yes]]"
        switch = {"chat_template_kwargs": {"enable_thinking": True}}
        whole = (await neuron.chat(thought, **switch)).json()
        chunks = chunks_of((await neuron.chat(thought, stream=True, **switch)).text)

        message = whole["choices"][0]["message"]
        assert (message["content"], message["reasoning_content"], message["reasoning"]) == ("yes", "hm", "hm")
        assert 0 < whole["usage"]["completion_tokens_details"]["reasoning_tokens"] < 15
        assert (text_of(chunks), text_of(chunks, key="reasoning")) == ("yes", "hm")

        for hidden in ({"include_reasoning": False}, {"reasoning": {"exclude": True}}):
            whole = (await neuron.chat(thought, **switch, **hidden)).json()
            chunks = chunks_of((await neuron.chat(thought, stream=True, **switch, **hidden)).text)
            assert whole["choices"][0]["message"] == {"role": "assistant", "content": "yes"}
            assert whole["usage"]["completion_tokens_details"]["reasoning_tokens"] > 0
            assert (text_of(chunks), text_of(chunks, key="reasoning")) == ("yes", "")

    with_neuron(tmp_path, use, thinking=True)


def test_the_last_message_can_be_continued(tmp_path: Path) -> None:
    """continue_final_message leaves the assistant's turn open: no end token, no new turn."""

    async def use(neuron: LiveNeuron) -> None:
        messages = [{"role": "user", "content": "a"}, {"role": "assistant", "content": "The"}]
        body = {"model": MODEL, "messages": messages, "continue_final_message": True}
        answer = (await neuron.http.post("/v1/chat/completions", json=body)).json()
        counted = (await neuron.http.post("/tokenize", json=body)).json()

        assert answer["usage"]["prompt_tokens"] == counted["count"] == 7

    with_neuron(tmp_path, use)


def test_a_long_prompt_goes_through_a_thread(tmp_path: Path) -> None:
    """A body over the threshold is answered like any other."""

    async def use(neuron: LiveNeuron) -> None:
        answer = (await neuron.chat("x" * 20_000, max_tokens=2)).json()

        assert answer["usage"]["prompt_tokens"] == 20_003

    with_neuron(tmp_path, use, max_context=32768)


def test_tokenize(tmp_path: Path) -> None:
    """Counts a chat, tools included, and a prompt; loaded or not."""

    async def use(neuron: LiveNeuron) -> None:
        async def count(**body: Any) -> dict[str, Any]:
            answer = await neuron.http.post("/tokenize", json=body)
            found: dict[str, Any] = answer.json()
            return found

        messages = [{"role": "user", "content": "hello"}]
        assert await count(model="tiny", prompt="ab") == {"count": 2, "tokens": [97, 98], "max_model_len": 4096}
        assert (await count(model="tiny", prompt="ab", return_token_strs=True))["token_strs"] == ["a", "b"]
        assert (await count(model=MODEL, messages=messages))["count"] == 8
        assert (await count(model=MODEL, messages=messages, tools=[TOOL]))["count"] > 8
        assert (await count(model="other/model", prompt="x"))["error"]["code"] == "model_not_found"
        assert neuron.lifecycle.residents == ()

    with_neuron(tmp_path, use, load=False)


def test_detokenize(tmp_path: Path) -> None:
    """The text of tokens, special ones by their names; loaded or not."""

    async def use(neuron: LiveNeuron) -> None:
        async def text(tokens: Any) -> dict[str, Any]:
            found: dict[str, Any] = (
                await neuron.http.post("/detokenize", json={"model": "tiny", "tokens": tokens})
            ).json()
            return found

        assert await text([97, 256, 98]) == {"prompt": "a<|end|>b"}
        assert await text([]) == {"prompt": ""}
        assert (await text([900]))["error"]["param"] == "tokens"
        assert (await text("ab"))["error"]["message"].startswith("tokens must be a list of token ids")
        assert (await text([-1]))["error"]["param"] == "tokens"

    with_neuron(tmp_path, use, load=False)
