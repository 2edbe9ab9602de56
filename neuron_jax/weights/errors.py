"""What goes wrong with weights; knows one exception and its kinds, must not know HTTP."""

from collections.abc import Sequence
from typing import Any, Literal

Kind = Literal["repo_fetch_failed", "empty_repo", "quant_not_found", "bad_checkpoint"]


class WeightsError(Exception):
    """Weights that cannot be had or cannot be used. `kind` is a load error of docs/wire.md; `extras` goes beside it."""

    def __init__(self, kind: Kind, message: str, extras: dict[str, Any] | None = None) -> None:
        super().__init__(message)
        self.kind = kind
        self.message = message
        self.extras = extras or {}


def bad_checkpoint(subject: object, misfits: Sequence[str]) -> WeightsError:
    """One error for everything that is wrong with the files at `subject`."""
    return WeightsError("bad_checkpoint", f"{subject}: {'; '.join(misfits)}", {"misfits": list(misfits)})
