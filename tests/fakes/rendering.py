"""Renders chats in this process, for tests that are about something else; knows no pool of processes."""

import asyncio
from collections.abc import Mapping, Sequence
from typing import Any

from neuron_jax.daemon.generation import GenerationJob
from neuron_jax.daemon.model_text import ModelText
from neuron_jax.daemon.prepare import Outside, chat_job, render_chat
from neuron_jax.daemon.schema import ChatRequest
from neuron_jax.text.prompt import Chat, ChatFormat, Rendered, Renderer
from neuron_jax.text.template import ChatTemplate
from neuron_jax.text.tokenizer import Tokenizer


async def render_here(kind: ChatFormat, chat: Chat, most: int | None = None) -> Rendered:
    return Renderer(kind).render(chat, most)


def job_of(request: ChatRequest, text: ModelText, outside: Outside) -> GenerationJob:
    """The job of a chat, as the daemon makes it."""
    prompt = asyncio.run(render_chat(render_here, request, text, outside))
    return chat_job(request, prompt, text, outside)


def format_of(template: ChatTemplate, tokenizer: Tokenizer) -> ChatFormat:
    """What the daemon renders a model's chats with."""
    text = ModelText(None, tokenizer, template, {})  # type: ignore[arg-type] - the description is not asked
    return text.chat_formats[template.source]


def encode_chat(
    template: ChatTemplate, tokenizer: Tokenizer, messages: Sequence[Mapping[str, Any]], **options: Any
) -> tuple[str, list[int]]:
    """A chat's prompt, as text and as ids."""
    rendered = Renderer(format_of(template, tokenizer)).render(Chat(messages, **options))
    return rendered.plain, tokenizer.encode_rendered(rendered)
