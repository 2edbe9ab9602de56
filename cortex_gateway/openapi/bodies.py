"""What bodies the routes read, as JSON Schema: the fields that do something, with their bounds. Pure data.

It is what a client should send, not all that is taken: unknown fields are ignored, and docs/wire.md says what is tolerated.
"""

from typing import Any

Schema = dict[str, Any]


def one_of(*values: str) -> Schema:
    return {"type": "string", "enum": list(values)}


def number(least: float, most: float) -> Schema:
    return {"type": "number", "minimum": least, "maximum": most}


def integer(least: int, most: int | None = None) -> Schema:
    return {"type": "integer", "minimum": least, **({} if most is None else {"maximum": most})}


def array(items: Schema, *, least: int = 0, most: int | None = None) -> Schema:
    return {"type": "array", "items": items, "minItems": least, **({} if most is None else {"maxItems": most})}


def record(required: tuple[str, ...] = (), **fields: Schema) -> Schema:
    return {"type": "object", "properties": fields, **({"required": list(required)} if required else {})}


TEXT: Schema = {"type": "string"}
FLAG: Schema = {"type": "boolean"}
OBJECT: Schema = {"type": "object"}
MODEL: Schema = {"type": "string", "minLength": 1, "description": "an id or alias of GET /v1/models"}
TOKENS = array(integer(0))
TEXTS = array(TEXT, least=1)
PART = record(("type", "text"), type=one_of("text"), text=TEXT)
CONTENT: Schema = {"anyOf": [TEXT, array(PART), {"type": "null"}]}
FUNCTION = record(("name",), name=TEXT, description=TEXT, parameters=OBJECT, strict=FLAG)
CALL = record(
    ("id", "function"), id=TEXT, type=one_of("function"), function=record(("name",), name=TEXT, arguments=TEXT)
)
MESSAGE = record(
    ("role", "content"),
    role=one_of("system", "developer", "user", "assistant", "tool"),
    content=CONTENT,
    reasoning_content=TEXT,
    tool_calls=array(CALL),
    tool_call_id=TEXT,
)
TOOLS = array(record(("type", "function"), type=one_of("function"), function=FUNCTION))
STOP: Schema = {"anyOf": [{**TEXT, "minLength": 1}, array({**TEXT, "minLength": 1}, most=16)]}
FORMAT: Schema = {
    "anyOf": [
        record(("type",), type=one_of("text", "json_object")),
        record(("type", "json_schema"), type=one_of("json_schema"), json_schema=record(("schema",), schema=OBJECT)),
    ]
}
SAMPLING: dict[str, Schema] = {
    "stream": FLAG,
    "stream_options": record(include_usage=FLAG, continuous_usage_stats=FLAG),
    "max_tokens": integer(1),
    "min_tokens": integer(0),
    "n": integer(1, 16),
    "temperature": number(0, 2),
    "top_p": {"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    "top_k": integer(-1),
    "min_p": number(0, 1),
    "presence_penalty": number(-2, 2),
    "frequency_penalty": number(-2, 2),
    "repetition_penalty": {"type": "number", "exclusiveMinimum": 0, "maximum": 2},
    "logit_bias": {
        "type": "object",
        "additionalProperties": number(-100, 100),
        "propertyNames": {"pattern": "^[0-9]{1,10}$"},
    },
    "seed": {"type": "integer"},
    "stop": STOP,
    "stop_token_ids": TOKENS,
    "ignore_eos": FLAG,
    "prompt_logprobs": integer(0, 20),
    "return_progress": FLAG,
    "response_format": FORMAT,
    "guided_regex": TEXT,
    "guided_choice": TEXTS,
    "guided_grammar": TEXT,
}
CHAT = record(
    ("model", "messages"),
    model=MODEL,
    messages=array(MESSAGE, least=1),
    max_completion_tokens=integer(1),
    tools=TOOLS,
    tool_choice={
        "anyOf": [
            one_of("auto", "none", "required"),
            record(("type", "function"), type=one_of("function"), function=record(("name",), name=TEXT)),
        ]
    },
    parallel_tool_calls=FLAG,
    logprobs=FLAG,
    top_logprobs=integer(0, 20),
    reasoning_effort=TEXT,
    chat_template_kwargs=OBJECT,
    **SAMPLING,
)
COMPLETIONS = record(
    ("model", "prompt"),
    model=MODEL,
    prompt={"anyOf": [TEXT, TEXTS, TOKENS, array(TOKENS, least=1)]},
    suffix=TEXT,
    echo=FLAG,
    best_of=integer(1, 16),
    logprobs=integer(0, 20),
    **SAMPLING,
)
EMBEDDINGS = record(
    ("model", "input"),
    model=MODEL,
    input={"anyOf": [TEXT, array(TEXT, least=1, most=2048), TOKENS, array(TOKENS, least=1, most=2048)]},
    encoding_format=one_of("float", "base64"),
    dimensions=integer(1),
)
RERANK = record(
    ("model", "query", "documents"), model=MODEL, query=TEXT, documents=TEXTS, top_n=integer(1), return_documents=FLAG
)
SCORE = record(
    ("model", "text_1", "text_2"),
    model=MODEL,
    text_1={"anyOf": [TEXT, TEXTS]},
    text_2={"anyOf": [TEXT, TEXTS]},
)
TOKENIZE: Schema = {
    "anyOf": [
        record(("model", "prompt"), model=MODEL, prompt=TEXT, add_special_tokens=FLAG, return_token_strs=FLAG),
        record(
            ("model", "messages"), model=MODEL, messages=array(MESSAGE, least=1), tools=TOOLS, return_token_strs=FLAG
        ),
    ]
}
DETOKENIZE = record(("model", "tokens"), model=MODEL, tokens=TOKENS)

TURN = record(
    ("role", "content"),
    role=one_of("user", "assistant"),
    content={"anyOf": [TEXT, array(PART, least=1)]},
)
MESSAGES_TOOL = record(("name", "input_schema"), name=TEXT, description=TEXT, input_schema=OBJECT)
COUNTED = {
    "model": MODEL,
    "messages": array(TURN, least=1),
    "system": {"anyOf": [TEXT, array(PART)]},
    "tools": array(MESSAGES_TOOL),
    "tool_choice": record(("type",), type=one_of("auto", "any", "tool", "none"), name=TEXT),
    "thinking": record(("type",), type=one_of("enabled", "disabled", "adaptive"), budget_tokens=integer(1)),
}
MESSAGES = record(
    ("model", "messages", "max_tokens"),
    **COUNTED,
    max_tokens=integer(1),
    stream=FLAG,
    stop_sequences=array(TEXT),
    temperature=number(0, 1),
    top_p=number(0, 1),
    top_k=integer(0),
)
COUNT_TOKENS = record(("model", "messages"), **COUNTED)

ITEM = record(("role", "content"), role=one_of("user", "assistant", "system", "developer"), content=TEXT)
METADATA: Schema = {"type": "object", "additionalProperties": TEXT}
RESPONSES = record(
    ("model", "input"),
    model=MODEL,
    input={"anyOf": [TEXT, array(ITEM, least=1)]},
    instructions=TEXT,
    stream=FLAG,
    store=FLAG,
    background=FLAG,
    previous_response_id=TEXT,
    conversation={"anyOf": [TEXT, record(("id",), id=TEXT)]},
    max_output_tokens=integer(1),
    temperature=number(0, 2),
    top_p={"type": "number", "exclusiveMinimum": 0, "maximum": 1},
    top_logprobs=integer(0, 20),
    include=array(TEXT),
    tools=array(record(("type", "name"), type=one_of("function"), name=TEXT, description=TEXT, parameters=OBJECT)),
    reasoning=record(effort=one_of("none", "minimal", "low", "medium", "high", "xhigh")),
    metadata=METADATA,
)
CONVERSATION = record(items=array(ITEM), metadata=METADATA)
ITEMS = record(("items",), items=array(ITEM))
NOTES = record(("metadata",), metadata=METADATA)

OPTIONS = record(
    num_predict=integer(-2),
    temperature=number(0, 2),
    top_p=number(0, 1),
    top_k=integer(-1),
    seed=integer(-1),
    stop=array(TEXT),
)
ASKED_AS_OLLAMA_DOES = {
    "model": MODEL,
    "stream": FLAG,
    "think": {"anyOf": [FLAG, one_of("low", "medium", "high", "max")]},
    "format": {"anyOf": [one_of("json"), OBJECT]},
    "options": OPTIONS,
    "logprobs": FLAG,
    "top_logprobs": integer(0, 20),
}
OLLAMA_MESSAGE = record(("role", "content"), role=one_of("system", "user", "assistant", "tool"), content=TEXT)
OLLAMA_CHAT = record(("model",), **ASKED_AS_OLLAMA_DOES, messages=array(OLLAMA_MESSAGE), tools=TOOLS)
OLLAMA_GENERATE = record(("model",), **ASKED_AS_OLLAMA_DOES, prompt=TEXT, system=TEXT, suffix=TEXT, raw=FLAG)
OLLAMA_EMBED = record(
    ("model",), model=MODEL, input={"anyOf": [TEXT, array(TEXT)]}, truncate=FLAG, dimensions=integer(0)
)
OLLAMA_EMBEDDINGS = record(("model",), model=MODEL, prompt=TEXT)
SHOW = record(("model",), model=MODEL)

NODE: Schema = {"type": "string", "description": "only this node"}
LOAD_OPTIONS = {
    "model": MODEL,
    "node": NODE,
    "quant": TEXT,
    "kv_dtype": TEXT,
    "deterministic": FLAG,
    "tensor_parallel": integer(1),
    "expert_parallel": integer(1),
    "max_context": integer(1),
    "speculate": integer(-1),
    "hosts": array(TEXT),
    "ranks": one_of("host", "device"),
    "adapters": array(TEXT),
}
LOAD = record(("model",), **LOAD_OPTIONS, reload=FLAG)
PLAN = record(("model",), **LOAD_OPTIONS)
UNLOAD = record(("model",), model=MODEL, node=NODE)
RELOAD = record(("model",), model=MODEL, node=NODE, source=TEXT, in_place=FLAG)

BODIES: dict[str, Schema] = {
    "/v1/chat/completions": CHAT,
    "/v1/completions": COMPLETIONS,
    "/v1/embeddings": EMBEDDINGS,
    "/v1/rerank": RERANK,
    "/v1/score": SCORE,
    "/tokenize": TOKENIZE,
    "/detokenize": DETOKENIZE,
    "/v1/messages": MESSAGES,
    "/v1/messages/count_tokens": COUNT_TOKENS,
    "/v1/responses": RESPONSES,
    "/v1/responses/compact": RESPONSES,
    "/v1/responses/input_tokens": RESPONSES,
    "/v1/conversations": CONVERSATION,
    "/v1/conversations/{id}": NOTES,
    "/v1/conversations/{id}/items": ITEMS,
    "/api/chat": OLLAMA_CHAT,
    "/api/generate": OLLAMA_GENERATE,
    "/api/embed": OLLAMA_EMBED,
    "/api/embeddings": OLLAMA_EMBEDDINGS,
    "/api/show": SHOW,
    "/admin/load": LOAD,
    "/admin/plan": PLAN,
    "/admin/reload": RELOAD,
    "/admin/unload": UNLOAD,
}
"""By path: the bodies of all POST routes that read one."""
