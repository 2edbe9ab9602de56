"""What GET /version tells of this build: the release, Python and JAX; must not import jax."""

import platform

from attrs import frozen

from neuron_jax.common.release import release, version_of


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
    this = release()
    return BuildInfo(
        package_version=this.version,
        git_sha=this.commit or "unknown",
        git_dirty=this.dirty,
        python_version=platform.python_version(),
        jax_version=version_of("jax"),
        features=FEATURES,
    )
