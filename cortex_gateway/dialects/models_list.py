"""The list of models in both dialects' shapes at once; knows the fields clients look for, not where models are."""

from collections.abc import Mapping, Sequence
from typing import Any

Entry = dict[str, Any]


def entry(
    name: str,
    *,
    created: int,
    created_at: str,
    limit: Mapping[str, int],
    details: Mapping[str, Any],
) -> Entry:
    """One model. `created` (seconds since 1970) and `created_at` (RFC 3339) are the same moment.

    `limit` holds what is known of context, input and output, in tokens; an unknown one is absent everywhere, never 0.
    `details` are this fleet's own fields: loaded, locations, capabilities …
    """
    both = {"id": name, "object": "model", "type": "model", "display_name": name, "owned_by": "cortex"}
    return {**both, "created": created, "created_at": created_at, **details, **_spellings(limit)}


def _spellings(limit: Mapping[str, int]) -> Entry:
    """Every name under which some client looks for the context length."""
    context, output = limit.get("context"), limit.get("output")
    fields: Entry = {"limit": dict(limit)} if limit else {}
    if context is not None:
        same = ("max_model_len", "context_length", "max_context_length", "context_window")
        fields.update(dict.fromkeys(same, context), meta={"n_ctx": context})
    if context is not None or "input" in limit:
        fields["max_input_tokens"] = limit.get("input", context)
    if output is not None:
        fields["max_output_tokens"] = output
    return fields


def listing(entries: Sequence[Entry]) -> Entry:
    """All of them: one page, whatever page size was asked for."""
    first, last = (entries[0]["id"], entries[-1]["id"]) if entries else (None, None)
    return {"object": "list", "data": list(entries), "has_more": False, "first_id": first, "last_id": last}
