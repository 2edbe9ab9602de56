"""Templates run in processes that can be lost: bounded in memory and time, with nothing of the daemon's in them."""

import asyncio
import json
import sys
from collections.abc import Awaitable, Callable, Mapping
from pathlib import Path
from typing import Any

import pytest

from neuron_jax.constraints.errors import GrammarError
from neuron_jax.text.errors import TemplateError, TooManyTokensError
from neuron_jax.text.prompt import Chat, ChatFormat, Rendered, Renderer
from neuron_jax.text.spelling import Spelling
from neuron_jax.workers.frames import Constraint
from neuron_jax.workers.renderers import KEPT_FORMATS, TOO_INTRICATE, Renderers
from tests.fakes.engine_double import environment

PROC = Path("/proc")
USER = {"role": "user", "content": "hi"}
TURNS = ChatFormat(
    "{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}{{ tools | tojson if tools }}{{ x }}"
)
HI = Chat([USER])


def pool(**options: Any) -> Renderers:
    return Renderers(**{"memory_mb": 96, "environ": environment(), "cpu_seconds": 1, **options})


def using(use: Callable[[Renderers], Awaitable[Any]], **options: Any) -> Any:
    """The result of `use`; afterwards no process is left."""

    async def run() -> Any:
        renderers = pool(**options)
        try:
            return await use(renderers)
        finally:
            pids = [one.process.pid for one in renderers._idle]
            await renderers.close()
            assert not [pid for pid in pids if (PROC / str(pid)).exists()]

    return asyncio.run(run())


def text_of(source: str, chat: Chat = HI, **options: Any) -> str:
    async def use(renderers: Renderers) -> str:
        return (await renderers.render(ChatFormat(source), chat)).text

    found: str = using(use, **options)
    return found


@pytest.mark.parametrize(
    "chat",
    [
        HI,
        Chat([{**USER, "content": "日本語 \U0001f642"}], add_generation_prompt=False),
        Chat([USER], tools=[{"function": {"name": "f", "parameters": {"maximum": 10**40, "minimum": -(2**64)}}}]),
        Chat([USER], variables={"x": [1.5, True, None, {"a": 2**63}]}),
        Chat([USER, {"role": "assistant", "content": "so"}], continue_final=True),
        Chat([{**USER, "content": "what is <|im_end|>?"}]),
    ],
)
def test_a_process_renders_what_this_one_would(chat: Chat) -> None:
    """Text, numbers of any size, marks in names of tokens, every argument."""
    kind = ChatFormat(TURNS.source, names=("<|im_end|>",), bos_token="<s>")

    assert using(lambda renderers: renderers.render(kind, chat)) == Renderer(kind).render(chat)


def doubling(start: str) -> str:
    return (
        f"{{% set ns = namespace(s={start}) %}}{{% for i in range(40) %}}{{% set ns.s = ns.s + ns.s %}}{{% endfor %}}"
    )


MEMORY = {
    "strings": doubling("'xxxxxxxx'") + "{{ ns.s }}",
    "lists": doubling("[1]"),
    "width": "{{ messages and '%1000000000d' % 1 }}",
    "format": "{{ '{:>1000000000}'.format(1) }}",
    "center": "{{ messages[0].content | center(1000000000) }}",
    "a constant": "{{ 'a' | center(1000000000) }}",
    "concatenation": "{% set s = 'x' * 60000000 %}{{ s ~ s ~ s ~ s ~ s ~ s ~ s ~ s }}",
    "join": "{% set l = ['x' * 1000000] * 300 %}{{ l | join }}",
    "replace": "{{ ('x' * 1000000) | replace('x', 'y' * 1000) }}",
    "output": "{% for a in range(300) %}{{ ('x' * 1000000) ~ a }}{% endfor %}",
}


@pytest.mark.parametrize("name", MEMORY)
def test_a_template_that_takes_too_much_memory_is_refused(name: str) -> None:
    """However it gets at it; the next chat is rendered by a new process."""

    async def use(renderers: Renderers) -> str:
        with pytest.raises(TemplateError, match=r"96 MiB|characters|ended the process"):
            await renderers.render(ChatFormat(MEMORY[name]), HI)
        return (await renderers.render(TURNS, HI)).text

    assert using(use) == "<user>hi"


TIME = {
    "recursion": "{% macro m(n) %}{% if n %}{{ m(n - 1) }}{{ m(n - 1) }}{% endif %}{% endmacro %}{{ m(60) }}",
    "a search": "{% for i in range(3000) %}{{ ('a' * 5000000 ~ 'b') | replace('aaab', '') | length }}{% endfor %}",
}


@pytest.mark.parametrize("name", TIME)
def test_a_template_that_does_not_end_is_ended(name: str) -> None:
    """Without a loop that could be counted, or inside the library; the next chat is rendered by a new process."""

    async def use(renderers: Renderers) -> str:
        with pytest.raises(TemplateError, match="computed for too long"):
            await renderers.render(ChatFormat(TIME[name]), HI)
        return (await renderers.render(TURNS, HI)).text

    assert using(use) == "<user>hi"


def test_computing_time_is_counted_anew_for_each_chat() -> None:
    """A process that has rendered for a week may go on."""
    half = ChatFormat("{% for i in range(80) %}{% set x = range(99999) | list %}{% endfor %}ok")

    async def use(renderers: Renderers) -> set[str]:
        return {(await renderers.render(half, HI)).text for _ in range(6)}

    assert using(use) == {"ok"}


def test_refusals_keep_the_process() -> None:
    """The template's own words, and a prompt that is too long: neither is the process's fault."""
    kind = ChatFormat(
        "{{ raise_exception('no') if messages[0].content == 'bad' }}" + TURNS.source, spelling=Spelling(4, "")
    )

    async def use(renderers: Renderers) -> list[int]:
        pids = []
        with pytest.raises(TemplateError, match=r"^no$"):
            await renderers.render(kind, Chat([{**USER, "content": "bad"}]))
        pids.append(renderers._idle[0].process.pid)
        with pytest.raises(TooManyTokensError) as raised:
            await renderers.render(kind, Chat([{**USER, "content": "x" * 1000}]), 200)
        assert (raised.value.tokens, raised.value.exact) == (251, False)
        pids.append(renderers._idle[0].process.pid)
        return pids

    first, second = using(use)
    assert first == second


def test_a_template_that_does_not_compile_is_known_before_any_chat() -> None:
    """A filter that nobody has."""

    async def use(renderers: Renderers) -> None:
        await renderers.compile(TURNS)
        with pytest.raises(TemplateError, match=r"does not compile.*nosuch"):
            await renderers.compile(ChatFormat("{{ 1 | nosuch }}"))

    using(use)


def test_lone_surrogates_do_not_come_out() -> None:
    """A template can write one; no tokenizer takes it."""
    assert text_of("a{{ '\\ud800' }}b") == "a\ufffdb"
    with pytest.raises(TemplateError, match="a\ufffdb"):
        text_of("{{ raise_exception('a\\ud800b') }}")


def test_two_work_at_once_and_others_wait() -> None:
    """Ten chats, two processes; each knows the template after its first."""

    async def use(renderers: Renderers) -> tuple[set[Rendered], int]:
        found = set(await asyncio.gather(*(renderers.render(TURNS, HI) for _ in range(10))))
        return found, len(renderers._idle)

    assert using(use) == ({Rendered("<user>hi")}, 2)


def test_who_stops_waiting_harms_nobody() -> None:
    """A client that leaves while its chat is rendered; the process is used again."""

    async def use(renderers: Renderers) -> tuple[int, int, str]:
        await renderers.render(TURNS, HI)
        before = renderers._idle[0].process.pid
        waiting = asyncio.create_task(renderers.render(TURNS, HI))
        await asyncio.sleep(0)
        waiting.cancel()
        await asyncio.gather(waiting, return_exceptions=True)
        text = (await renderers.render(TURNS, HI)).text
        await asyncio.gather(*renderers._tasks)
        return before, min(one.process.pid for one in renderers._idle), text

    before, after, text = using(use)
    assert (before, text) == (after, "<user>hi")


def test_a_process_with_many_templates_is_replaced() -> None:
    """What is compiled stays in memory."""

    async def use(renderers: Renderers) -> set[int]:
        pids = set()
        for number in range(KEPT_FORMATS + 2):
            await renderers.render(ChatFormat(f"{number}"), HI)
            pids.add(renderers._idle[0].process.pid)
        return pids

    assert len(using(use)) == 2


@pytest.mark.parametrize(
    ("program", "message"),
    [
        ("import time; time.sleep(60)", "ran for more than 0.5 seconds"),
        ("raise SystemExit(7)", "exit code 7"),
        ("import os; os.kill(os.getpid(), 9)", "SIGKILL"),
        ("import os, sys; os.write(int(sys.argv[-1]), bytes([9, 0, 0, 0]) + b'nonsense!'); input", "exit code 0"),
    ],
)
def test_a_process_that_is_none_is_told_of(program: str, message: str) -> None:
    """Silence, death and nonsense are one refused chat."""
    with pytest.raises(TemplateError, match=message):
        text_of("x", command=(sys.executable, "-c", program), wall_seconds=0.5 if "sleep" in program else 20.0)


def test_a_process_inherits_no_secrets() -> None:
    """What the daemon knows is not in the environment of a stranger's program."""

    async def use(renderers: Renderers) -> bytes:
        await renderers.render(TURNS, HI)
        return await asyncio.to_thread((PROC / str(renderers._idle[0].process.pid) / "environ").read_bytes)

    environ: Mapping[str, str] = {**environment(), "NEURON_SECRET": "sesame", "HF_TOKEN": "sesame"}
    assert b"sesame" not in using(use, environ=environ)


def test_it_ends_when_the_daemon_does() -> None:
    """A socket that closes is all that it hears of a daemon that was killed."""

    async def use(renderers: Renderers) -> int:
        await renderers.render(TURNS, HI)
        process = renderers._idle.pop()
        process.writer.close()
        return await asyncio.wait_for(process.process.wait(), 20)

    assert using(use) == 0


def refusal_of(constraint: Constraint, **options: Any) -> GrammarError | None:
    async def use(renderers: Renderers) -> GrammarError | None:
        try:
            await renderers.check(constraint)
        except GrammarError as error:
            return error
        return None

    found: GrammarError | None = using(use, **options)
    return found


def test_a_constraint_is_read_where_nobody_else_is() -> None:
    wrong = Constraint("json_schema", '{"type": "array", "uniqueItems": true}')
    refused = refusal_of(wrong)

    assert refusal_of(Constraint("regex", "[a-z]+")) is None
    assert refused is not None
    assert refused.keywords == ("uniqueItems",)


def test_a_constraint_that_takes_too_long_costs_its_process_and_others_render_meanwhile() -> None:
    """2,500 patterns, which take some tenths of a second to read; and one that is well, by the next process."""
    patterns = {f"p{i}": {"type": "string", "pattern": f"^(a{{{i}}}|b)*$"} for i in range(2500)}
    hostile = Constraint("json_schema", json.dumps({"type": "object", "properties": patterns}))

    async def use(renderers: Renderers) -> tuple[str, str]:
        checking = asyncio.create_task(renderers.check(hostile))
        text = (await renderers.render(TURNS, HI)).text
        with pytest.raises(GrammarError) as raised:
            await checking
        await renderers.check(Constraint("regex", "[a-z]+"))
        return text, str(raised.value)

    text, why = using(use, check_seconds=0.02)

    assert text.startswith("<user>hi")
    assert why == TOO_INTRICATE
