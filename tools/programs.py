"""Compile an engine's step programs for a card that is not here, and list their kernels: what `docs/gpu.md` reads from.

    python tools/programs.py --model llama-8b --card h100 --tp 1 --quant none --keys 1 64 1024/64 64/64/4 slot --hlo /tmp/hlo

A key is tokens[/rows[/steps]][/plain|cut|full|any], plain where nothing is said. MODEL is one of
tests/fakes/public_shapes.py or a config.json. `--kernels` lists every kernel.
Needs a Python with jax[cuda12] and the tree on its path; neither a driver nor a device.
"""

import argparse
import json
import os
import pathlib
import sys

os.environ.update(JAX_PLATFORMS="cpu", JAX_SKIP_CUDA_CONSTRAINTS_CHECK="1")
sys.path.insert(0, str(pathlib.Path(__file__).parent.parent))

from neuron_jax.deviceless.census import Census, Launch, launches
from neuron_jax.deviceless.programs import abroad, compile_key, shallow
from neuron_jax.deviceless.stored import promised
from neuron_jax.engine.build import design
from neuron_jax.hardware.cards import card
from neuron_jax.workers.frames import EngineSpec
from tests.deviceless.cases import key_of
from tests.fakes.public_shapes import SHAPES

MIB = 2**20


def main() -> None:
    given = arguments()
    whole = SHAPES.get(given.model) or json.loads(pathlib.Path(given.model).read_text())
    cut = shallow(whole)
    config = dict(cut.config)
    if given.layers:
        config = dict(whole) | {"num_hidden_layers": given.layers}
    one = card(given.card)
    spec = EngineSpec(
        given.model,
        "",
        platform="cuda",
        devices=tuple(range(given.tp)),
        tensor_parallel=given.tp,
        quant=given.quant,
        kv_dtype=given.kv,
        max_context=given.context,
        max_slots=given.slots,
        chunk_tokens=given.chunk,
    )
    made = design(config, spec, limit=int(one.memory * 0.97), storage=promised(config))
    program = abroad(made, one)
    pages = ", ".join(map(str, made.plan.groups))
    print(f"{given.model}, {len(made.model.layers)} layers, tp {given.tp}, {one.name}, quant {made.quant}: ", end="")
    print(f"attention {program.attention.name}; pages {pages}")
    for text in given.keys:
        key = key_of(text, made.buckets.rows)
        done = compile_key(program, key)
        memory = done.memory
        print(
            f"== {key}: lowered {done.lower_seconds:.1f} s, compiled {done.compile_seconds:.1f} s; MiB: arguments "
            f"{memory.argument / MIB:,.0f}, aliased {memory.alias / MIB:,.0f}, temporary {memory.temp / MIB:,.1f}"
        )
        show(done.census(made.model.vocab_size), every=given.kernels)
        if given.hlo:
            folder = pathlib.Path(given.hlo)
            folder.mkdir(parents=True, exist_ok=True)
            name = f"{pathlib.Path(given.model).stem}.{one.key}.tp{given.tp}.{made.quant}.{text.replace('/', '_')}.hlo"
            (folder / name).write_text(done.text)


def arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--model", default="llama-8b")
    parser.add_argument("--card", default="h100")
    parser.add_argument("--tp", type=int, default=1)
    parser.add_argument("--quant", default="none")
    parser.add_argument("--kv", default="auto")
    parser.add_argument("--context", type=int, default=8192)
    parser.add_argument("--slots", type=int, default=64)
    parser.add_argument("--chunk", type=int, default=1024)
    parser.add_argument("--layers", type=int, default=0, help="of the model; 0: as few as have every kind")
    parser.add_argument("--keys", nargs="+", default=["1"])
    parser.add_argument("--kernels", action="store_true")
    parser.add_argument("--hlo", help="a folder to write the programs' text to")
    return parser.parse_args()


def show(found: Census, *, every: bool) -> None:
    parts = found.parts()
    layers = " ".join(str(launches(layer)) for layer in parts.layers)
    print(
        f"   {found.launches} kernels: {launches(parts.before)} before, {layers} in the layers, "
        f"{launches(parts.behind)} behind; moved {found.moved / MIB:,.1f} MiB; over the vocabulary "
        f"{found.wide}\n   conditionals {found.conditionals}, loops counted on the device {found.loops}, sorts of the "
        f"vocabulary {found.sorts}, collectives {dict(found.collectives)}\n   copied whole: {list(found.copies)}; "
        f"written out wider: {list(found.widened)}"
    )
    if every:
        for title, kernels in (
            ("before", parts.before),
            *((f"layer {number}", layer) for number, layer in enumerate(parts.layers)),
            ("behind", parts.behind),
        ):
            print(f"   -- {title}")
            for kernel in kernels:
                print("   " + line(kernel))


def line(kernel: Launch) -> str:
    work = f"{kernel.flops / 1e9:,.2f} Gop {kernel.dtype}" if kernel.flops else ""
    reads = ", ".join(path.removeprefix("params").replace("['", ".").replace("']", "") for path in kernel.arguments)
    return f"{kernel.moved / MIB:9.3f} MiB {work:18} x{kernel.times:<3} {kernel.what:24} {kernel.name:44} {reads}"


if __name__ == "__main__":
    main()
