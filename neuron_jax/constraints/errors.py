"""What can be wrong with a constraint; knows no library."""


class GrammarError(Exception):
    """A constraint that is none, or that nobody here carries out; `keywords` are the JSON schema's that are not."""

    def __init__(self, message: str, keywords: tuple[str, ...] = ()) -> None:
        super().__init__(message)
        self.keywords = keywords
