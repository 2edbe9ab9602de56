"""Adapters read from PEFT's files: names, scales, and what is refused."""

import json
from pathlib import Path

import numpy as np
import pytest

from neuron_jax.weights.errors import WeightsError
from neuron_jax.weights.peft import read_adapter
from tests.fakes.adapters import write_peft

Q, K = "model.layers.0.self_attn.q_proj.weight", "model.layers.0.self_attn.k_proj.weight"
A, B = np.ones((4, 8), np.float32), np.full((6, 4), 3, np.float16)


def test_names_and_scales(tmp_path: Path) -> None:
    """alpha / r, by root with rslora, and those of a pattern; halves of 16 bits are as good."""
    plain = read_adapter(
        write_peft(tmp_path / "plain", {Q: (A, B), K: (A, B)}, lora_alpha=8, alpha_pattern={"k_proj": 2})
    )
    rooted = read_adapter(write_peft(tmp_path / "rooted", {Q: (A, B)}, lora_alpha=8, use_rslora=True))

    assert plain.keys() == {Q, K}
    assert [float(one[Q][1].max()) for one in (plain, rooted)] == [6.0, 12.0]
    assert float(plain[K][1].max()) == 1.5
    assert (plain[Q][0].dtype, plain[Q][1].dtype) == (np.float32, np.float32)


@pytest.mark.parametrize(
    ("changes", "words"),
    [
        ({"peft_type": "IA3", "bias": "all"}, "peft_type is 'IA3'; LORA is served; bias is 'all'; none is served"),
        ({"use_dora": True, "modules_to_save": ["lm_head"]}, "use_dora is not served; modules_to_save is not served"),
    ],
)
def test_what_asks_for_more_is_refused(tmp_path: Path, changes: dict[str, object], words: str) -> None:
    folder = write_peft(tmp_path, {Q: (A, B)})
    config = folder / "adapter_config.json"
    config.write_text(json.dumps({**json.loads(config.read_text()), **changes}))

    with pytest.raises(WeightsError, match=words):
        read_adapter(folder)


def test_a_half_alone_is_refused(tmp_path: Path) -> None:
    folder = write_peft(tmp_path, {Q: (A, B)})
    (folder / "adapter_model.safetensors").write_bytes(
        (folder / "adapter_model.safetensors").read_bytes().replace(b"lora_B.weight", b"lora_Z.weight")
    )

    with pytest.raises(
        WeightsError, match=r"lora_Z.weight is no half of a low-rank product; .*q_proj has only one half"
    ):
        read_adapter(folder)
