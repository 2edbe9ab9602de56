"""Which build this is: version, commit, Python and JAX; knows packaging metadata, must not import jax."""

import platform
import subprocess
from importlib import metadata
from pathlib import Path

from attrs import frozen


@frozen
class BuildInfo:
    """What GET /version answers. `jax_version` is None where only the gateway is installed."""

    package_version: str
    git_sha: str
    git_dirty: bool
    python_version: str
    jax_version: str | None
    features: tuple[str, ...]


FEATURES = ("chat", "completions", "tokenize", "tools", "reasoning", "logprobs", "load_progress")


def build_info() -> BuildInfo:
    """Looks at the installed distributions and, in a checkout, at git. Takes some milliseconds: call it once."""
    return BuildInfo(
        package_version=_version("cortex-jax") or "0.0.0",
        git_sha=_git("rev-parse", "HEAD") or "unknown",
        git_dirty=bool(_git("status", "--porcelain", "--untracked-files=no")),
        python_version=platform.python_version(),
        jax_version=_version("jax"),
        features=FEATURES,
    )


def _version(distribution: str) -> str | None:
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _git(*arguments: str) -> str:
    root = Path(__file__).parent.parent
    if not (root / ".git").exists():
        return ""
    try:
        done = subprocess.run(  # arguments are literals of this module
            ["git", "-C", str(root), *arguments],  # noqa: S607 - git is where the user's PATH says
            capture_output=True,
            text=True,
            timeout=5,
            check=False,
        )
    except (OSError, subprocess.TimeoutExpired):
        return ""
    return done.stdout.strip() if done.returncode == 0 else ""
