"""Hatchling's hook: puts the commit that is built into wheel and sdist, for neuron_jax/common/release.py to read."""

import subprocess
import tempfile
from pathlib import Path
from typing import Any

from hatchling.builders.hooks.plugin.interface import BuildHookInterface

TARGET = "neuron_jax/common/commit.txt"


class CommitHook(BuildHookInterface):  # type: ignore[type-arg]
    """An sdist that is built again has the file already, an editable install asks git at run time."""

    def initialize(self, version: str, build_data: dict[str, Any]) -> None:
        root = Path(self.root)
        if version == "editable" or not (root / ".git").exists():
            return
        commit = _git(root, "rev-parse", "HEAD")
        changed = _git(root, "status", "--porcelain", "--untracked-files=no")
        if commit:
            self._made = tempfile.TemporaryDirectory()
            path = Path(self._made.name) / "commit.txt"
            path.write_text(f"{commit}{'-dirty' if changed else ''}\n")
            build_data["force_include"][str(path)] = TARGET


def _git(root: Path, *arguments: str) -> str:
    done = subprocess.run(["git", "-C", str(root), *arguments], capture_output=True, text=True, check=False)
    return done.stdout.strip() if done.returncode == 0 else ""
