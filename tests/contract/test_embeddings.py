"""Embeddings and ranking through the whole product: official clients, gateway, daemon, and real engines of tiny models."""

import asyncio
import base64
import contextlib
import math
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import attrs
import httpx
import jax.numpy as jnp
import numpy as np
import ollama
import openai
import pytest

from models import mapping
from models.registry import build_embedder
from neuron_jax.config import EngineConfig, ModelSpec
from neuron_jax.daemon.devices import Devices
from neuron_jax.engine.embedding.line import Call, TextOfRequest
from neuron_jax.engine.embedding.runner import packed
from neuron_jax.engine.embedding.sizes import CallSize
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.workers.process import DEFAULT_COMMAND
from tests.fakes import quick
from tests.fakes.live_gateway import in_thread, live_gateway
from tests.fakes.live_neuron import config_for, serving
from tests.fakes.tiny_bert import SCORES, tokenizer, write_tiny_bert

BERT, RANKER = "org/bert", "org/ranker"
SENTENCES = ["the cat", "a cat, or the other cat?", "1234", "the cat"]


@asynccontextmanager
async def _neuron(folder: Path) -> AsyncIterator[str]:
    """A neuron with both models loaded."""
    write_tiny_bert(folder / "bert", matryoshka_dimensions=[8])
    write_tiny_bert(folder / "ranker", **SCORES)
    models = tuple(ModelSpec(model_id=f"org/{name}", source=str(folder / name)) for name in ("bert", "ranker"))
    config = config_for(folder, folder / "cache", models=models, engine=EngineConfig(chunk_tokens=128))
    config = attrs.evolve(config, environ={**config.environ, **quick.ENVIRON})
    hardware = discover(visible="")
    with Sampler(hardware) as sampler:
        async with serving(config, command=DEFAULT_COMMAND, devices=Devices(hardware, sampler)) as (url, neuron):
            await asyncio.gather(*(neuron.lifecycle.load(spec) for spec in models))
            yield url


@pytest.fixture(scope="module")
def urls(tmp_path_factory: pytest.TempPathFactory) -> Iterator[tuple[str, str, Path]]:
    """Of a neuron and a gateway before it, and the folder of the models."""
    folder = tmp_path_factory.mktemp("models")
    with in_thread(_neuron(folder)) as neuron, live_gateway({"one": neuron}) as gateway:
        yield neuron, gateway.url, folder


@pytest.fixture(params=["neuron", "gateway"])
def url(request: pytest.FixtureRequest, urls: tuple[str, str, Path]) -> str:
    return urls[request.param == "gateway"]


def plain(folder: Path, ids: list[list[int]], second: int = 0) -> np.ndarray:
    """What the model makes of each text by itself, one after the other, [N, width]."""
    with open_checkpoint(folder) as checkpoint:
        model = build_embedder(checkpoint.config, dtype=jnp.float32)
        params = mapping.load(model.rules, {name: checkpoint.stored(name) for name in checkpoint.tensors})
    run = quick.jit(model.embed)
    calls = [Call(CallSize(1, 64), [[TextOfRequest(0, 0, text, second)]]) for text in ids]
    return np.stack([np.asarray(run(params, packed(call)))[0] for call in calls])


def test_the_official_sdk_gets_the_models_own_vectors(url: str, urls: tuple[str, str, Path]) -> None:
    """In base64, which it asks for by itself, and as numbers; one text, several, ids; counted."""
    ids = [tokenizer().encode(text).ids for text in SENTENCES]
    expected = plain(urls[2] / "bert", ids)
    with openai.OpenAI(base_url=f"{url}/v1", api_key="any", max_retries=0) as client:
        several = client.embeddings.create(model=BERT, input=SENTENCES)
        one = client.embeddings.create(model=BERT, input=SENTENCES[0], encoding_format="float")
        bare = client.embeddings.create(model=BERT, input=ids)

    for answer in (several, bare):
        assert [row.index for row in answer.data] == [0, 1, 2, 3]
        np.testing.assert_allclose([row.embedding for row in answer.data], expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(one.data[0].embedding, expected[0], rtol=0, atol=1e-5)
    assert (several.model, several.object, several.data[0].object) == (BERT, "list", "embedding")
    tokens = sum(map(len, ids))
    assert (several.usage.prompt_tokens, several.usage.total_tokens) == (tokens, tokens)


def test_vectors_are_cut_to_dimensions_that_the_model_was_made_for(url: str) -> None:
    """The first so many values, at the length they had; others are refused by name."""

    def ask(**more: Any) -> httpx.Response:
        return httpx.post(f"{url}/v1/embeddings", json={"model": BERT, "input": "the cat", **more})

    whole, cut = (np.array(ask(**more).json()["data"][0]["embedding"]) for more in ({}, {"dimensions": 8}))

    assert len(whole) == 24
    np.testing.assert_allclose(cut, whole[:8] / np.linalg.norm(whole[:8]), rtol=0, atol=1e-6)
    refused = ask(dimensions=9)
    assert (refused.status_code, refused.json()["error"]["param"]) == (400, "dimensions")


def test_the_sdk_s_base64_is_little_endian_float32(url: str) -> None:
    """As OpenAI's own."""
    bodies = [{"model": BERT, "input": "the cat", "encoding_format": form} for form in ("base64", "float")]
    coded, numbers = (httpx.post(f"{url}/v1/embeddings", json=body).json()["data"][0]["embedding"] for body in bodies)

    assert np.frombuffer(base64.b64decode(coded), "<f4").tolist() == numbers


@pytest.mark.parametrize(
    ("body", "param", "words"),
    [
        ({"input": "a" * 63}, "input", "maximum context length is 64 tokens. However, your messages resulted in 65"),
        ({"input": ["the", "cat " * 70]}, "input[1]", "resulted in 72 tokens"),
        ({"input": []}, "input", "a list of strings"),
        ({"input": [["cat"]]}, "input[0]", "a list of token ids"),
        ({"input": [[4], [4, 900]]}, "input[1]", "token 900"),
        ({"input": ["x"] * 2049}, "input", "at most 2048"),
        ({"input": "x", "encoding_format": "int8"}, "encoding_format", "base64"),
        ({"input": "x", "normalize": False}, "normalize", "as the model makes them"),
    ],
)
def test_what_cannot_be_followed_is_refused_by_name(url: str, body: dict[str, Any], param: str, words: str) -> None:
    """A text that is too long with its length."""
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": BERT, **body})

    assert answer.status_code == 400
    assert answer.json()["error"]["param"] == param
    assert words in answer.json()["error"]["message"]


def test_two_thousand_inputs_in_one_request(urls: tuple[str, str, Path]) -> None:
    """As many as OpenAI takes; each has its own vector."""
    url = urls[1]
    texts = [f"{at} cat{'s' * (at % 40)}" for at in range(2048)]
    answer = httpx.post(f"{url}/v1/embeddings", json={"model": BERT, "input": texts}, timeout=60).json()
    some = httpx.post(f"{url}/v1/embeddings", json={"model": BERT, "input": texts[1000]}).json()

    assert [row["index"] for row in answer["data"]] == list(range(2048))
    np.testing.assert_allclose(answer["data"][1000]["embedding"], some["data"][0]["embedding"], rtol=0, atol=1e-5)


def test_documents_are_ranked(url: str, urls: tuple[str, str, Path]) -> None:
    """By the model's own scores of query and document as a pair, the best first."""
    query, documents = "cat", ["the cat", "1234, 567.", "other"]
    pairs = [tokenizer().encode(query, document) for document in documents]
    logits = plain(urls[2] / "ranker", [pair.ids for pair in pairs], second=pairs[0].type_ids.index(1))[:, 0]
    order = np.argsort(-logits).tolist()
    body = {"model": RANKER, "query": query, "documents": [documents[0], {"text": documents[1]}, documents[2]]}
    whole = httpx.post(f"{url}/v1/rerank", json=body).json()
    best = httpx.post(f"{url}/v1/rerank", json=body | {"top_n": 1, "return_documents": False}).json()

    assert [row["index"] for row in whole["results"]] == order
    assert [row["document"]["text"] for row in whole["results"]] == [documents[at] for at in order]
    wanted = [1 / (1 + math.exp(-logits[at])) for at in order]
    np.testing.assert_allclose([row["relevance_score"] for row in whole["results"]], wanted, rtol=0, atol=1e-5)
    assert [list(row) for row in best["results"]] == [["index", "relevance_score"]]
    assert whole["usage"]["prompt_tokens"] == sum(len(pair.ids) for pair in pairs)


def test_pairs_are_scored(url: str) -> None:
    """One text with each of several, or as many pairs; the same as in a ranking, or as the model says it."""
    body = {"model": RANKER, "text_1": "cat", "text_2": ["the cat", "other"]}
    scores = [row["score"] for row in httpx.post(f"{url}/v1/score", json=body).json()["data"]]
    pairs = httpx.post(f"{url}/v1/score", json=body | {"text_1": ["cat", "cat"], "use_activation": False}).json()
    raw = [row["score"] for row in pairs["data"]]

    np.testing.assert_allclose(scores, [1 / (1 + math.exp(-score)) for score in raw], rtol=0, atol=1e-6)
    uneven = httpx.post(f"{url}/v1/score", json=body | {"text_1": ["a", "b", "c"]})
    assert (uneven.status_code, uneven.json()["error"]["param"]) == (400, "text_2")


@pytest.mark.parametrize(
    ("path", "body", "words"),
    [
        ("chat/completions", {"model": BERT, "messages": [{"role": "user", "content": "x"}]}, "makes embeddings"),
        ("completions", {"model": RANKER, "prompt": "x"}, "scores pairs of texts"),
        ("embeddings", {"model": RANKER, "input": "x"}, "scores pairs of texts"),
        ("rerank", {"model": BERT, "query": "x", "documents": ["x"]}, "makes embeddings"),
        ("score", {"model": BERT, "text_1": "x", "text_2": "x"}, "makes embeddings"),
    ],
)
def test_a_model_of_another_kind_is_refused_by_name(url: str, path: str, body: dict[str, Any], words: str) -> None:
    """And the answer says what it is for."""
    answer = httpx.post(f"{url}/v1/{path}", json=body)

    assert (answer.status_code, answer.json()["error"]["code"]) == (400, "unsupported_model")
    assert repr(body["model"]) in answer.json()["error"]["message"]
    assert words in answer.json()["error"]["message"]


def test_what_models_are_for_is_told(urls: tuple[str, str, Path]) -> None:
    """By the neuron and by the gateway, with a whole context of input."""
    neuron, gateway, _ = urls
    told = {one["id"]: one for one in httpx.get(f"{neuron}/models").json()}
    listed = {one["id"]: one for one in httpx.get(f"{gateway}/v1/models").json()["data"]}

    assert [told[name]["capabilities"] for name in (BERT, RANKER)] == [["embeddings"], ["rerank", "score"]]
    assert [listed[name]["capabilities"] for name in (BERT, RANKER)] == [["embeddings"], ["rerank", "score"]]
    assert told[BERT]["limit"] == {"context": 64, "input": 64, "output": 0}
    assert told[BERT]["kv_dtype"]["chosen"] == "none"
    assert httpx.get(f"{neuron}/models/{BERT}/capabilities").json() == {"capabilities": ["embeddings"]}


def test_tokens_are_counted(urls: tuple[str, str, Path]) -> None:
    """In the metrics of the neuron: requests that ended well, and the tokens of their texts."""

    def counted() -> dict[str, float]:
        lines = httpx.get(f"{urls[0]}/metrics").text.splitlines()
        pairs = [line.rsplit(" ", 1) for line in lines if RANKER in line]
        return {name: float(value) for name, value in pairs}

    before = counted()
    used = httpx.post(f"{urls[1]}/v1/score", json={"model": RANKER, "text_1": "cat", "text_2": "the"}).json()["usage"]
    after = counted()
    grown = {name: value - before.get(name, 0) for name, value in after.items()}

    assert grown[f'neuron_prompt_tokens_total{{model="{RANKER}"}}'] == used["prompt_tokens"]
    assert grown[f'neuron_requests_total{{model="{RANKER}",outcome="ok"}}'] == 1
    assert after[f'neuron_engine_steps_total{{model="{RANKER}"}}'] > 0


def test_ollama_s_package_embeds(urls: tuple[str, str, Path]) -> None:
    """By both of its calls, through the gateway; what is too long is cut, unless it says otherwise."""
    long = "a" * 100
    expected = plain(urls[2] / "bert", [tokenizer().encode("the cat").ids, [*tokenizer().encode(long).ids[:63], 3]])
    client = ollama.Client(urls[1])
    with contextlib.closing(client._client):  # the package has no other way to end it
        found, old, loaded = (
            client.embed(BERT, ["the cat", long]),
            client.embeddings(BERT, "the cat"),
            client.embed(BERT, ""),
        )
        able = client.show(BERT).capabilities
        with pytest.raises(ollama.ResponseError, match="maximum context length is 64 tokens"):
            client.embed(BERT, long, truncate=False)

    np.testing.assert_allclose(found.embeddings, expected, rtol=0, atol=1e-5)
    np.testing.assert_allclose(old.embedding, expected[0], rtol=0, atol=1e-5)
    assert found.prompt_eval_count == 4 + 64
    assert list(loaded.embeddings) == []
    assert able == ["embedding"]
