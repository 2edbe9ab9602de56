"""What each client must be told, in the form that it reads. Pure: knows formats, no disk and no network.

A file of our own is preferred to a change of the user's, and the user's default model stays what it is.
"""

import json
from collections.abc import Callable, Mapping
from typing import Any

from cortex_gateway.cli.launch.setup import Asked, Member, OwnFile, ServedModel, Setup, SharedFile

NAME = "cortex"
KEY_VARIABLE = "CORTEX_API_KEY"
CLAUDE_LEAST_WINDOW = 100_000


def claude(asked: Asked) -> Setup:
    """Claude Code, by environment alone: every slot of a model is this one, so that none is evicted for a title.

    Source: code.claude.com/docs/en/env-vars and the names in version 2.1.197; tried with 2.1.332.
    CLAUDE_CODE_MAX_CONTEXT_TOKENS is what it compacts by; without it an unknown model has 200,000 or a million tokens. It
    ignores it for ids that begin `claude-`. A CLAUDE_CODE_AUTO_COMPACT_WINDOW of less than 100,000 it takes for 100,000.
    """
    model = asked.model.id
    window = asked.model.context
    compacts = {"CLAUDE_CODE_AUTO_COMPACT_WINDOW": str(window)} if window >= CLAUDE_LEAST_WINDOW else {}
    slots = ("ANTHROPIC_MODEL", *(f"ANTHROPIC_DEFAULT_{kind}_MODEL" for kind in ("OPUS", "SONNET", "HAIKU", "FABLE")))
    environment = {
        "ANTHROPIC_BASE_URL": asked.url,
        "ANTHROPIC_AUTH_TOKEN": asked.token,
        "ANTHROPIC_API_KEY": "",
        **dict.fromkeys((*slots, "CLAUDE_CODE_SUBAGENT_MODEL"), model),
        "CLAUDE_CODE_MAX_CONTEXT_TOKENS": str(asked.model.context),
        **compacts,
        "CLAUDE_CODE_MAX_OUTPUT_TOKENS": str(min(asked.model.answer, 32_000)),
        "CLAUDE_CODE_ATTRIBUTION_HEADER": "0",
        "CLAUDE_CODE_TOTAL_TOKENS_REMINDER": "off",
        "DISABLE_ERROR_REPORTING": "1",
        "DISABLE_TELEMETRY": "1",
    }
    notes = (
        ("Claude Code ignores the window of a model whose id begins with claude-",) if model[:7] == "claude-" else ()
    )
    return Setup(command=("claude",), environment=environment, notes=notes)


def codex(asked: Asked) -> Setup:
    """Codex, by a profile with a provider and a catalogue of models; config.toml stays untouched.

    Source: developers.openai.com/codex/config-advanced: since 0.134 a profile is a file of its own beside config.toml. The
    catalogue's fields are `ModelInfo` in codex-rs/protocol/src/openai_models.rs; tried with 0.171.0.
    """
    catalogue = f"{asked.codex}/{NAME}-models.json"
    provider = {"name": NAME, "base_url": asked.v1, "wire_api": "responses"}
    if asked.key:
        provider["env_key"] = KEY_VARIABLE
    top = {"model": asked.model.id, "model_provider": NAME, "model_catalog_json": catalogue}
    profile = f"{_toml(top)}\n[model_providers.{NAME}]\n{_toml(provider)}"
    models = [_codex_model(model, place) for place, model in enumerate(asked.models)]
    return Setup(
        command=("codex", "--profile", NAME),
        environment={KEY_VARIABLE: asked.token} if asked.key else {},
        files=(OwnFile(f"{asked.codex}/{NAME}.config.toml", profile), OwnFile(catalogue, _json({"models": models}))),
        notes=("the profile needs Codex 0.134 or newer",),
    )


def _codex_model(model: ServedModel, place: int) -> dict[str, Any]:
    return {
        "slug": model.id,
        "display_name": model.id,
        "description": "served by cortex",
        "supported_reasoning_levels": _efforts(model),
        "shell_type": "shell_command",
        "visibility": "list",
        "supported_in_api": True,
        "priority": place,
        "base_instructions": CODEX_INSTRUCTIONS,
        "supports_reasoning_summaries": model.reasoning,
        "support_verbosity": False,
        "truncation_policy": {"mode": "tokens", "limit": max(1, min(10_000, model.context // 8))},
        "supports_parallel_tool_calls": model.tools,
        "context_window": model.context,
        "experimental_supported_tools": [],
        "input_modalities": ["text", "image"] if model.images else ["text"],
    }


def _efforts(model: ServedModel) -> list[dict[str, str]]:
    return [{"effort": name, "description": f"{name} effort"} for name in ("low", "medium", "high") if model.reasoning]


CODEX_INSTRUCTIONS = (
    "You are a coding agent that works in a terminal on the user's machine. Use the tools to read, change and run what is "
    "there. Go on until the task is done, then say briefly what you did. Change nothing that was not asked for."
)
"""A catalogue must bring its own. Short, because a small window holds it in every turn."""


def opencode(asked: Asked) -> Setup:
    """opencode, by a provider in its global configuration; without `limit` it would never compact.

    Source: opencode.ai/docs/config and /docs/providers; tried with 1.18.33. `{env:NAME}` is its own notation.
    """
    provider = {
        "npm": "@ai-sdk/openai-compatible",
        "name": NAME,
        "options": {"baseURL": asked.v1, "apiKey": f"{{env:{KEY_VARIABLE}}}"},
        "models": {model.id: _opencode_model(model) for model in asked.models},
    }
    members = (
        Member(("$schema",), "https://opencode.ai/config.json", yields=True),
        Member(("provider", NAME), provider),
    )
    folder = f"{asked.config}/opencode"
    return Setup(
        command=("opencode", "--model", f"{NAME}/{asked.model.id}"),
        environment={KEY_VARIABLE: asked.token},
        files=(SharedFile((f"{folder}/opencode.json", f"{folder}/opencode.jsonc"), members),),
    )


def _opencode_model(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.id,
        "limit": {"context": model.context, "output": model.answer},
        "tool_call": model.tools,
        "reasoning": model.reasoning,
        "attachment": model.images,
    }


def zed(asked: Asked) -> Setup:
    """Zed, by a provider in settings.json; it takes the key from the variable named after the provider.

    Source: `OpenAiCompatibleAvailableModel` in zed-industries/zed, crates/settings_content/src/language_model.rs (2026-11);
    zed.dev/docs/ai/llm-providers. `max_tokens` is the window, `prompt_cache_key` names the thread, by which it goes back to
    its replica, and with `interleaved_reasoning` thoughts come back as `reasoning_content`.
    """
    models = [_zed_model(model) for model in asked.models]
    provider = {"api_url": asked.v1, "available_models": models}
    members = (
        Member(("language_models", "openai_compatible", NAME), provider),
        Member(("agent", "default_model"), {"provider": NAME, "model": asked.model.id}, yields=True),
    )
    return Setup(
        command=("zed",),
        environment={KEY_VARIABLE: asked.token},
        files=(SharedFile((f"{asked.config}/zed/settings.json",), members),),
        notes=(f"Zed shows the provider where ${KEY_VARIABLE} is set: start it from here, or set it for the desktop",),
    )


def _zed_model(model: ServedModel) -> dict[str, Any]:
    return {
        "name": model.id,
        "display_name": model.id,
        "max_tokens": model.context,
        "max_output_tokens": model.answer,
        "capabilities": {
            "tools": model.tools,
            "images": model.images,
            "parallel_tool_calls": model.tools,
            "prompt_cache_key": True,
            "interleaved_reasoning": model.reasoning,
        },
    }


def cline(asked: Asked) -> Setup:
    """Cline, by its provider for what is compatible; the CLI and the editors share these files.

    Source: cline/cline, sdk/packages/core/src/services: storage/provider-settings-manager.ts and
    providers/local-provider-registry.ts; tried with 3.0.65, whose tasks do not find a provider of another name. It has no
    notation for a variable, so the file holds the key.
    """
    folder, provider = f"{asked.home}/.cline/data/settings", "openai-compatible"
    settings = {"provider": provider, "apiKey": asked.token, "model": asked.model.id, "baseUrl": asked.v1}
    entry = {"settings": settings, "updatedAt": "2026-01-01T00:00:00.000Z", "tokenSource": "manual"}
    models = {model.id: _cline_model(model) for model in asked.models}
    version = Member(("version",), 1, yields=True)
    return Setup(
        command=("cline", "--provider", provider, "--model", asked.model.id),
        files=(
            SharedFile((f"{folder}/providers.json",), (version, Member(("providers", provider), entry, taken=True))),
            SharedFile(
                (f"{folder}/models.json",), (version, Member(("providers", provider, "models"), models, taken=True))
            ),
        ),
    )


def _cline_model(model: ServedModel) -> dict[str, Any]:
    can = {"streaming": True, "tools": model.tools, "reasoning": model.reasoning, "images": model.images}
    return {
        "id": model.id,
        "name": model.id,
        "contextWindow": model.context,
        "maxTokens": model.answer,
        "capabilities": [name for name, does in can.items() if does],
    }


def continue_(asked: Asked) -> Setup:
    """Continue, by an assistant of our own beside config.yaml, which its editors list and `cn` takes as its configuration.

    Source: docs.continue.dev/reference (config.yaml, schema v1); continuedev/continue, core/config/ConfigHandler.ts reads
    ~/.continue/assistants; tried with cn 1.5.47. Its `secrets` are not the shell's variables, so the file holds the key.
    """
    path = f"{asked.home}/.continue/assistants/{NAME}.yaml"
    first = [asked.model, *(model for model in asked.models if model != asked.model)]
    text = f"name: {NAME}\nversion: 0.0.1\nschema: v1\nmodels:\n" + "".join(
        _continue_model(asked, one) for one in first
    )
    return Setup(command=("cn", "--config", path), files=(OwnFile(path, text),))


def _continue_model(asked: Asked, model: ServedModel) -> str:
    features = [name for name, does in (("tool_use", model.tools), ("image_input", model.images)) if does]
    return (
        f"  - name: {_string(model.id)}\n"
        f"    provider: openai\n"
        f"    model: {_string(model.id)}\n"
        f"    apiBase: {_string(asked.v1)}\n"
        f"    apiKey: {_string(asked.token)}\n"
        f"    roles: [chat, edit, apply]\n"
        f"    capabilities: [{', '.join(features)}]\n"
        f"    defaultCompletionOptions:\n"
        f"      contextLength: {model.context}\n"
        f"      maxTokens: {model.answer}\n"
    )


def aider(asked: Asked) -> Setup:
    """aider, by environment, and a file of ours that tells it the windows; tried with 0.86.2.

    Source: aider.chat/docs/llms/openai-compat.html, /docs/config/options.html (every option has a variable) and
    /docs/config/adv-model-settings.html (the metadata's form; its names carry the provider in front).
    """
    path = f"{asked.config}/{NAME}/aider-models.json"
    named = f"openai/{asked.model.id}"
    environment = {
        "OPENAI_API_BASE": asked.v1,
        "OPENAI_API_KEY": asked.token,
        "AIDER_MODEL": named,
        "AIDER_WEAK_MODEL": named,
        "AIDER_MODEL_METADATA_FILE": path,
    }
    metadata = {f"openai/{model.id}": _aider_model(model) for model in asked.models}
    return Setup(command=("aider",), environment=environment, files=(OwnFile(path, _json(metadata)),))


def _aider_model(model: ServedModel) -> dict[str, Any]:
    return {
        "max_tokens": model.answer,
        "max_input_tokens": model.context,
        "max_output_tokens": model.answer,
        "input_cost_per_token": 0,
        "output_cost_per_token": 0,
        "litellm_provider": "openai",
        "mode": "chat",
    }


def open_webui(asked: Asked) -> Setup:
    """Open WebUI, by environment alone. Its database outlives a variable, so it is asked to read only these this time.

    Source: docs.openwebui.com/getting-started/env-configuration (ENABLE_PERSISTENT_CONFIG since 0.5), and config.py of
    0.12.4, which was read and not run.
    """
    environment = {
        "OPENAI_API_BASE_URLS": asked.v1,
        "OPENAI_API_KEYS": asked.token,
        "DEFAULT_MODELS": asked.model.id,
        "ENABLE_PERSISTENT_CONFIG": "False",
    }
    return Setup(
        command=("open-webui", "serve"),
        environment=environment,
        notes=("settings made in its pages are not read in this run, and stay what they are",),
    )


CLIENTS: Mapping[str, Callable[[Asked], Setup]] = {
    "claude": claude,
    "codex": codex,
    "opencode": opencode,
    "zed": zed,
    "cline": cline,
    "continue": continue_,
    "aider": aider,
    "open-webui": open_webui,
}


def _json(value: Any) -> str:
    return json.dumps(value, indent=2, ensure_ascii=False) + "\n"


def _string(text: str) -> str:
    """A string of JSON, which is one of TOML and of YAML, too."""
    return json.dumps(text)


def _toml(table: Mapping[str, str]) -> str:
    return "".join(f"{name} = {_string(value)}\n" for name, value in table.items())
