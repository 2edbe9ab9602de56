"""Encoders against transformers: states of each token, vectors of texts packed among others, scores; for each family."""

import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from models import mapping
from models.encoder.texts import BLOCK, Texts, attend
from models.errors import ModelError
from models.pooling import MODULES, dimensions
from models.registry import build, build_embedder, gguf_embeds, purpose, read
from models.spec import Config
from neuron_jax.daemon.model_text import read_text
from neuron_jax.engine.embedding.line import Call, TextOfRequest
from neuron_jax.engine.embedding.runner import packed
from neuron_jax.engine.embedding.sizes import CallSize, fill
from neuron_jax.weights.checkpoint import open_checkpoint
from neuron_jax.weights.errors import WeightsError
from neuron_jax.workers.embed import reads_whole_texts
from neuron_jax.workers.frames import EngineSpec
from tests.fakes import quick
from tests.fakes.encoder_files import write_encoder_gguf
from tests.fakes.tiny_bert import write_tiny_bert, write_tiny_gguf
from tests.fakes.weight_files import random_tensors, write_safetensors

_BASE: dict[str, Any] = {
    "hidden_size": 36,
    "intermediate_size": 43,
    "num_hidden_layers": 2,
    "num_attention_heads": 6,
    "vocab_size": 67,
    "max_position_embeddings": 64,
}
_ONE = {"id2label": {"0": "LABEL_0"}, "label2id": {"LABEL_0": 0}}
_MODERN = _BASE | {
    "pad_token_id": 0,
    "bos_token_id": 1,
    "cls_token_id": 1,
    "eos_token_id": 2,
    "sep_token_id": 2,
    "local_attention": 8,
}


def _dense(name: str, inputs: int, outputs: int, activation: str, *, bias: bool) -> dict[str, Any]:
    said = {
        "in_features": inputs,
        "out_features": outputs,
        "bias": bias,
        "activation_function": f"torch.nn.{activation}",
    }
    return {"type": "Dense", "path": name, "config": said}


VERDICT = {"type": "LogitScore", "config": {"true_token_id": 61, "false_token_id": 5}}
CASES: dict[str, dict[str, Any]] = {
    "bert": _BASE | {"architectures": ["BertModel"], "model_type": "bert"},
    "bert that scores": _BASE | _ONE | {"architectures": ["BertForSequenceClassification"], "model_type": "bert"},
    "xlm-roberta": _BASE
    | {
        "architectures": ["XLMRobertaModel"],
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "pad_token_id": 1,
        "layer_norm_eps": 1e-5,
        "hidden_act": "relu",
    },
    "xlm-roberta that scores": _BASE
    | _ONE
    | {
        "architectures": ["XLMRobertaForSequenceClassification"],
        "model_type": "xlm-roberta",
        "type_vocab_size": 1,
        "pad_token_id": 1,
    },
    "modernbert": _MODERN | {"architectures": ["ModernBertModel"], "model_type": "modernbert"},
    "modernbert with biases, that scores by the mean": _MODERN
    | _ONE
    | {
        "architectures": ["ModernBertForSequenceClassification"],
        "model_type": "modernbert",
        "num_hidden_layers": 3,
        "global_attn_every_n_layers": 2,
        "global_rope_theta": 5000.0,
        "local_rope_theta": 100.0,
        "norm_bias": True,
        "attention_bias": True,
        "mlp_bias": True,
        "classifier_bias": True,
        "classifier_pooling": "mean",
    },
    "nomic": _BASE
    | {
        "architectures": ["NomicBertModel"],
        "model_type": "nomic_bert",
        "layer_norm_eps": 1e-5,
        "rope_theta": 500.0,
        "type_vocab_size": 2,
    },
    "eurobert": _BASE
    | {
        "architectures": ["EuroBertModel"],
        "model_type": "eurobert",
        "num_key_value_heads": 3,
        "rope_theta": 500.0,
        "rms_norm_eps": 1e-6,
        "pad_token_id": 0,
    },
    "qwen3 that scores": {
        "architectures": ["Qwen3ForCausalLM"],
        "model_type": "qwen3",
        "hidden_size": 36,
        "intermediate_size": 43,
        "num_hidden_layers": 2,
        "num_attention_heads": 6,
        "num_key_value_heads": 3,
        "head_dim": 8,
        "vocab_size": 67,
        "max_position_embeddings": 64,
        "tie_word_embeddings": False,
        MODULES: [{"type": "Transformer"}, VERDICT],
    },
    "gemma3 that sees both ways, with maps": {
        "architectures": ["Gemma3TextModel"],
        "model_type": "gemma3_text",
        "hidden_size": 36,
        "intermediate_size": 43,
        "num_hidden_layers": 3,
        "num_attention_heads": 6,
        "num_key_value_heads": 2,
        "head_dim": 8,
        "vocab_size": 67,
        "max_position_embeddings": 64,
        "query_pre_attn_scalar": 8,
        "sliding_window": 7,
        "layer_types": ["sliding_attention", "full_attention", "sliding_attention"],
        "use_bidirectional_attention": True,
        MODULES: [
            {"type": "Transformer"},
            {"type": "Pooling", "config": {"pooling_mode_mean_tokens": True}},
            _dense("2_Dense", 36, 51, "Identity", bias=False),
            _dense("3_Dense", 51, 40, "Tanh", bias=True),
            {"type": "Normalize"},
        ],
    },
}
"""The keys of config.json by the names under which transformers' answers are kept."""
LENGTHS = (3, 1, 30, 11, 17)
TEXTS = [(2 + np.arange(length) * 31 % 65).tolist() for length in LENGTHS]
SECOND = 2
"""Where the second part of each text begins, where there is one."""
DATA = Path(__file__).parent.parent / "data" / "transformers-encoders.npz"


def pooled(config: Config, kind: str = "mean", *, normalize: bool = False) -> dict[str, Any]:
    """The config as sentence-transformers would have saved it."""
    modules = [{"type": "Transformer"}, {"type": "Pooling", "config": {f"pooling_mode_{kind}": True}}]
    return {**config, MODULES: [*modules, {"type": "Normalize"}] if normalize else modules}


def call_of(texts: list[list[int]], size: CallSize, second: int = 0) -> Call:
    """All of them in one call."""
    asked = [TextOfRequest(0, at, ids, second if len(ids) > second else 0) for at, ids in enumerate(texts)]
    rows = fill(size, [len(ids) for ids in texts])
    assert sum(map(len, rows)) == len(texts), "no room for all"
    return Call(size, [[asked[at] for at in row] for row in rows])


def embedded(config: Config, texts: list[list[int]], size: CallSize, second: int = 0) -> np.ndarray:
    """[N, width] in the order of `texts`."""
    model = build_embedder(config, dtype=jnp.float32)
    params = mapping.load(model.rules, random_tensors(model))
    call = call_of(texts, size, second)
    found = np.asarray(quick.jit(model.embed)(params, packed(call)))
    return found[np.argsort([text.index for text in call.texts])]


@pytest.mark.parametrize("name", CASES)
def test_vectors_and_scores_are_those_of_transformers(name: str) -> None:
    """Texts of one token up to many, behind each other in rows: as transformers has each alone, within 1e-5."""
    config = CASES[name]
    told = MODULES in config or purpose(config) == "score"
    found = embedded(config if told else pooled(config, "mean_tokens"), TEXTS, CallSize(2, 40), SECOND)
    with np.load(DATA) as expected:
        np.testing.assert_allclose(found, expected[name], rtol=0, atol=1e-5)


@pytest.mark.parametrize("kind", ["cls_token", "lasttoken"])
def test_a_text_is_also_its_first_or_its_last_token(kind: str) -> None:
    """With one token there is no difference; with more there is, to the mean as well."""
    config = CASES["bert"]
    one, mean = (embedded(pooled(config, how), TEXTS, CallSize(2, 40)) for how in (kind, "mean_tokens"))
    same = np.abs(one - mean).max(axis=1) < 1e-6

    assert same.tolist() == [length == 1 for length in LENGTHS]


def test_normalized_vectors_have_length_1() -> None:
    """And the direction that they had."""
    config = CASES["modernbert"]
    bare, found = (embedded(pooled(config, "cls_token", normalize=n), TEXTS, CallSize(2, 40)) for n in (False, True))

    np.testing.assert_allclose(np.linalg.norm(found, axis=1), 1, atol=1e-6)
    np.testing.assert_allclose(found, bare / np.linalg.norm(bare, axis=1, keepdims=True), atol=1e-6)


@pytest.mark.parametrize("name", ["bert", pytest.param("modernbert", marks=pytest.mark.slow)])
def test_a_text_is_the_same_alone_and_among_others(name: str) -> None:
    """In a row of its own, wide or narrow, or behind others."""
    config = CASES[name]
    among = embedded(config, TEXTS, CallSize(2, 40))
    alone = embedded(config, [TEXTS[2]], CallSize(1, 64))

    np.testing.assert_allclose(among[2:3], alone, rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("reach", "causal"),
    [(100, False), pytest.param(None, False, marks=pytest.mark.slow), pytest.param(5, True, marks=pytest.mark.slow)],
)
def test_wide_rows_are_computed_block_by_block(reach: int | None, *, causal: bool) -> None:
    """With the same result as in numpy, where two texts share a row and the last block is no whole one."""
    width, text = BLOCK + 70, BLOCK - 9
    rng = np.random.default_rng(0)
    q, k, v = (rng.standard_normal((width, *shape)).astype(np.float32) for shape in ((2, 1, 4), (2, 4), (2, 4)))
    owner = (np.arange(width) >= text).astype(np.int32)[None]
    found = np.asarray(attend(q, k, v, jnp.asarray(owner), reach=reach, causal=causal))  # type: ignore[arg-type]
    distance = np.arange(width)[:, None] - np.arange(width)
    seen = (owner[0][:, None] == owner[0]) & (distance >= 0 if causal else True)
    seen &= np.abs(distance) <= (width if reach is None else reach)
    scores = np.where(seen[None], np.einsum("wkgh,skh->kws", q, k), -np.inf)
    weights = np.exp(scores - scores.max(axis=-1, keepdims=True))
    expected = np.einsum("kws,skh->wkh", weights / weights.sum(axis=-1, keepdims=True), v)[:, :, None]

    np.testing.assert_allclose(found, expected, rtol=0, atol=1e-5)


def test_a_decoder_embeds_by_its_last_token() -> None:
    """Causal: what a text's last token has seen is the text, as the decoder itself computes it. Bare names are found, too,
    and a head is not missed."""
    from models.attend import causal
    from tests.models.test_references import FAMILIES

    config = FAMILIES["qwen3"]["qwen3 windows, biases"] | {"tie_word_embeddings": False}
    wanted = pooled(config, "lasttoken", normalize=True)
    model = build(config, dtype=jnp.float32)
    tensors = random_tensors(model)
    bare = {name.removeprefix("model."): value for name, value in tensors.items() if not name.startswith("lm_head")}
    embedder = build_embedder(wanted, dtype=jnp.float32, storage=dict.fromkeys(bare))
    call = call_of(TEXTS, CallSize(2, 40))
    found = np.asarray(quick.jit(embedder.embed)(mapping.load(embedder.rules, bare), packed(call)))
    params = mapping.load(model.rules, tensors)
    positions = jnp.arange(30, dtype=jnp.int32)
    none = [None] * len(model.layers)

    @quick.jit
    def last(tokens: jax.Array) -> jax.Array:
        return model.forward(params, tokens, positions, causal(), none)[0]

    number = [text.index for text in call.texts].index(2)
    expected = np.asarray(last(jnp.asarray(TEXTS[2], jnp.int32)))[-1]

    assert purpose(wanted) == "embed"
    np.testing.assert_allclose(found[number], expected / np.linalg.norm(expected), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("bare", "whole"),
    [("Qwen3Model", "Qwen3ForCausalLM"), ("LlamaModel", "LlamaForCausalLM"), ("MistralModel", "MistralForCausalLM")],
)
def test_a_decoder_that_was_saved_without_its_head_is_known(bare: str, whole: str) -> None:
    """As transformers calls it then, and so what is trained to embed; its model_type tells what its name would."""
    said = {key: value for key, value in CASES["qwen3 that scores"].items() if key not in (MODULES, "model_type")}
    config = said | {"model_type": bare.removesuffix("Model").lower(), "sliding_window": 5, "use_sliding_window": False}
    wanted = pooled(config | {"architectures": [bare]}, "lasttoken")

    assert purpose(wanted) == "embed"
    assert read(wanted) == read(wanted | {"architectures": [whole]})
    with pytest.raises(ModelError, match="found UnheardModel; known are"):
        read(wanted | {"architectures": ["UnheardModel"]})


def test_a_verdict_of_one_token_is_its_logit_alone() -> None:
    """As rerankers have it that were trained to say one word: the difference to two tokens is the other's logit."""
    config = CASES["qwen3 that scores"]

    def scored(**tokens: int) -> np.ndarray:
        wanted = {**config, MODULES: [{"type": "Transformer"}, {"type": "LogitScore", "config": tokens}]}
        return embedded(wanted, TEXTS[:2], CallSize(1, 40))

    both = scored(true_token_id=61, false_token_id=5)
    np.testing.assert_allclose(both, scored(true_token_id=61) - scored(true_token_id=5), rtol=0, atol=1e-5)


def test_vectors_of_embedding_gemma_may_be_cut() -> None:
    """To the sizes that it was trained for, which its config does not name; others only where it names them."""
    config = CASES["gemma3 that sees both ways, with maps"]
    *before, last = config[MODULES][:4]
    wide = [*before, {**last, "config": last["config"] | {"out_features": 768}}]

    assert list(dimensions({**config, MODULES: wide})) == [128, 256, 512, 768]
    assert list(dimensions(config)) == [40]
    assert list(dimensions({**config, "matryoshka_dimensions": [8]})) == [8, 40]
    assert list(dimensions(pooled(CASES["bert"]))) == [36]


def test_maps_are_read_from_the_folders_that_modules_json_names(tmp_path: Path) -> None:
    """Each has a file of tensors of its own; the network's have no prefix, as sentence-transformers writes them."""
    config = dict(CASES["gemma3 that sees both ways, with maps"])
    modules = config.pop(MODULES)
    tensors = random_tensors(build_embedder(CASES["gemma3 that sees both ways, with maps"], dtype=jnp.float32))
    listed = [
        {"path": module.get("path", "1_Pooling" * (module["type"] == "Pooling")), "type": "st." + module["type"]}
        for module in modules
    ]
    (tmp_path / "modules.json").write_text(json.dumps(listed))
    (tmp_path / "config.json").write_text(json.dumps(config))
    for told, module in zip(listed, modules, strict=True):
        if not told["path"]:
            continue
        (tmp_path / told["path"]).mkdir()
        (tmp_path / told["path"] / "config.json").write_text(json.dumps(module["config"]))
        own = {name: value for name, value in tensors.items() if name.startswith(told["path"])}
        if own:
            renamed = {name.removeprefix(told["path"] + "."): value for name, value in own.items()}
            write_safetensors(tmp_path / told["path"] / "model.safetensors", renamed)
    bare = {name.removeprefix("model."): value for name, value in tensors.items() if name.startswith("model.")}
    write_safetensors(tmp_path / "model.safetensors", bare)

    with open_checkpoint(tmp_path) as checkpoint:
        model = build_embedder(checkpoint.config, dtype=jnp.float32, storage=checkpoint.storage)
        mapping.check(model.rules, {name: info.shape for name, info in checkpoint.tensors.items()})
        found = checkpoint.stored("3_Dense.linear.bias")
    np.testing.assert_array_equal(np.asarray(found), tensors["3_Dense.linear.bias"])
    assert model.width == 40
    assert purpose(checkpoint.config) == "embed"


def test_a_bert_of_a_gguf_file_is_that_of_its_folder(tmp_path: Path) -> None:
    """Names, sizes, pooling, at length 1, and the tokens of its WordPiece vocabulary, whose beginnings of words llama.cpp marks
    where BERT marks the rest."""
    folder, file = write_tiny_bert(tmp_path / "bert", pooling="cls_token"), tmp_path / "bert.gguf"
    write_tiny_gguf(file, folder, pooling=2)
    found, texts = [], ["the cat", "a, b? 12", "x"]
    for path in (folder, file):
        text = read_text(path)
        ids = [text.tokenizer.encode(one, add_special=True) for one in texts]
        with open_checkpoint(path) as checkpoint:
            model = build_embedder(checkpoint.config, dtype=jnp.float32, storage=checkpoint.storage)
            rules = mapping.check(model.rules, {name: info.shape for name, info in checkpoint.tensors.items()})
            params = mapping.load(rules, {name: checkpoint.stored(name) for name in checkpoint.tensors})
        found.append(np.asarray(quick.jit(model.embed)(params, packed(call_of(ids, CallSize(1, 40))))))
        assert text.abilities.capabilities == ("embeddings",)
        assert reads_whole_texts(EngineSpec("m", str(path)))

    np.testing.assert_allclose(found[0], found[1], rtol=0, atol=1e-6)


def from_file(path: Path) -> np.ndarray:
    """What `embedded` gives, of a GGUF file."""
    assert reads_whole_texts(EngineSpec("m", str(path)))
    with open_checkpoint(path) as checkpoint:
        read(checkpoint.config)
        model = build_embedder(checkpoint.config, dtype=jnp.float32, storage=checkpoint.storage)
        rules = mapping.check(model.rules, {name: info.shape for name, info in checkpoint.tensors.items()})
        params = mapping.load(rules, {name: checkpoint.stored(name) for name in checkpoint.tensors})
        call = call_of(TEXTS, CallSize(2, 40), SECOND)
        found = np.asarray(quick.jit(model.embed)(params, packed(call)))
    return found[np.argsort([text.index for text in call.texts])]


RANK = 4
"""The `pooling_type` of rerankers."""
FILES: dict[str, tuple[str, str, dict[str, Any], dict[str, Any]]] = {
    "xlm-roberta that scores": (
        "xlm-roberta that scores",
        "bert",
        {"layer_norm_eps": 1e-12},
        {"attention__causal": False, "classifier__output_labels": ["LABEL_0"]},
    ),
    "modernbert, by the first token": (
        "modernbert",
        "modern-bert",
        {"norm_eps": 1e-5, "global_attn_every_n_layers": 3, "local_rope_theta": 500.0},
        {"pooling_type": 2, "attention__causal": False},
    ),
    "modernbert that scores, by silu": (
        "modernbert with biases, that scores by the mean",
        "modern-bert",
        {"norm_eps": 1e-5, "hidden_activation": "silu"},
        {"pooling_type": RANK, "classifier__pooling_type": 1},
    ),
    "nomic": ("nomic", "nomic-bert", {}, {"pooling_type": 1}),
    "eurobert": (
        "eurobert",
        "eurobert",
        {},
        {"pooling_type": 1, "attention__causal": False, "rope__scaling__type": "none"},
    ),
    "gemma3 that sees both ways, with maps": (
        "gemma3 that sees both ways, with maps",
        "gemma-embedding",
        {
            "rms_norm_eps": 1e-6,
            "num_hidden_layers": 3,
            "layer_types": None,
            "sliding_window_pattern": 2,
            MODULES: [
                {"type": "Transformer"},
                {"type": "Pooling", "config": {"pooling_mode_mean_tokens": True}},
                _dense("2_Dense", 36, 51, "Identity", bias=False),
                _dense("3_Dense", 51, 36, "Identity", bias=False),
                {"type": "Normalize"},
            ],
        },
        {"dense_2_feat_in": 36, "dense_2_feat_out": 51, "dense_3_feat_in": 51, "dense_3_feat_out": 36},
    ),
    "qwen3 by its last token": (
        "qwen3 that scores",
        "qwen3",
        {"rms_norm_eps": 1e-6, "tie_word_embeddings": True},
        {"pooling_type": 3},
    ),
    "qwen3 that scores": ("qwen3 that scores", "qwen3", {"rms_norm_eps": 1e-6}, {"pooling_type": RANK}),
}
"""Of each case, by name: which, the architecture of the file, and what the config and the file's header have besides."""


@pytest.mark.parametrize("name", FILES)
def test_a_gguf_file_embeds_and_scores_as_its_folder(tmp_path: Path, name: str) -> None:
    """Under llama.cpp's names, with its pooling, at length 1. Of Qwen3-Reranker's head the file has two rows."""
    case, architecture, changes, more = FILES[name]
    config = {key: value for key, value in (CASES[case] | changes).items() if value is not None}
    if "by its last" in name:
        config = pooled({key: value for key, value in config.items() if key != MODULES}, "lasttoken", normalize=True)
    elif purpose(config) == "embed" and MODULES not in config:
        config = pooled(config, "cls_token" if more["pooling_type"] == 2 else "mean_tokens", normalize=True)
    tensors = random_tensors(build_embedder(config, dtype=jnp.float32))
    if more.get("pooling_type") == RANK and architecture == "qwen3":
        tensors["cls.output.weight"] = tensors.pop("lm_head.weight")[[61, 5]]
    file = write_encoder_gguf(tmp_path / "m.gguf", architecture, config, tensors, **more)

    np.testing.assert_allclose(from_file(file), embedded(config, TEXTS, CallSize(2, 40), SECOND), rtol=0, atol=1e-5)


@pytest.mark.parametrize(
    ("architecture", "pooling", "embeds"),
    [("bert", None, True), ("bert", 0, True), ("qwen3", 3, True), ("qwen3", 0, False), ("qwen3", None, False)],
)
def test_what_a_gguf_file_is_for_is_seen_at_its_beginning(architecture: str, pooling: int | None, embeds: bool) -> None:
    """An encoder's generates nothing, whatever its pooling is; a decoder's embeds where it has one. No other is known."""
    assert gguf_embeds(architecture, pooling) is embeds
    assert not gguf_embeds("unheard", pooling)


def test_a_gguf_file_without_a_head_that_ranks_is_refused_by_name(tmp_path: Path) -> None:
    """A BERT whose pooling is a reranker's, with no head, and with the half of it that the converter leaves."""
    folder = write_tiny_bert(tmp_path / "bert")
    write_tiny_gguf(tmp_path / "bert.gguf", folder, pooling=RANK)
    config = CASES["bert"] | {"layer_norm_eps": 1e-12}
    tensors = random_tensors(build_embedder(config, dtype=jnp.float32)) | {"cls.output.weight": np.ones((1, 36))}
    half = write_encoder_gguf(tmp_path / "half.gguf", "bert", config, tensors)

    with pytest.raises(WeightsError, match="the module rank is not supported"):
        read_text(tmp_path / "bert.gguf")
    with open_checkpoint(half) as checkpoint, pytest.raises(ModelError, match=r"only cls\.output is there"):
        read(checkpoint.config)


def test_places_without_a_text_make_no_nan() -> None:
    """A call with one text and much room."""
    call = call_of([[3, 4]], CallSize(2, 32))
    texts: Texts = packed(call)
    model = build_embedder(CASES["bert"], dtype=jnp.float32)
    found = quick.jit(model.embed)(mapping.load(model.rules, random_tensors(model)), texts)

    assert np.isfinite(np.asarray(found)).all()


@pytest.mark.parametrize(
    ("config", "words"),
    [
        (CASES["bert"] | {"position_embedding_type": "relative_key"}, "position_embedding_type"),
        (CASES["bert"] | {"num_attention_heads": 5}, "36 does not divide among 5"),
        (CASES["bert that scores"] | {"id2label": {"0": "a", "1": "b"}}, "2 labels"),
        (pooled(CASES["bert"], "max_tokens"), "the pooling is max"),
        (
            pooled(CASES["bert"]) | {MODULES: CASES["gemma3 that sees both ways, with maps"][MODULES]},
            "the module Dense is not supported",
        ),
        (
            CASES["gemma3 that sees both ways, with maps"] | {"hidden_size": 35},
            "2_Dense maps 36 to 51 values, and gets 35",
        ),
        (CASES["qwen3 that scores"] | {MODULES: [VERDICT]}, "must be Transformer and LogitScore"),
        (CASES["qwen3 that scores"] | {"vocab_size": 61}, "true_token_id is 61, must be a token below 61"),
        (CASES["nomic"] | {"qkv_proj_bias": True}, "qkv_proj_bias is True, which is not served"),
        (CASES["modernbert"] | {"layer_types": ["full_attention"]}, "layer_types"),
    ],
)
def test_what_an_encoder_does_not_do_is_refused_by_name(config: Config, words: str) -> None:
    """When its config is read, so that nobody has to load it."""
    with pytest.raises(ModelError, match=words):
        read(config)


def test_an_encoder_is_not_built_to_generate() -> None:
    """Nor split, nor in another format of weights."""
    with pytest.raises(ModelError, match="embeds texts, and generates none"):
        build(CASES["bert"])
    with pytest.raises(ModelError, match=r"quant 'int8' is not supported.*one device"):
        build_embedder(CASES["bert"], quant="int8", tensor_parallel=2)
