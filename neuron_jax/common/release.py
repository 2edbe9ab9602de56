"""Which release of the project this is, for both programs: version, commit, prebuilt kernels; must not know JAX.

An installed copy has its commit in a file that tools/hatch_build.py put beside this one; a checkout asks git.
"""

import subprocess
from importlib import metadata
from pathlib import Path

from attrs import frozen

COMMIT_FILE = Path(__file__).with_name("commit.txt")
KERNELS = "cortex-jax-kernels"


@frozen
class Release:
    """`commit` and `kernels`, the version of the prebuilt CPU kernels that are installed, are None where there are none."""

    version: str
    commit: str | None
    dirty: bool
    kernels: str | None

    def described(self, program: str, **more: str) -> str:
        """What `--version` prints: a line with the version, then one for each thing that the build consists of."""
        changed = " and changes" if self.dirty else ""
        parts = {"commit": f"{self.commit[:12]}{changed}" if self.commit else "unknown"}
        parts |= {"prebuilt kernels": self.kernels or "none", **more}
        return "\n".join([f"{program} {self.version}", *(f"  {name}: {value}" for name, value in parts.items())])


def release() -> Release:
    """Looks at the installed distributions and, in a checkout, at git. Takes some milliseconds: call it once."""
    commit, dirty = _commit()
    return Release(version_of("cortex-jax") or "0.0.0", commit, dirty, version_of(KERNELS))


def version_of(distribution: str) -> str | None:
    """Of an installed distribution; None where it is not."""
    try:
        return metadata.version(distribution)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> tuple[str | None, bool]:
    root = Path(__file__).parents[2]
    if (root / ".git").exists():
        return _git(root, "rev-parse", "HEAD") or None, bool(
            _git(root, "status", "--porcelain", "--untracked-files=no")
        )
    if not COMMIT_FILE.exists():
        return None, False
    commit, _, changed = COMMIT_FILE.read_text().strip().partition("-")
    return commit or None, bool(changed)


def _git(root: Path, *arguments: str) -> str:
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
