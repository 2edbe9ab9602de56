"""How much of a chat's first turn the next prompt repeats, token by token: that is what a prefix cache can spare.

A turn is what the daemon and the gateway make of it: request → template → ids, fixed tokens for the model's answer →
pieces → the wire → the client, who sends back what he read. The tokenizer is the demo model's.
"""

import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import attrs
import pytest

from cortex_gateway.dialects.anthropic.request import decode
from cortex_gateway.dialects.anthropic.response import non_streaming_message
from cortex_gateway.dialects.chat import decode_non_streaming
from cortex_gateway.dialects.depth import MAX_DEPTH
from neuron_jax.daemon.chat_wire import ChatAnswer
from neuron_jax.daemon.fields import decode_object
from neuron_jax.daemon.generation import GrowingChoice
from neuron_jax.daemon.model_text import ModelText, read_text
from neuron_jax.daemon.prepare import Outside
from neuron_jax.daemon.schema import read_chat
from neuron_jax.text.template import ChatTemplate
from neuron_jax.workers.frames import Output
from tests.fakes.rendering import job_of

ROWS = json.loads((Path(__file__).parents[1] / "data" / "smollm2-greedy.json").read_text("utf-8"))
OUTSIDE = Outside(id="chatcmpl-1", seed=1, created=1, max_context=4096)
Json = dict[str, Any]

HEAD = (
    '{%- if tools %}<|im_start|>system\nCall as <tool_call>\n{"name": , "arguments": }\n</tool_call>:'
    "{% for t in tools %}{{ '\\n' }}{{ t | tojson }}{% endfor %}<|im_end|>\n{% endif %}"
)
LAST = "{%- set ns = namespace(user=0) %}{% for m in messages if m.role == 'user' %}{% set ns.user = ns.user + 1 %}{% endfor %}"
SHOWN = (
    "{%- set seen = namespace(user=0) %}{% for m in messages %}"
    "{% if m.role == 'user' %}{% set seen.user = seen.user + 1 %}{% endif %}"
    "{% if m.role == 'tool' %}<|im_start|>user\n<tool_response>\n{{ m.content }}\n</tool_response><|im_end|>\n"
    "{% else %}<|im_start|>{{ m.role }}\n"
    "{% if m.reasoning_content and (%s) %}<think>\n{{ m.reasoning_content }}\n</think>\n\n{% endif %}{{ m.content }}"
    "{% for c in m.tool_calls %}{{ '\\n' if m.content or not loop.first }}<tool_call>\n"
    '{"name": "{{ c.function.name }}", "arguments": {{ c.function.arguments | tojson }}}\n</tool_call>{% endfor %}'
    "<|im_end|>\n{% endif %}{% endfor %}"
)
TAIL = (
    "{% if add_generation_prompt %}<|im_start|>assistant\n"
    "{% if enable_thinking is defined and not enable_thinking %}<think>\n\n</think>\n\n{% endif %}{% endif %}"
)
KEEPS = HEAD + SHOWN.replace("%s", "true") + TAIL
FORGETS = HEAD + LAST + SHOWN.replace("%s", "seen.user == ns.user") + TAIL
"""Two families of templates: one shows all thoughts again, the other only those since the user last spoke."""

TOOL = {"type": "function", "function": {"name": "look", "parameters": {"type": "object"}}}
QUESTION = {"role": "user", "content": "What is the weather in Paris, and what shall I wear? It is for a long walk."}
NEXT = {"role": "user", "content": "And tomorrow?"}
THOUGHT = "<think>\nI should look at the sky first, then at the calendar.\n</think>\n\n"
CALL = (
    '<tool_call>\n{"name": "look", "arguments": {"when": "now", "at": ["sky", "caf\u00e9"], "zoom": 2}}\n</tool_call>'
)


def openai(answer: Json) -> Json:
    """What an OpenAI client adds to its messages: the message it read."""
    message: Json = answer["choices"][0]["message"]
    return message


def anthropic(answer: Json) -> Json:
    """What an Anthropic client adds, blocks and signatures and all, as the gateway hands it on."""
    said = non_streaming_message(decode_non_streaming(json.dumps(answer).encode()), message_id="msg_1", model="m")
    message = json.loads(said)
    turns = [{"role": "user", "content": "x"}, {"role": message["role"], "content": message["content"]}, NEXT]
    request = decode(json.dumps({"model": "m", "max_tokens": 9, "messages": turns}).encode())
    replayed: Json = json.loads(request.neuron_body("m"))["messages"][1]
    return replayed


Client = Callable[[Json], Json]
clients = pytest.mark.parametrize("client", [openai, anthropic])


@attrs.define
class Chat:
    """One conversation. `held` are the tokens that the engine has seen in it, `said` the places where answers begin."""

    text: ModelText
    client: Client
    body: Json
    held: list[int] = attrs.Factory(list)
    said: list[int] = attrs.Factory(list)
    job: Any = None

    def ask(self, *messages: Json) -> int:
        """Add `messages` and render: how many tokens the prompt has in common with what the engine has seen."""
        self.body["messages"] += messages
        self.job = job_of(read_chat(json.loads(json.dumps(self.body))), self.text, OUTSIDE)
        ids = self.job.encoded[0].ids
        return next((at for at, (a, b) in enumerate(zip(self.held, ids, strict=False)) if a != b), len(self.held))

    def answer(self, tokens: Sequence[int]) -> None:
        """The model says `tokens`, the last of which ends its turn."""
        choice, wire = GrowingChoice(self.job, 0), ChatAnswer(self.job)
        ids = self.job.encoded[0].ids
        for token in tokens[:-1]:
            for event in choice.feed(Output(1, [token])):
                wire.feed(event)
        for event in choice.feed(Output(1, [tokens[-1]], finish="stop")):
            wire.feed(event)
        self.body["messages"].append(self.client(wire.body(read_chat(self.body).params)))
        self.said.append(len(ids))
        self.held = [*ids, *tokens]

    def write(self, text: str) -> None:
        """The model says `text` in the tokenizer's own tokens."""
        tokenizer = self.text.tokenizer
        self.answer(tokenizer.encode(text + "<|im_end|>", add_special=False))


@pytest.fixture(scope="module")
def demo(demo_gguf: Path) -> ModelText:
    return read_text(demo_gguf)


def chat(demo: ModelText, client: Client, source: str | None = None, **fields: Any) -> Chat:
    template = demo.template
    if source is not None:
        template = ChatTemplate(source, bos_token=None, eos_token="<|im_end|>")
    return Chat(attrs.evolve(demo, template=template), client, {"model": "m", "messages": [], **fields})


@clients
@pytest.mark.parametrize("row", [row for row in ROWS if row["greedy_ids"][-1] == 2], ids=lambda row: row["text"][:20])
def test_the_demo_model_s_next_turn_has_all_of_the_last_one(demo: ModelText, client: Client, row: Json) -> None:
    """Its own greedy answers, which the tokenizer cuts again as the model wrote them."""
    it = chat(demo, client)
    assert it.ask(*row["messages"]) == 0
    it.answer(row["greedy_ids"])

    assert it.ask(NEXT) == len(it.held)


@clients
@pytest.mark.parametrize("source", [KEEPS, FORGETS], ids=["keeps", "forgets"])
@pytest.mark.parametrize("before", ["", "Let me look.\n"])
def test_a_loop_of_tools_goes_on_where_it_was(demo: ModelText, client: Client, source: str, before: str) -> None:
    """Thought, text, two calls, results, another thought, another call: each prompt begins with all that was."""
    it = chat(demo, client, source, tools=[TOOL])
    it.ask(QUESTION)
    for at in range(3):
        it.write(f"{THOUGHT}{before}{CALL}" + f"\n{CALL}" * (at == 1))
        calls = it.body["messages"][-1]["tool_calls"]
        results = [{"role": "tool", "tool_call_id": call["id"], "content": "Rain."} for call in calls]

        assert len(calls) == 1 + (at == 1)
        assert it.ask(*results) == len(it.held)


@clients
def test_thoughts_that_are_shown_again_are_found_again(demo: ModelText, client: Client) -> None:
    it = chat(demo, client, KEEPS, tools=[TOOL])
    it.ask(QUESTION)
    it.write(f"{THOUGHT}It rains.\n\nTake a coat.")

    assert it.ask(NEXT) == len(it.held)


@clients
def test_a_template_that_forgets_thoughts_ends_the_hit_where_the_first_of_them_began(
    demo: ModelText, client: Client
) -> None:
    """The prompt of the turn is found, its answer is not: the text after the thought stands in another place now."""
    it = chat(demo, client, FORGETS, tools=[TOOL])
    it.ask(QUESTION)
    it.write(f"{THOUGHT}Let me look.\n{CALL}")
    it.ask({"role": "tool", "tool_call_id": "call_chatcmpl-1_0_0", "content": "Rain."})
    it.write(f"{THOUGHT}Take a coat.")

    assert it.ask(NEXT) == it.said[0]


@clients
def test_after_the_forgotten_thought_everything_is_new_once_and_then_found(demo: ModelText, client: Client) -> None:
    """What was forgotten stays so: the second turn's own prompt is a beginning of the third's."""
    it = chat(demo, client, FORGETS)
    it.ask(QUESTION)
    it.write(f"{THOUGHT}Take a coat.")
    it.ask(NEXT)
    it.write(f"{THOUGHT}Take two.")

    assert it.ask(NEXT) == it.said[1]


@clients
def test_thinking_switched_off_by_an_empty_thought_ends_the_hit_there(demo: ModelText, client: Client) -> None:
    """The prompt ends in `<think></think>`, which the next one does not repeat."""
    it = chat(demo, client, FORGETS, chat_template_kwargs={"enable_thinking": False})
    it.ask(QUESTION)
    it.write("Take a coat.")
    empty = demo.tokenizer.encode("<think>\n\n</think>\n\n", add_special=False)

    assert it.held[: it.said[0]][-len(empty) :] == empty
    assert it.ask(NEXT) == it.said[0] - len(empty)


@clients
@pytest.mark.parametrize(
    ("written", "found"),
    [
        ('<tool_call>\n{"name": "look", "arguments": {"at": "sky"}}\n</tool_call>', True),
        ('<tool_call>\n{"name": "look", "arguments": {"at":"sky"}}\n</tool_call>', False),
        ('<tool_call>{"name": "look", "arguments": {"at": "sky"}}</tool_call>', False),
    ],
)
def test_a_call_is_found_where_the_model_writes_it_as_its_template_does(
    demo: ModelText, client: Client, written: str, found: bool
) -> None:
    """Another spelling of the same call ends the hit within it, never before."""
    it = chat(demo, client, KEEPS, tools=[TOOL])
    it.ask(QUESTION)
    it.write(f"Let me look.\n{written}")
    hit = it.ask({"role": "tool", "tool_call_id": "call_chatcmpl-1_0_0", "content": "Rain."})
    before = demo.tokenizer.encode("Let me look.\n", add_special=False)

    assert (hit == len(it.held)) is found
    assert hit >= it.said[0] + len(before)


def test_what_is_as_deep_as_the_gateway_reads_is_read_by_the_neuron() -> None:
    """Its translation adds levels, and the neuron has them left."""
    schema: Any = {}
    for _ in range(MAX_DEPTH - 4):
        schema = {"a": schema}
    call = {"type": "tool_use", "id": "t", "name": "f", "input": schema["a"]["a"]}
    turns = [{"role": "user", "content": "x"}, {"role": "assistant", "content": [call]}, NEXT]
    body = {"model": "m", "max_tokens": 9, "messages": turns, "tools": [{"name": "f", "input_schema": schema}]}

    assert read_chat(decode_object(decode(json.dumps(body).encode()).neuron_body("m"))).chat.tools
