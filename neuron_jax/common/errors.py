"""What a person can mend, and is told in one line; knows no exit codes."""

from collections.abc import Iterable


class UserError(Exception):
    """A command ends with the message, and without a traceback."""


class ConfigError(UserError):
    """What the operator wrote cannot be used. A line per problem: where it stands, what was found, what is allowed."""

    def __init__(self, problems: Iterable[str]) -> None:
        self.problems = tuple(problems)
        super().__init__("\n".join(self.problems))
