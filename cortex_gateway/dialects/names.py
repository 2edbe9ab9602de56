"""How long the name of a model may be: it stands in errors, in lines of the log and in comparisons. Knows no dialect."""

LONGEST_NAME = 512
"""Characters. Ids of hubs have at most two hundred."""


def too_long(name: str) -> str | None:
    """What is wrong with `name`, as the end of a sentence that begins with its field."""
    if len(name) <= LONGEST_NAME:
        return None
    return f"must be a string of at most {LONGEST_NAME} characters, found one of {len(name)}"
