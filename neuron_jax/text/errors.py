"""What can go wrong between strings and ids; knows no HTTP status.

TextError
├── TokenizerError       a tokenizer description this package cannot follow
├── TooManyTokensError   a text with more tokens than were asked for
├── UncutTextError       a text that cannot be encoded part by part, and is too long to be encoded whole
└── TemplateError        a chat template that does not compile, refuses the messages, or runs away
"""


class TextError(ValueError):
    """Bad input to the text layer: a model's own file or a client's messages."""


class TokenizerError(TextError):
    """The message says what was found and what is understood."""


class TooManyTokensError(TextError):
    """A text has `tokens` tokens. Counting stops where it has far too many: then it is an estimate, and not `exact`."""

    def __init__(self, tokens: int, *, exact: bool) -> None:
        super().__init__(f"the text has {'' if exact else 'about '}{tokens} tokens")
        self.tokens = tokens
        self.exact = exact


class UncutTextError(TextError):
    """The message says how many characters have no place between two words to cut them, and how many may."""

    def __init__(self, chars: int, most: int) -> None:
        super().__init__(f"{chars} characters without a space between two words; at most {most} are taken")


class TemplateError(TextError):
    """The message is the template's own where it raised one."""
