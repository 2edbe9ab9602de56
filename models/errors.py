"""What models refuse; knows one exception, must not know files or HTTP."""

from collections.abc import Sequence


class ModelError(ValueError):
    """A config or a checkpoint that this package cannot be. `misfits` lists every reason, not only the first."""

    def __init__(self, subject: str, misfits: Sequence[str]) -> None:
        self.misfits = tuple(misfits)
        super().__init__(f"{subject}: {'; '.join(self.misfits)}")
