"""What it costs that chat templates run in a process of their own: microseconds for rendering one chat, here and there.

    python bench/rendering.py [--rounds 300]

Method. The same chats through the same template, one after the other: by a call in this process, and by the daemon's pool of
processes on uvloop, both warm. Medians. The template is of the usual kind (ChatML).
"""

import argparse
import asyncio
import os
import statistics
import time
from collections.abc import Awaitable, Callable, Mapping

import uvloop
from sides import user, words

from neuron_jax.text.prompt import Chat, ChatFormat, Rendered, Renderer
from neuron_jax.workers.renderers import Renderers

SOURCE = (
    "{% for message in messages %}{{ '<|im_start|>' + message['role'] + '\n' + message['content'] + '<|im_end|>' + '\n' }}"
    "{% endfor %}{% if add_generation_prompt %}{{ '<|im_start|>assistant\n' }}{% endif %}"
)
KIND = ChatFormat(SOURCE, names=("<|endoftext|>", "<|im_start|>", "<|im_end|>"))
CHATS: Mapping[str, Chat] = {
    "1 message, 40 bytes": Chat([user("What is the capital of France, please?")]),
    "20 messages, 12 kB": Chat([user(words(90, str(at))) for at in range(20)]),
    "200 messages, 500 kB": Chat([user(words(380, str(at))) for at in range(200)]),
    "1 message, 8 MB": Chat([user(words(1_200_000, "long"))]),
}


def main() -> None:
    """Measure, print."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=300)
    rounds = parser.parse_args().rounds
    with asyncio.Runner(loop_factory=uvloop.new_event_loop) as runner:
        runner.run(_compare(rounds))


async def _compare(rounds: int) -> None:
    renderer, pool = Renderer(KIND), Renderers(512, dict(os.environ))

    async def here(chat: Chat) -> Rendered:
        return renderer.render(chat)

    async def there(chat: Chat) -> Rendered:
        return await pool.render(KIND, chat)

    began = time.perf_counter()
    await there(CHATS["1 message, 40 bytes"])
    print(f"first chat, with the start of a process: {time.perf_counter() - began:.2f} s")
    print(f"{'chat':24s} {'here us':>10s} {'there us':>10s} {'more us':>10s}")
    for name, chat in CHATS.items():
        times = rounds if len(chat.messages) > 1 or "MB" not in name else max(3, rounds // 50)
        own, other = await _median(here, chat, times), await _median(there, chat, times)
        print(f"{name:24s} {own:10.0f} {other:10.0f} {other - own:10.0f}", flush=True)
    await pool.close()


async def _median(render: Callable[[Chat], Awaitable[Rendered]], chat: Chat, rounds: int) -> float:
    await render(chat)
    taken = []
    for _ in range(rounds):
        began = time.perf_counter()
        await render(chat)
        taken.append(time.perf_counter() - began)
    return statistics.median(taken) * 1e6


if __name__ == "__main__":
    main()
