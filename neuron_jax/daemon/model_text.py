"""A model's text side: tokenizer, template, limits and advice of its own files; must not know engines or HTTP."""

import logging
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import cached_property
from pathlib import Path
from typing import Any

from attrs import evolve, frozen

from models.spec import Purpose
from neuron_jax.daemon.advice import read_advice
from neuron_jax.daemon.problems import Problem, invalid_body, unsupported
from neuron_jax.text import formats
from neuron_jax.text.calls import cohere, seed
from neuron_jax.text.errors import TemplateError, TextError, TooManyTokensError
from neuron_jax.text.fill import fill_tokens
from neuron_jax.text.generic_tools import in_words
from neuron_jax.text.output import OutputText, Reading
from neuron_jax.text.pair import WORDS, PairPrompt, chat_of, pair_prompt, places_for
from neuron_jax.text.prompt import Chat, ChatFormat, Rendered
from neuron_jax.text.reasoning import CLOSE, OPEN
from neuron_jax.text.spelling import USUAL_CHARS
from neuron_jax.text.template import ChatTemplate
from neuron_jax.text.thinking import spelled
from neuron_jax.text.tokenizer import Tokenizer, load_tokenizer
from neuron_jax.weights.describe import ModelDescription, describe
from neuron_jax.weights.errors import WeightsError, bad_checkpoint
from neuron_jax.workers.frames import Vocabulary

_log = logging.getLogger("neuron.models")

Render = Callable[[ChatFormat, Chat, int], Awaitable[Rendered]]
"""Renders a chat whose prompt has at most so many tokens; `workers.renderers` does."""


@frozen
class Encoded:
    """A prompt's ids, and how its answer is read. `ends`: ids that end it besides the model's own."""

    ids: list[int]
    reading: Reading
    ends: tuple[int, ...] = ()


_ANY = 2**30
"""Tokens: more than any prompt without its texts."""

CAPABILITIES: Mapping[Purpose, tuple[str, ...]] = {
    "generate": ("text",),
    "embed": ("embeddings",),
    "score": ("rerank", "score"),
}
"""What a model can be asked for, as GET /models says it."""


@frozen
class Abilities:
    """`tool_call`: calls of tools are understood, which are written in `tool_format`: `generic` where the template has no place
    for tools and gets a prompt of ours. `reasoning`: it may think first. `capabilities`: see `CAPABILITIES`."""

    tool_call: bool = False
    tool_format: str | None = None
    reasoning: bool = False
    capabilities: tuple[str, ...] = CAPABILITIES["generate"]


@frozen(eq=False)
class ModelFacts:
    """What a list of models shows; read without the tokenizer."""

    description: ModelDescription
    abilities: Abilities


@frozen
class Broken:
    """Files that are no model that could be loaded, and why."""

    reason: str


@frozen(eq=False, slots=False)
class ModelText:
    """Immutable and shared by all requests of a model. `tool_template` is what chats with tools are rendered with, where the
    model has one of its own for them."""

    description: ModelDescription
    tokenizer: Tokenizer
    template: ChatTemplate | None
    advice: Mapping[str, float | int]
    tool_template: ChatTemplate | None = None

    def template_for(self, *, tools: bool) -> ChatTemplate | None:
        """What a chat is rendered with, as transformers chooses it."""
        return self.tool_template if tools and self.tool_template is not None else self.template

    @cached_property
    def chat_formats(self) -> Mapping[str, ChatFormat]:
        """What its prompts are rendered with, by the template's source."""
        templates = [one for one in (self.template, self.tool_template) if one is not None]
        return {one.source: self._format(one) for one in templates}

    def _format(self, template: ChatTemplate) -> ChatFormat:
        return ChatFormat(
            template.source,
            bos_token=self.tokenizer.bos_token,
            eos_token=self.tokenizer.eos_token,
            names=tuple(sorted(self.tokenizer.special_tokens)),
            spelling=self.tokenizer.spelling,
        )

    @property
    def abilities(self) -> "Abilities":
        """What its template can do."""
        return _abilities(self.description, self.template, self.tool_template)

    @property
    def tool_format(self) -> str | None:
        """How its calls are written; in a prompt of ours where its template has no place for tools."""
        template = self.template_for(tools=True)
        return None if template is None else _tool_format(template)

    @property
    def vocab_size(self) -> int:
        """How many tokens may be sent: a tokenizer may name more than the model has embeddings for, as those of fine-tunes do
        that were given a token for padding."""
        return min(self.tokenizer.vocab_size, self.description.outline.vocab_size)

    @property
    def thinking(self) -> tuple[int | None, int | None]:
        """The tokens that open and close its thoughts, where they are tokens."""
        own = {"cohere": (cohere.THINKING, cohere.END_THINKING), "seed_oss": (seed.THINK, seed.END_THINK)}
        opens, closes = own.get(self.tool_format or "", (OPEN, CLOSE))
        return self.tokenizer.id_of(opens), self.tokenizer.id_of(closes)

    def vocabulary(self) -> Vocabulary:
        """What its tokens stand for. Markers of calls are text in it, since grammars are written with them."""
        names = formats.markers(reasoning=None, tools=self.tool_format)
        spelt = {id_ for name in names if (id_ := self.tokenizer.id_of(name)) is not None} - set(
            self.description.eos_ids
        )
        special = tuple(sorted(self.tokenizer.special_ids - spelt))
        return Vocabulary(list(self.tokenizer.pieces), special, tuple(self.description.eos_ids))

    async def render_chat(self, render: Render, chat: Chat, most: int) -> Rendered:
        """The chat's prompt. Raises Problem where the template has no place for it, or refuses it, and TooManyTokensError
        where it surely has more than `most` tokens."""
        template = self.template_for(tools=bool(chat.tools))
        if template is None:
            raise Problem(
                422, "template_render_failed", "This model has no chat template; use /v1/completions.", param="messages"
            )
        if chat.variables:
            chat = evolve(chat, variables=spelled(chat.variables, template.source))
        if not template.supports_tools:
            chat = in_words(chat)
        self._refuse_hopeless(chat.messages, most)
        try:
            return await render(self.chat_formats[template.source], chat, most)
        except TemplateError as error:
            raise Problem(422, "template_render_failed", str(error), param="messages") from error

    async def render_pair(self, render: Render) -> PairPrompt:
        """What a decoder that scores is asked of a pair. Raises Problem where its template has no place for one."""
        if self.description.pair is not None:
            return self._asked(self.description.pair, WORDS)
        if self.template is None:
            raise Problem(
                422, "template_render_failed", "This model has no chat template to ask it with.", param="model"
            )
        source, instruction = self.template.source, self.description.instruction
        places = places_for(source, instruction)
        try:
            found = await render(self.chat_formats[source], chat_of(places, instruction), _ANY)
        except TemplateError as error:
            raise Problem(422, "template_render_failed", str(error), param="model") from error
        return self._asked(found.plain, places)

    def _asked(self, text: str, places: tuple[str, str]) -> PairPrompt:
        try:
            return pair_prompt(text, places, tuple(sorted(self.tokenizer.special_tokens)))
        except TemplateError as error:
            raise Problem(422, "template_render_failed", str(error), param="model") from error

    def encode_chat(self, prompt: Rendered, *, tools: bool, most: int) -> Encoded:
        """A chat's prompt as ids. Raises Problem on ids outside the vocabulary, and TooManyTokensError where there are more
        than `most`."""
        template = self.template_for(tools=tools)
        assert template is not None
        ids = self.tokenizer.encode_rendered(prompt, most=most)
        self.check_ids("messages", ids)
        reasoning = formats.reasoning_format(template.source, prompt.plain)
        return Encoded(ids, Reading(reasoning, self.tool_format if tools else None))

    def encode_prompt(self, name: str, prompt: str | list[int], most: int, *, special: bool = True) -> Encoded:
        """A raw prompt as ids. Raises Problem on ids outside the vocabulary, or nothing at all, and TooManyTokensError
        where there are more than `most`."""
        if isinstance(prompt, list) and len(prompt) > most:
            raise TooManyTokensError(len(prompt), exact=True)
        ids = prompt if isinstance(prompt, list) else self.tokenizer.encode(prompt, add_special=special, most=most)
        if not ids:
            raise invalid_body(name, f"{name} must have at least one token.")
        self.check_ids(name, ids)
        return Encoded(ids, Reading(continues=True))

    def encode_gap(self, before: str, behind: str, most: int) -> Encoded:
        """A prompt for what stands between two texts. Raises Problem where the model cannot fill in the middle, and
        TooManyTokensError where there are more than `most`."""
        tokens = fill_tokens(self.tokenizer)
        if tokens is None:
            raise unsupported("suffix", "suffix: this model has no tokens for filling in the middle; leave it out.")
        ids = tokens.prompt(self.tokenizer, before, behind, most)
        self.check_ids("prompt", ids)
        return Encoded(ids, Reading(continues=True), tokens.ends)

    def encode_start(self, name: str, prompt: str | list[int], most: int) -> list[int]:
        """The same, of a prompt with more than `most` tokens only the first of them."""
        ids = prompt[:most] if isinstance(prompt, list) else self.tokenizer.encode_start(prompt, most)
        return self.encode_prompt(name, ids, most).ids

    def check_ids(self, name: str, ids: Sequence[int]) -> None:
        """Raises Problem when one of `ids` is no token of this model."""
        worst, size = max(ids, default=0), self.vocab_size
        if worst >= size:
            raise invalid_body(name, f"{name}: token {worst} is outside the vocabulary of {size} tokens.")

    def _refuse_hopeless(self, messages: Sequence[Mapping[str, Any]], most: int) -> None:
        """Refuses messages so long that nobody has to render them. Of the assistant's own, templates leave parts out."""
        said = [text for one in messages if one["role"] != "assistant" for text in _texts(one.get("content"))]
        least = self.tokenizer.spelling.least_tokens(*said)
        if least > most:
            raise TooManyTokensError(max(least, sum(map(len, said)) // USUAL_CHARS), exact=False)

    def output(self, encoded: Encoded, stops: Sequence[str], min_tokens: int, call_prefix: str) -> OutputText:
        """The reader of one answer to `encoded`."""
        return OutputText(self.tokenizer, encoded.reading, stops=stops, min_tokens=min_tokens, call_prefix=call_prefix)


def read_text(path: Path) -> ModelText:
    """Reads the files at `path`, a folder or a .gguf file; some 100 ms. Raises WeightsError."""
    description = describe(path)
    try:
        return _read(path, description)
    except TextError as error:
        raise bad_checkpoint(path, [str(error)]) from error


def _read(path: Path, description: ModelDescription) -> ModelText:
    source = description.tokenizer
    tokenizer = load_tokenizer(json=source.json, gguf=source.gguf, config=source.config, file=source.file)
    template, tool_template = (
        ChatTemplate(one, bos_token=tokenizer.bos_token, eos_token=tokenizer.eos_token) if one is not None else None
        for one in (description.chat_template, description.tool_template)
    )
    advice, refused = read_advice(description.generation_config)
    for why in refused:
        _log.warning("%s: generation_config.json is not followed: %s", path, why)
    return ModelText(description, tokenizer, template, advice, tool_template)


def read_facts(path: Path) -> ModelFacts | Broken:
    """As `read_text`, without the tokenizer, for lists: one model's files, whatever is in them, leave the others alone."""
    try:
        description = describe(path)
        template, tool_template = (
            ChatTemplate(one, bos_token=None, eos_token=None) if one is not None else None
            for one in (description.chat_template, description.tool_template)
        )
        return ModelFacts(description, _abilities(description, template, tool_template))
    except (WeightsError, OSError) as error:
        _log.warning("%s cannot be loaded: %s", path, error)
        return Broken(str(error))
    except TextError as error:
        _log.warning("%s cannot be loaded: %s", path, error)
        return Broken(f"{path}: {error}")
    except Exception as error:  # noqa: BLE001  # we should have foreseen it, but it is one model's
        _log.exception("%s cannot be loaded, unexpectedly", path)
        return Broken(f"{path}: {type(error).__name__}: {error}")


def _texts(content: str | Sequence[Mapping[str, Any]] | None) -> Sequence[str]:
    """A message's text, or its parts."""
    if content is None or isinstance(content, str):
        return [content or ""]
    return [part["text"] for part in content]


def _abilities(
    description: ModelDescription, template: ChatTemplate | None, tool_template: ChatTemplate | None
) -> Abilities:
    able = CAPABILITIES[description.purpose]
    with_tools = tool_template or template
    if with_tools is None or description.purpose != "generate":
        return Abilities(capabilities=able)
    found = _tool_format(with_tools) if with_tools.supports_tools else "generic"
    thinks = any(one.supports_thinking for one in (template, tool_template) if one is not None)
    return Abilities(found is not None, found, thinks, able)


def _tool_format(template: ChatTemplate) -> str | None:
    return formats.tool_format(template.source) if template.supports_tools else "hermes"
