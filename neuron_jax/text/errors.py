"""What can go wrong between strings and ids; knows no HTTP status.

TextError
├── TokenizerError   a tokenizer description this package cannot follow
└── TemplateError    a chat template that does not compile, refuses the messages, or runs away
"""


class TextError(ValueError):
    """Bad input to the text layer: a model's own file or a client's messages."""


class TokenizerError(TextError):
    """The message says what was found and what is understood."""


class TemplateError(TextError):
    """The message is the template's own where it raised one."""
