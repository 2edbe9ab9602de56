"""How requests for embeddings end that do not go well: engines that die under them, clients that leave; with the double."""

import asyncio
import json
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

import httpx
import pytest

from neuron_jax.daemon.lifecycle import Lifecycle
from neuron_jax.workers.supervisor import RestartPolicy
from tests.fakes.live_neuron import MODEL, config_for, running
from tests.fakes.tiny_bert import SCORES, VOCAB, write_tiny_bert
from tests.fakes.tiny_model import write_tiny_model
from tests.fakes.waiting import until

QUICK = RestartPolicy(first_delay=0.01)
BODY = {"model": MODEL, "input": ["the cat", "a"]}


def with_double(
    tmp_path: Path,
    use: Callable[[httpx.AsyncClient, Lifecycle], Awaitable[Any]],
    write: Callable[[Path], Path] = write_tiny_bert,
    **script: Any,
) -> None:
    """`use` on a neuron whose model of embeddings has a double for its engine."""
    folder = write(tmp_path / "model")
    (folder / "double.json").write_text(json.dumps(script))
    config = config_for(folder, tmp_path / "cache")

    async def run() -> None:
        async with running(config, QUICK) as (url, lifecycle), httpx.AsyncClient(base_url=url, timeout=20) as http:
            await lifecycle.load(config.models[0])
            await use(http, lifecycle)

    asyncio.run(run())


def test_the_next_engine_answers_where_one_dies(tmp_path: Path) -> None:
    """All texts are asked for again; nobody has seen anything of the first answer."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        answer = await http.post("/v1/embeddings", json=BODY)

        assert answer.status_code == 200, answer.text
        assert [row["embedding"] for row in answer.json()["data"]] == [[4.0, 2.0], [3.0, 2.0]]
        assert lifecycle.residents[0].status.restarts == 1

    with_double(tmp_path, use, embedding_dies=1)


def test_a_request_that_ends_two_engines_is_not_tried_again(tmp_path: Path) -> None:
    """And says so, so that no gateway sends it to a third."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        answer = await http.post("/v1/embeddings", json=BODY)

        assert answer.status_code == 503
        assert answer.json()["error"]["engine_died"] is True
        assert lifecycle.residents[0].admission.in_flight == 0

    with_double(tmp_path, use, embedding_dies=9)


def test_a_client_that_leaves_gives_its_place_back(tmp_path: Path) -> None:
    """Its texts are forgotten by the engine; unloading waits for nothing of it."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        (resident,) = lifecycle.residents
        asking = asyncio.create_task(http.post("/v1/embeddings", json=BODY))
        await until(lambda: resident.load.running == 1)
        asking.cancel()
        await until(lambda: resident.load.running == 0)

        assert (resident.admission.in_flight, resident.client and resident.client.open) == (0, 0)
        async with asyncio.timeout(5):
            await resident.unload(60)

    with_double(tmp_path, use, embedding_stalls=True)


ASKING = (
    "<|system|>{{ messages | selectattr('role', 'eq', 'system') | map(attribute='content') | first }}"
    "<|user|>{{ messages | selectattr('role', 'eq', 'query') | map(attribute='content') | first }}/"
    "{{ messages | selectattr('role', 'eq', 'document') | map(attribute='content') | first }}<|assistant|>"
)
PARTS = ASKING.replace(" | map(attribute='content') | first }}", " | first).content[0].text }}").replace(
    "{{ messages", "{{ (messages"
)


def _reranker(folder: Path, template: str) -> Path:
    """A decoder that scores, as sentence-transformers writes one: an instruction, two roles, the tokens of its verdict."""
    write_tiny_model(folder)
    kinds = (
        ("base.modules.transformer.Transformer", ""),
        ("cross_encoder.modules.logit_score.LogitScore", "1_LogitScore"),
    )
    listed = [
        {"idx": at, "path": path, "type": f"sentence_transformers.{kind}"} for at, (kind, path) in enumerate(kinds)
    ]
    (folder / "modules.json").write_text(json.dumps(listed))
    (folder / "1_LogitScore").mkdir()
    (folder / "1_LogitScore" / "config.json").write_text(json.dumps({"true_token_id": 7, "false_token_id": 8}))
    said = {"prompts": {"web": "Judge!"}, "default_prompt_name": "web"}
    (folder / "config_sentence_transformers.json").write_text(json.dumps(said))
    (folder / "chat_template.jinja").write_text(template)
    return folder


@pytest.mark.parametrize("template", [ASKING, PARTS], ids=["texts", "parts"])
def test_a_decoder_is_asked_for_its_score_by_its_own_template(tmp_path: Path, template: str) -> None:
    """The double says how many tokens it got: three of the template, each byte of the rest. A special token's name in a
    document is plain text, and what stands around it is not."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        documents = ["cats", "<|end|>"]
        body = {"model": MODEL, "text_1": "who?", "text_2": documents, "use_activation": False}
        answer = await http.post("/v1/score", json=body)
        ranked = await http.post("/v1/rerank", json={"model": MODEL, "query": "who?", "documents": documents})

        assert answer.status_code == 200, answer.text
        assert [row["score"] for row in answer.json()["data"]] == [
            3 + len(f"Judge!who?/{document}") for document in documents
        ]
        assert [row["index"] for row in ranked.json()["results"]] == [1, 0]

    with_double(tmp_path, use, lambda folder: _reranker(folder, template))


def test_a_chat_template_without_the_roles_of_a_pair_is_refused(tmp_path: Path) -> None:
    """Nothing is scored by a prompt that the model was not made for."""

    async def use(http: httpx.AsyncClient, lifecycle: Lifecycle) -> None:
        answer = await http.post("/v1/score", json={"model": MODEL, "text_1": "a", "text_2": "b"})

        assert answer.status_code == 422
        assert "no place for the role query or document" in answer.json()["error"]["message"]

    with_double(tmp_path, use, lambda folder: _reranker(folder, "{{ bos_token }}{{ messages | length }}"))


@pytest.mark.parametrize(("scores", "param"), [(False, "input"), (True, "documents")])
def test_a_token_that_the_model_has_no_place_for_is_refused(tmp_path: Path, scores: bool, param: str) -> None:
    """The tokenizer knows more tokens than the model: `cat` is the last of them."""
    few = {**(SCORES if scores else {}), "vocab_size": len(VOCAB) - 1}

    async def use(http: httpx.AsyncClient, _: Lifecycle) -> None:
        path, body = (
            ("/v1/rerank", {"query": "a", "documents": ["cat"]}) if scores else ("/v1/embeddings", {"input": "cat"})
        )
        refused = await http.post(path, json={"model": MODEL, **body})

        assert refused.status_code == 400, refused.text
        assert refused.json()["error"]["param"] == param
        assert f"token {len(VOCAB) - 1} is outside the vocabulary of {len(VOCAB) - 1} tokens" in refused.text

    with_double(tmp_path, use, lambda folder: write_tiny_bert(folder, **few))
