"""Hub repositories through huggingface_hub against a local server, and which of their files are meant."""

import hashlib
import json
from concurrent.futures import ThreadPoolExecutor
from contextlib import nullcontext
from pathlib import Path

import pytest

from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.hub import Hub, choose, fetch, local, locate
from tests.fakes.file_server import FileServer, Refusal, serving

COMMIT = "0123456789abcdef0123456789abcdef01234567"
SAFETENSORS = {
    "config.json": b'{"a": 1}',
    "model.safetensors": b"\1" * 5000,
    "tokenizer.json": b"{}",
    "README.md": b"# no",
    "pytorch_model.bin": b"no",
}
GGUFS = {"tiny.Q4_0.gguf": b"\2" * 300, "tiny.Q8_0.gguf": b"\3" * 600}


def repository(files: dict[str, bytes], **sha256: str) -> dict[str, bytes]:
    """The paths that a hub answers for org/tiny at main; `sha256` of files by stem, as it has of large ones."""
    siblings: list[dict[str, object]] = [{"rfilename": name, "size": len(content)} for name, content in files.items()]
    for row in siblings:
        if (digest := sha256.get(str(row["rfilename"]).partition(".")[0])) is not None:
            row["lfs"] = {"size": row["size"], "sha256": digest, "pointerSize": 100}
    info = json.dumps({"id": "org/tiny", "sha": COMMIT, "siblings": siblings}).encode()
    answers = {f"/org/tiny/resolve/main/{name}": content for name, content in files.items()}
    answers |= {f"/org/tiny/resolve/{COMMIT}/{name}": content for name, content in files.items()}
    return answers | {"/api/models/org/tiny": info, "/api/models/org/tiny/revision/main": info}


def dressed(server: FileServer) -> None:
    """The headers that huggingface_hub wants beside the bytes."""
    for path, content in server.files.items():
        etag = hashlib.sha1(content).hexdigest()
        server.headers[path] = {"ETag": f'"{etag}"', "X-Repo-Commit": COMMIT}


def fetched(cache: Path, files: dict[str, bytes], source: Hub) -> tuple[Path, list[tuple[str, int, int, str]]]:
    progress: list[tuple[str, int, int, str]] = []
    with serving(repository(files)) as server:
        dressed(server)
        path = fetch(source, cache, lambda *row: progress.append(row), endpoint=server.url)
    return path, progress


def test_safetensors_arrive_with_what_belongs_to_them(tmp_path: Path) -> None:
    """Weights, config and tokenizer; no other formats, no readme; progress ends at the total."""
    path, progress = fetched(tmp_path, SAFETENSORS, Hub("org/tiny"))

    assert path == locate(Hub("org/tiny"), tmp_path) == tmp_path / "hub" / "org" / "tiny@main"
    assert {file.name for file in path.iterdir()} == {"config.json", "model.safetensors", "tokenizer.json"}
    assert (path / "model.safetensors").read_bytes() == SAFETENSORS["model.safetensors"]
    assert progress[-1] == ("download", 5010, 5010, "bytes")


INDEX = "model.safetensors.index.json"
SHARDS = {
    "config.json": b"{}",
    INDEX: json.dumps({"weight_map": {"a": "model-1.safetensors", "b": "model-2.safetensors"}}).encode(),
    "model-1.safetensors": b"\1" * 700,
    "model-2.safetensors": b"\2" * 800,
    "consolidated.safetensors": b"\3" * 1500,
}


def test_only_the_weights_that_the_index_names_are_fetched(tmp_path: Path) -> None:
    """Some repositories have them once more, in another format; the index comes along."""
    path, progress = fetched(tmp_path, SHARDS, Hub("org/tiny"))

    assert {file.name for file in path.iterdir()} == set(SHARDS) - {"consolidated.safetensors"}
    assert progress[-1] == ("download", 1502, 1502, "bytes")


def test_what_sentence_transformers_wrote_comes_along(tmp_path: Path) -> None:
    """modules.json and the folders that it may name, without which a model of embeddings would be one that chats; no other
    folders, and of a model without modules.json none."""
    wanted = {
        "modules.json": b"[]",
        "config_sentence_transformers.json": b"{}",
        "1_Pooling/config.json": b"{}",
        "2_Dense/config.json": b"{}",
        "2_Dense/model.safetensors": b"\1" * 9,
    }
    others = {"onnx/config.json": b"{}", "2_Dense/pytorch_model.bin": b"\2"}
    path, _ = fetched(tmp_path, SAFETENSORS | wanted | others, Hub("org/tiny"))
    found = {str(file.relative_to(path)) for file in path.rglob("*") if file.is_file()}

    assert found == {"config.json", "model.safetensors", "tokenizer.json", *wanted}
    assert (path / "2_Dense" / "model.safetensors").read_bytes() == wanted["2_Dense/model.safetensors"]
    assert not set(choose(Hub("org/tiny"), ["config.json", "model.safetensors", *list(wanted)[1:]])) & set(wanted)


def test_without_an_index_the_usual_file_is_all(tmp_path: Path) -> None:
    path, _ = fetched(tmp_path, SAFETENSORS | {"consolidated.safetensors": b"\3"}, Hub("org/tiny"))

    assert [file.name for file in path.glob("*.safetensors")] == ["model.safetensors"]


@pytest.mark.parametrize(
    ("named", "kind", "words"),
    [
        ("model-3.safetensors", "repo_fetch_failed", "names model-3.safetensors, which is not there"),
        ("../model-1.safetensors", "bad_checkpoint", "'../model-1.safetensors', which is no file of this folder"),
    ],
)
def test_an_index_that_names_what_is_not_there_is_told(tmp_path: Path, named: str, kind: str, words: str) -> None:
    """Before a byte of the weights is fetched."""
    files = SHARDS | {INDEX: json.dumps({"weight_map": {"a": named}}).encode()}
    with pytest.raises(WeightsError, match=words) as caught:
        fetched(tmp_path, files, Hub("org/tiny"))

    assert caught.value.kind == kind
    assert not list(tmp_path.glob("**/*.safetensors"))


def test_two_fetches_at_once_are_one(tmp_path: Path) -> None:
    """The second waits for the first and finds what that has brought."""
    told: list[tuple[str, int, int, str]] = []
    with serving(repository(SHARDS)) as server, ThreadPoolExecutor(4) as pool:
        dressed(server)
        asked = [
            pool.submit(fetch, Hub("org/tiny"), tmp_path, lambda *row: told.append(row), endpoint=server.url)
            for _ in range(4)
        ]
        paths = {one.result() for one in asked}

    assert paths == {tmp_path / "hub" / "org" / "tiny@main"}
    assert [row for row in told if row[1] == row[2]] == [("download", 1502, 1502, "bytes")]


def test_a_gguf_is_taken_by_a_part_of_its_name(tmp_path: Path) -> None:
    """`Q8_0` names one file of two, and only that one is fetched."""
    path, _ = fetched(tmp_path, GGUFS, Hub("org/tiny", None, "q8_0"))

    assert path.name == "tiny.Q8_0.gguf"
    assert [file.name for file in path.parent.iterdir()] == ["tiny.Q8_0.gguf"]
    assert locate(Hub("org/tiny", None, "tiny.Q8_0.gguf"), tmp_path) == path
    assert locate(Hub("org/tiny", None, "Q4_0"), tmp_path) is None


SPLIT = {
    "tiny-Q4_0-00001-of-00002.gguf": b"\2" * 300,
    "tiny-Q4_0-00002-of-00002.gguf": b"\2" * 200,
    "tiny-Q8_0-00001-of-00002.gguf": b"\3" * 600,
}


@pytest.mark.parametrize("wanted", ["Q4_0", "tiny-Q4_0-00001-of-00002.gguf"])
def test_a_model_in_several_files_is_fetched_whole(tmp_path: Path, wanted: str) -> None:
    """All its parts arrive, the first one stands for them, and it is one model in the cache."""
    path, progress = fetched(tmp_path, SPLIT, Hub("org/tiny", None, wanted))

    assert path.name == "tiny-Q4_0-00001-of-00002.gguf"
    assert {file.name for file in path.parent.iterdir()} == set(SPLIT) - {"tiny-Q8_0-00001-of-00002.gguf"}
    assert progress[-1] == ("download", 500, 500, "bytes")
    assert list(local(tmp_path)) == [("org/tiny", path)]


def test_a_model_that_lacks_a_part_is_not_there(tmp_path: Path) -> None:
    """Neither in a repository nor in the cache."""
    with pytest.raises(WeightsError, match="0 models match 'Q8_0'"):
        fetched(tmp_path, SPLIT, Hub("org/tiny", None, "Q8_0"))
    path, _ = fetched(tmp_path, SPLIT, Hub("org/tiny"))
    path.with_name("tiny-Q4_0-00002-of-00002.gguf").unlink()

    assert locate(Hub("org/tiny"), tmp_path) is None
    assert not list(local(tmp_path))


def test_a_missing_repository_is_told(tmp_path: Path) -> None:
    """The error names the repository and nothing appears in the cache."""
    with serving({}) as server, pytest.raises(WeightsError, match="org/tiny: ") as caught:
        fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)

    assert caught.value.kind == "repo_fetch_failed"
    assert locate(Hub("org/tiny"), tmp_path) is None


def test_an_unreachable_hub_is_told(tmp_path: Path) -> None:
    """A refused connection is a load error, not a crash."""
    with serving({}) as server:
        url = server.url
    with pytest.raises(WeightsError, match="org/tiny: the model hub cannot be reached: ") as caught:
        fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=url)

    assert caught.value.kind == "repo_fetch_failed"


@pytest.mark.parametrize(
    ("names", "file", "kind"),
    [
        (["README.md"], None, "empty_repo"),
        (["model.safetensors"], None, "empty_repo"),
        (["a.Q4_0.gguf", "a.Q8_0.gguf"], None, "quant_not_found"),
        (["a.Q4_0.gguf", "a.Q8_0.gguf"], "Q5_K", "quant_not_found"),
        (["a.Q4_0.gguf", "b.Q4_0.gguf"], "Q4_0", "quant_not_found"),
    ],
)
def test_what_cannot_be_chosen_is_told(names: list[str], file: str | None, kind: str) -> None:
    """Nothing usable, or not exactly one; the second lists what there is."""
    with pytest.raises(WeightsError) as caught:
        choose(Hub("org/tiny", None, file), names)

    assert caught.value.kind == kind
    assert kind == "empty_repo" or caught.value.extras["available"] == names


@pytest.mark.parametrize(("file", "chosen"), [(None, "a.Q4_K_M.gguf"), ("q4_k_m", "a.Q4_K_M.gguf")])
def test_a_single_gguf_needs_no_name(file: str | None, chosen: str) -> None:
    """One file is the one that is meant."""
    assert choose(Hub("org/tiny", None, file), ["README.md", "a.Q4_K_M.gguf"]) == [chosen]


@pytest.mark.parametrize("right", [True, False])
def test_large_files_are_held_to_their_hash(tmp_path: Path, right: bool) -> None:
    """What arrived as something else is deleted, and there is no model."""
    digest = hashlib.sha256(SAFETENSORS["model.safetensors"]).hexdigest() if right else "0" * 64
    with serving(repository(SAFETENSORS, model=digest)) as server:
        dressed(server)
        told = nullcontext() if right else pytest.raises(WeightsError, match=f"must be {digest}; it was deleted")
        with told:
            fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)

    assert (locate(Hub("org/tiny"), tmp_path) is not None) is right
    assert not right or not list((tmp_path / ".partial").rglob("*.safetensors"))


@pytest.mark.parametrize(
    ("names", "chosen"),
    [
        (["tokenizer.json", "tokenizer.model", "tekken.json"], ["tokenizer.json"]),
        (["tokenizer.model", "tekken.json"], ["tekken.json"]),
        (["tokenizer.model", "x.tiktoken"], ["tokenizer.model"]),
        (["x.tiktoken", "original/tokenizer.model"], ["x.tiktoken"]),
    ],
)
def test_one_tokenizer_is_enough(names: list[str], chosen: list[str]) -> None:
    """The file that says the most."""
    assert choose(Hub("org/tiny"), ["config.json", "model.safetensors", *names])[2:] == chosen


def test_the_template_for_tools_is_fetched_and_no_other_of_its_folder() -> None:
    """A chat with tools needs it; transformers takes none of the others by itself."""
    names = [f"additional_chat_templates/{name}.jinja" for name in ("rag", "tool_use")]

    assert choose(Hub("org/tiny"), ["config.json", "model.safetensors", *names])[2:] == names[1:]


LARGE = {"config.json": b"{}", "model.safetensors": b"\5" * 300_000, "tokenizer.json": b"{}"}
BROKEN = 100_000
"""Bytes of it that came before the connection broke."""


@pytest.mark.parametrize("ends", [False, True])
def test_weights_go_on_where_they_broke_off(tmp_path: Path, ends: bool) -> None:
    """In the same fetch, or in the next where the first one `ends`; what arrives is held to its hash as a whole."""
    digest = hashlib.sha256(LARGE["model.safetensors"]).hexdigest()
    with serving(repository(LARGE, model=digest), [None, BROKEN]) as server:
        dressed(server)
        server.refusals["model.safetensors"] = [None, *([Refusal(403)] if ends else [])]
        told = pytest.raises(WeightsError, match="HF_TOKEN is of nobody") if ends else nullcontext()
        with told:
            fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)
        path = fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)

    assert (path / "model.safetensors").read_bytes() == LARGE["model.safetensors"]
    asked = [row[2] for row in server.asked if row[0] == "GET" and row[1].endswith("model.safetensors")]
    assert asked == [None, *[f"bytes={BROKEN}-"] * (1 + ends)]


def test_what_was_begun_of_another_revision_is_no_beginning(tmp_path: Path) -> None:
    """`main` is another commit by the time of the second fetch: its weights are fetched whole, and are what they should be."""
    other = LARGE | {"model.safetensors": b"\6" * 300_000}
    for files, refusals in ((LARGE, [None, Refusal(403)]), (other, [])):
        digest = hashlib.sha256(files["model.safetensors"]).hexdigest()
        with serving(repository(files, model=digest), [None, BROKEN] if refusals else []) as server:
            dressed(server)
            server.refusals["model.safetensors"] = refusals
            with pytest.raises(WeightsError) if refusals else nullcontext():
                path = fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)

    assert (path / "model.safetensors").read_bytes() == other["model.safetensors"]


@pytest.mark.parametrize(
    ("place", "refusal", "words"),
    [
        ("api", Refusal(401, "RepoNotFound"), "there is no such repository, or HF_TOKEN is of nobody who may read it"),
        ("api", Refusal(403), "HF_TOKEN is of nobody who may read it"),
        ("api", Refusal(403, "GatedRepo"), "it is gated, and HF_TOKEN is of nobody who accepted its terms on its page"),
        (
            "resolve",
            Refusal(401, "GatedRepo"),
            "it is gated, and HF_TOKEN is of nobody who accepted its terms on its page",
        ),
        ("api", Refusal(404, "RevisionNotFound"), "it has no revision 'v2'"),
        ("api", Refusal(404), "404"),
    ],
)
def test_a_refusal_says_what_it_means(tmp_path: Path, place: str, refusal: Refusal, words: str) -> None:
    """To who would read a private or a gated repository, or a revision that is none. Nothing is asked twice, or kept."""
    source = Hub("org/tiny", "v2")
    answers = {path.replace("/main", "/v2"): content for path, content in repository(SAFETENSORS).items()}
    with serving(answers) as server:
        dressed(server)
        server.refusals[place] = [refusal] * 3
        with pytest.raises(WeightsError, match=f"org/tiny: .*{words}") as caught:
            fetch(source, tmp_path, lambda *_: None, endpoint=server.url)
        assert len(server.refusals[place]) == 2
        server.refusals.clear()
        assert locate(source, tmp_path) is None
        path = fetch(source, tmp_path, lambda *_: None, endpoint=server.url)

    assert caught.value.kind == "repo_fetch_failed"
    assert path.name == "tiny@v2"


@pytest.mark.parametrize("status", [429, 503])
def test_a_hub_that_is_busy_is_asked_again(tmp_path: Path, status: int) -> None:
    """For the list of files, which huggingface_hub asks for once: after a refusal of the moment, or half an answer."""
    with serving(repository(SAFETENSORS), [7]) as server:
        dressed(server)
        server.refusals["api"] = [Refusal(status)]
        path = fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)

    assert path == locate(Hub("org/tiny"), tmp_path)
    assert [row[1] for row in server.asked].count("/api/models/org/tiny") == 3


def test_a_small_file_that_is_another_is_refused(tmp_path: Path) -> None:
    """The hub has hashes of large ones only; the length is held to the list."""
    answers = repository(SAFETENSORS)
    changed = {path: b'{"a": 10}' if path.endswith("/config.json") else content for path, content in answers.items()}
    with serving(changed) as server:
        dressed(server)
        with pytest.raises(WeightsError, match=r"config.json has 9 bytes, must have 8; it was deleted"):
            fetch(Hub("org/tiny"), tmp_path, lambda *_: None, endpoint=server.url)

    assert locate(Hub("org/tiny"), tmp_path) is None


QUANTS = [
    "Tiny-Q4_K_M.gguf",
    "Tiny-UD-Q4_K_XL.gguf",
    "BF16/Tiny-BF16-00001-of-00002.gguf",
    "BF16/Tiny-BF16-00002-of-00002.gguf",
    "mmproj-BF16.gguf",
    "imatrix_tiny.gguf",
]


@pytest.mark.parametrize(
    ("named", "chosen"),
    [
        ("q4_k_m", QUANTS[:1]),
        ("UD-Q4_K_XL", QUANTS[1:2]),
        ("Q4_K_XL", QUANTS[1:2]),
        ("BF16", QUANTS[2:4]),
        ("Tiny-BF16-00001-of-00002.gguf", QUANTS[2:4]),
        ("BF16/Tiny-BF16-00001-of-00002.gguf", QUANTS[2:4]),
    ],
)
def test_one_quantization_is_found_by_its_name(named: str, chosen: list[str]) -> None:
    """In a folder of its own, too; what sees pictures and what it was quantized by are no models."""
    assert choose(Hub("org/tiny", None, named), [*QUANTS, "README.md"]) == chosen


def test_a_model_in_a_folder_of_its_repository_is_found_in_the_cache(tmp_path: Path) -> None:
    """By its quantization, as it was asked for, and in the list."""
    files = {name: name.encode() for name in QUANTS}
    path, progress = fetched(tmp_path, files, Hub("org/tiny", None, "BF16"))

    assert path == tmp_path / "hub" / "org" / "tiny@main" / QUANTS[2]
    assert progress[-1][1] == sum(len(name) for name in QUANTS[2:4])
    assert locate(Hub("org/tiny", None, "BF16"), tmp_path) == path
    assert list(local(tmp_path)) == [("org/tiny", path)]
