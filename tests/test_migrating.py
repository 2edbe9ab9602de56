"""docs/migrating.md leaves out nothing that the predecessor's users may have written, and names nothing here that is not."""

import pathlib
import re
from collections.abc import Collection

import pytest
from attrs import fields

from cortex_gateway.cli.moving import theirs
from cortex_gateway.cli.moving.neuron_toml import GONE
from cortex_gateway.config import CortexToml, ModelsToml
from cortex_gateway.metrics import Metrics
from neuron_jax.config import NeuronToml
from tests.test_configuration import settings

TEXT = (pathlib.Path(__file__).parents[1] / "docs/migrating.md").read_text()
ROW = re.compile(r"^\| (`.*?) \| (.*) \|$", re.MULTILINE)
ROWS = [(re.findall(r"`([^`]+)`", old), re.findall(r"`([^`]+)`", ours)) for old, ours in ROW.findall(TEXT)]
THEIRS = {name for old, _ in ROWS for name in old}
METRICS = """
    requests_total request_errors_total cold_starts_total prompt_tokens_total completion_tokens_total
    cached_prompt_tokens_total images_requests_total images_generated_total spend_tokens_total spend_prompt_tokens_total
    spend_completion_tokens_total spend_image_milliunits_total model_rejections_total evictions_total
    request_duration_seconds images_generation_seconds time_to_first_token_seconds tokens_per_second model_in_flight
    model_queue_depth model_max_in_flight model_max_queue_depth model_anon_in_flight model_anon_max_in_flight
    model_tok_s_decode model_tok_s_prefill device_vram_used_mb device_vram_free_mb device_utilization_pct device_temp_c
"""
ROUTES = [
    *("POST /v1/chat/completions", "POST /v1/completions", "POST /v1/responses", "POST /v1/images/generations"),
    *("GET /v1/models", "POST /v1/messages", "GET /health", "GET /", "GET /version", "GET /discovery", "GET /models"),
    *("POST /models/load", "POST /models/unload", "GET /models/{id}/endpoint", "GET /models/{id}/capabilities"),
]


def words(text: str) -> list[str]:
    return text.split()


def keys() -> set[str]:
    """Of the predecessor's files, but for those of its nodes, which became its neurons."""
    found = {key for cls in theirs.FILES.values() for key, _ in settings(cls) if not key.startswith("nodes.")}
    sources = {f"harness.candle.sources.*.{item.name}" for item in fields(theirs.Source)}
    return found - {"harness.candle.sources"} | sources


@pytest.mark.parametrize(
    "names",
    [keys(), [f"harness.candle.{key}" for key in GONE], [f"cortex_{name}" for name in words(METRICS)], ROUTES],
    ids=["keys", "keys that are gone", "metrics", "routes"],
)
def test_all_of_the_predecessors_is_told_of(names: Collection[str]) -> None:
    assert not set(names) - THEIRS


def test_the_keys_that_are_named_instead_are_ours() -> None:
    """As settings of a file, or as variables of one."""
    cortex, neuron = dict(settings(CortexToml)) | dict(settings(ModelsToml)), dict(settings(NeuronToml))
    known = cortex.keys() | neuron.keys()
    variables = {f"NEURON_{key.upper().replace('.', '__')}" for key in neuron}
    ours = {name for _, names in ROWS for name in names}
    sections = {item.name for cls in (CortexToml, ModelsToml, NeuronToml) for item in fields(cls)}

    keys = {name for name in ours if re.fullmatch(r"[a-z_]+(\.[a-z_]+)+", name)}
    assert keys
    assert {key.split(".")[0] for key in keys} <= sections
    assert not keys - known
    assert not {name for name in ours if name.startswith("NEURON_")} - variables


def test_metrics_that_stay_are_there() -> None:
    """What is said to be the same is a series of ours, but for those that are read from the fleet."""
    here = {
        f"{metric.name}_total" if metric.type == "counter" else metric.name for metric in Metrics().registry.collect()
    }
    same = {name for old, _ in ROWS for name in old if name.startswith("cortex_")}
    gone = {name for name in same if re.search("anon|spend|images", name)}

    assert {name for name in same - gone if not re.match("cortex_(model|device)_", name)} <= here
    assert not gone & here
