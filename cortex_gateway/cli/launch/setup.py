"""What a client needs to use a model here, as data: files, environment, command. Knows no client and no disk."""

from collections.abc import Mapping, Sequence
from typing import Any

from attrs import field, frozen

SHOWN_KEY = "${CORTEX_API_KEY}"
"""Stands for the key in whatever is printed; a shell expands it."""
NO_KEY = "none"
"""Clients want some key, and a gateway without [auth] takes any."""


@frozen(kw_only=True)
class ServedModel:
    """A model as /v1/models tells of it. `context` and `output` are tokens; `output` is None where it is unknown."""

    id: str
    context: int
    output: int | None = None
    tools: bool = False
    reasoning: bool = False
    images: bool = False

    @property
    def answer(self) -> int:
        """The longest answer to ask for, in tokens: clients take it off the window, so it is a quarter of it at most."""
        return max(1, min(self.output or self.context, self.context // 4))


@frozen(kw_only=True)
class Asked:
    """The gateway at `url` (no slash at its end), the model to begin with, all that are loaded, and where files are.

    `key` is what clients show the gateway, None where there is none. `config` is the user's folder of configurations,
    `codex` that of Codex.
    """

    url: str
    model: ServedModel
    models: Sequence[ServedModel]
    home: str
    config: str
    codex: str
    key: str | None = field(default=None, repr=False)

    @property
    def v1(self) -> str:
        return f"{self.url}/v1"

    @property
    def token(self) -> str:
        return self.key or NO_KEY


@frozen
class OwnFile:
    """A file that is ours from the first byte to the last."""

    path: str
    text: str = field(repr=False)


@frozen
class Member:
    """`value` at the end of the keys `path` in a JSON file.

    What stands there is replaced, or kept if the member `yields`. If the name is not ours alone it is `taken` by whatever the
    user wrote there before the first launch, and the file is refused.
    """

    path: tuple[str, ...]
    value: Any
    yields: bool = False
    taken: bool = False


@frozen
class SharedFile:
    """A JSON file of the user's, with or without comments: the first of `paths` that exists, else the first."""

    paths: tuple[str, ...]
    members: tuple[Member, ...] = field(repr=False)


@frozen(kw_only=True)
class Setup:
    """All that makes a client use a model. `notes` are sentences for whoever asked."""

    command: tuple[str, ...]
    environment: Mapping[str, str] = field(factory=dict, repr=False)
    files: tuple[OwnFile | SharedFile, ...] = ()
    notes: tuple[str, ...] = ()
