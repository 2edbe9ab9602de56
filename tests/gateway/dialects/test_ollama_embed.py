"""Ollama's /api/embed and /api/embeddings: bodies as a neuron reads them, a neuron's vectors as Ollama's clients do."""

from typing import Any

import msgspec
import pytest

from cortex_gateway.dialects.dialect import AnswerId, Decoded, Ready, Timing
from cortex_gateway.dialects.failure import Failure, RefusedError
from cortex_gateway.dialects.ollama import embed

IDENTITY = AnswerId("r", "0" * 32, timing=lambda: Timing(2.0, 0.5))
VECTORS = (
    b'{"data":[{"embedding":[0.5,-1e-3],"index":0},{"embedding":[1]}],"usage":{"prompt_tokens":9,"total_tokens":9}}'
)


def decoded(read: Any, **body: Any) -> Decoded:
    found = read(msgspec.json.encode({"model": "m", **body}))
    assert isinstance(found, Decoded)
    return found


@pytest.mark.parametrize(
    ("body", "fields"),
    [
        ({"input": "x"}, {"input": ["x"], "truncate_prompt_tokens": -1}),
        ({"input": ["x", ""], "truncate": False}, {"input": ["x", ""]}),
        ({"input": "x", "dimensions": 8}, {"input": ["x"], "truncate_prompt_tokens": -1, "dimensions": 8}),
        ({"input": "x", "options": {"num_ctx": 8}, "keep_alive": 0}, {"input": ["x"], "truncate_prompt_tokens": -1}),
    ],
)
def test_what_a_neuron_is_asked(body: dict[str, Any], fields: dict[str, Any]) -> None:
    """Vectors of length 1, and texts cut unless they must not be."""
    asked = msgspec.json.decode(decoded(embed.embed, **body).body("resolved"))

    assert asked == {"model": "resolved", "encoding_format": "float", "normalize": True, **fields}


def test_the_answer_has_the_neuron_s_own_digits() -> None:
    """With counts and durations in ns; the older route has the first vector alone, as the model makes it."""
    new, old = decoded(embed.embed, input=["a", "b"]), decoded(embed.embeddings, prompt="a")
    answer = new.non_streaming(VECTORS, IDENTITY)

    assert answer.usage is not None
    assert (answer.usage.prompt, answer.usage.completion) == (9, 0)
    assert answer.body == (
        b'{"model":"m","embeddings":[[0.5,-1e-3],[1]],"total_duration":2000000000,"load_duration":500000000,'
        b'"prompt_eval_count":9}'
    )
    assert old.non_streaming(VECTORS, IDENTITY).body == b'{"embedding":[0.5,-1e-3]}'
    assert msgspec.json.decode(old.body("m")) == {
        "model": "m",
        "encoding_format": "float",
        "input": ["a"],
        "truncate_prompt_tokens": -1,
    }
    assert not new.stream


@pytest.mark.parametrize(
    ("read", "body", "answer"),
    [(embed.embed, {"input": ""}, []), (embed.embed, {}, []), (embed.embed, {"input": []}, [])],
)
def test_without_a_text_the_model_is_loaded(read: Any, body: dict[str, Any], answer: list[Any]) -> None:
    """And there are no vectors."""
    found = read(msgspec.json.encode({"model": "m", **body}))

    assert isinstance(found, Ready)
    assert msgspec.json.decode(found.answer(IDENTITY))["embeddings"] == answer


@pytest.mark.parametrize(
    ("read", "body", "param"),
    [
        (embed.embed, {"input": 7}, "input"),
        (embed.embed, {"input": ["x", 7]}, "input.1"),
        (embed.embed, {"input": "x", "truncate": "no"}, "truncate"),
        (embed.embed, {"input": "x", "dimensions": "8"}, "dimensions"),
        (embed.embeddings, {"prompt": ["x"]}, "prompt"),
    ],
)
def test_what_cannot_be_read_is_told_with_its_path(read: Any, body: dict[str, Any], param: str) -> None:
    with pytest.raises(RefusedError) as caught:
        read(msgspec.json.encode({"model": "m", **body}))

    assert caught.value.failure.param == param


def test_an_answer_that_is_none_is_the_neuron_s_fault() -> None:
    """502, whatever it is."""
    for raw in (b"{}", b"[", b'{"data":[{}]}'):
        failure = decoded(embed.embed, input="x").non_streaming(raw, IDENTITY).body

        assert isinstance(failure, Failure)
        assert failure.status == 502
