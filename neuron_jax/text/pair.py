"""Two texts to the one prompt by which a decoder is asked how well they go together; knows templates, must not know models.

A reranker's own chat template has the roles `query` and `document`, as sentence-transformers gives it them, and its
instruction as a system turn. It is run once on two characters that stand nowhere, in whose places the texts come.
https://sbert.net/docs/cross_encoder/usage/custom_models.html
"""

import re

from attrs import frozen

from neuron_jax.text.errors import TemplateError
from neuron_jax.text.prompt import Chat, Rendered, names_pattern
from neuron_jax.text.template import unused_character

ROLES = ("query", "document")
WORDS = ("{query}", "{document}")
"""Where the texts come in the prompt of a GGUF file, which is no template of Jinja's."""


@frozen
class PairPrompt:
    """A prompt with `places` for the two texts. `names` finds special tokens, which are plain text within them."""

    text: str
    places: tuple[str, str]
    names: re.Pattern[str]

    def fill(self, query: str, document: str) -> Rendered:
        """The prompt of a pair."""
        mark = unused_character([self.text, query, document])
        said = dict(zip(self.places, (self._plain(text, mark) for text in (query, document)), strict=True))
        text = re.sub("|".join(map(re.escape, self.places)), lambda found: said[found[0]], self.text)
        return Rendered(text, mark if mark in text else "")

    def _plain(self, text: str, mark: str) -> str:
        return self.names.sub(lambda found: found[0][:1] + mark + found[0][1:], text)


def places_for(source: str, instruction: str | None) -> tuple[str, str]:
    """Two characters that a template's `source` and the instruction do not have."""
    first = unused_character([source, instruction])
    return first, unused_character([source, instruction, first])


def chat_of(places: tuple[str, str], instruction: str | None) -> Chat:
    """What the template is to render."""
    system = [] if instruction is None else [{"role": "system", "content": instruction}]
    turns = [{"role": role, "content": place} for role, place in zip(ROLES, places, strict=True)]
    return Chat([*system, *turns], add_generation_prompt=False)


def pair_prompt(rendered: str, places: tuple[str, str], names: tuple[str, ...]) -> PairPrompt:
    """Of the template's text. Raises TemplateError where one of the texts has no place in it."""
    if missing := [role for role, place in zip(ROLES, places, strict=True) if place not in rendered]:
        raise TemplateError(
            f"the chat template has no place for the role {' or '.join(missing)}, which a reranker's has"
        )
    return PairPrompt(rendered, places, names_pattern(names))
