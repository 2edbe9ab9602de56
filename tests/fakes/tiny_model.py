"""A model folder of some kilobytes with a real byte-level tokenizer and a chat template, for the engine double.

Token ids below 256 are bytes; the special tokens follow.
"""

import json
from pathlib import Path
from typing import Any

from tokenizers import AddedToken, Tokenizer, decoders, models, pre_tokenizers

END, USER, ASSISTANT, SYSTEM, TOOL = range(256, 261)
SPECIALS = ("<|end|>", "<|user|>", "<|assistant|>", "<|system|>", "<|tool|>")
TOOLS_PART = "{%- if tools %}<|tool|>Call as <tool_call>{}</tool_call>: {{ tools | tojson }}<|end|>{% endif %}"
MESSAGES_PART = (
    "{%- for m in messages %}"
    "{%- if m.content == 'refuse to render' %}{{ raise_exception('this template refuses') }}{% endif %}"
    "{{- '<|' + m.role + '|>' }}{{ m.content or '' }}<|end|>"
    "{%- endfor %}"
    "{%- if add_generation_prompt %}<|assistant|>{% endif %}"
)
THINKING_PART = "{%- if add_generation_prompt and enable_thinking %}<think>{% endif %}{# </think> #}"


def byte_alphabet() -> list[str]:
    """The printable character that a byte-level tokenizer writes for each byte value (the GPT-2 table)."""
    plain = [*range(33, 127), *range(161, 173), *range(174, 256)]
    extra = iter(range(256, 512))
    return [chr(byte) if byte in plain else chr(next(extra)) for byte in range(256)]


def tokenizer_json() -> str:
    """A tokenizer whose ids are bytes."""
    vocab = {letter: byte for byte, letter in enumerate(byte_alphabet())}
    tokenizer = Tokenizer(models.BPE(vocab=vocab, merges=[]))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken(text, special=True, normalized=False) for text in SPECIALS])
    return tokenizer.to_str()


def one_tensor() -> bytes:
    """A safetensors file with one tensor: there must be weights, and the double does not read them."""
    header = {"model.norm.weight": {"dtype": "F32", "shape": [8], "data_offsets": [0, 32]}}
    text = json.dumps(header).encode()
    return len(text).to_bytes(8, "little") + text + bytes(32)


def write_tiny_model(
    folder: Path, *, tools: bool = True, thinking: bool = False, context: int = 4096, **script: Any
) -> Path:
    """Writes config.json, weights, the tokenizer and, when `script` says something, double.json. Returns `folder`."""
    folder.mkdir(parents=True, exist_ok=True)
    config = {
        "architectures": ["LlamaForCausalLM"],
        "model_type": "llama",
        "hidden_size": 8,
        "intermediate_size": 16,
        "num_hidden_layers": 1,
        "num_attention_heads": 2,
        "num_key_value_heads": 1,
        "vocab_size": 256 + len(SPECIALS),
        "max_position_embeddings": context,
        "rms_norm_eps": 1e-5,
        "rope_theta": 10000.0,
        "tie_word_embeddings": True,
        "eos_token_id": END,
        "torch_dtype": "float32",
    }
    template = (TOOLS_PART if tools else "") + MESSAGES_PART + (THINKING_PART if thinking else "")
    (folder / "config.json").write_text(json.dumps(config))
    (folder / "tokenizer.json").write_text(tokenizer_json())
    (folder / "tokenizer_config.json").write_text(json.dumps({"eos_token": "<|end|>", "chat_template": template}))
    (folder / "model.safetensors").write_bytes(one_tensor())
    if script:
        (folder / "double.json").write_text(json.dumps(script))
    return folder
