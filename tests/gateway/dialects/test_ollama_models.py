"""Models as Ollama's clients read them: how large, how much they hold, and what of that nobody knows."""

from typing import Any

import msgspec
import pytest

from cortex_gateway.dialects.ollama.models import FOREVER, running, shown, tags

ENTRY: dict[str, Any] = {"id": "org/m", "created_at": "2026-01-01T00:00:00Z", "loaded": True}


def place(megabytes: int | None) -> dict[str, Any]:
    return {"vram_estimate_mb": megabytes}


@pytest.mark.parametrize(
    ("places", "size"),
    [([], 0), ([place(None)], 0), ([place(3)], 3 << 20), ([place(2), place(None), place(3)], 3 << 20)],
)
def test_a_model_is_as_large_as_where_it_takes_most(places: list[dict[str, Any]], size: int) -> None:
    """0 where nobody knows."""
    entry = {**ENTRY, "locations": places}

    assert msgspec.json.decode(tags([entry]))["models"][0]["size"] == size
    assert msgspec.json.decode(running([entry]))["models"][0]["size_vram"] == size


@pytest.mark.parametrize(("limit", "held"), [({}, 0), ({"limit": {"context": 512}}, 512)])
def test_a_model_holds_as_many_tokens_as_are_known(limit: dict[str, Any], held: int) -> None:
    (one,) = msgspec.json.decode(running([{**ENTRY, **limit}]))["models"]
    info = msgspec.json.decode(shown([{**ENTRY, **limit}]))["model_info"]

    assert (one["context_length"], one["expires_at"]) == (held, FOREVER)
    assert info.get("cortex.context_length", 0) == held


def test_of_what_runs_each_model_is_told_once() -> None:
    """By no alias, and none that is not loaded."""
    entries = [ENTRY, {**ENTRY, "id": "short", "alias_of": "org/m"}, {**ENTRY, "id": "away", "loaded": False}]

    assert [one["name"] for one in msgspec.json.decode(running(entries))["models"]] == ["org/m:latest"]
