"""What a host's limits become in the words to an engine process."""

from pathlib import Path

import attrs
import msgspec

from neuron_jax.config import EngineConfig, ModelSpec, load_config
from neuron_jax.daemon.launch import engine_spec
from neuron_jax.workers.frames import EngineSpec


def test_every_limit_of_the_host_reaches_its_engines() -> None:
    """Under the same name; `cpu_devices` and `min_free_mb` are the daemon's own business."""
    names = {item.name for item in attrs.fields(EngineConfig)} & set(EngineSpec.__struct_fields__)
    wanted = dict.fromkeys(names, 7) | {"prefix_cache": False}
    config = attrs.evolve(load_config(None, {"HOME": "/h"}), engine=EngineConfig(**wanted))

    spec = engine_spec(config, ModelSpec(model_id="m"), "cpu", (0,), Path("/m"))

    assert names == {item.name for item in attrs.fields(EngineConfig)} - {"cpu_devices", "min_free_mb"}
    assert {name: msgspec.structs.asdict(spec)[name] for name in names} == wanted
