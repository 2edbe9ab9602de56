"""An engine with adapters: requests of several in one step, each as its merged weights say; and whose pages are whose."""

from collections.abc import Iterator
from itertools import count

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from msgspec.structs import replace

from models.adapters import gather
from models.registry import build
from models.sharding import make_mesh, replicated, shard_tree
from models.spec import Model
from neuron_jax.engine.attention.choose import choose
from neuron_jax.engine.attention.kv import KVFormat
from neuron_jax.engine.attention.trial import Case, kinds
from neuron_jax.engine.buckets import Menu, declare
from neuron_jax.engine.cache import Cache
from neuron_jax.engine.compiler import Compiler
from neuron_jax.engine.engine import Engine
from neuron_jax.engine.pace import Pace
from neuron_jax.engine.pages import Pages
from neuron_jax.engine.prefix import Naming
from neuron_jax.engine.programs import Program, Shapes
from neuron_jax.engine.runner import Runner
from neuron_jax.engine.scheduler import Scheduler
from tests.fakes.adapters import EVERY, adapter_of, merged, params_of, tensors_of
from tests.fakes.engines import drain, submit, tokens, words
from tests.fakes.plain_pass import full_logits
from tests.fakes.quick import Quick
from tests.fakes.tiny_llama import CONFIG

PAGE, PAGES, SLOTS = 16, 48, 4
MODEL: Model = build(CONFIG, dtype=jnp.float32)
SEVERAL = pytest.param(2, marks=pytest.mark.slow)
TENSORS = tensors_of(MODEL)
ADAPTERS = [adapter_of(TENSORS, 2, 4, *EVERY), adapter_of(TENSORS, 3, 6, "q_proj", "v_proj", "gate_proj", "down_proj")]


@pytest.fixture(scope="module", params=[1, SEVERAL])
def runner(request: pytest.FixtureRequest) -> Iterator[Runner]:
    devices: int = request.param
    mesh, model = make_mesh(jax.devices("cpu")[:devices]), build(CONFIG, dtype=jnp.float32, tensor_parallel=devices)
    adapters = gather(model, ADAPTERS, np.float32)
    attention = choose(Case(mesh, jnp.float32, KVFormat("float32"), PAGES, PAGE, kinds(model)))
    program = Program(model, mesh, Shapes(PAGE, (PAGES,), SLOTS, 512), attention, adapters=adapters)
    compiler = Compiler(lambda key: Quick(program.lower(key)), workers=2)
    declared = declare(max_slots=SLOTS, chunk_tokens=16, decode_steps=2).keys()
    keys = [key for key in declared if getattr(key, "rows", SLOTS) == SLOTS and getattr(key, "tokens", 16) in (4, 16)]
    compiler.start(keys)
    compiler.wait(keys, lambda done, total: None)
    arrays = jax.device_put(adapters.arrays, replicated(mesh))
    params = shard_tree(params_of(model, TENSORS), model.param_specs, mesh)
    yield Runner(program, compiler, params, adapters=arrays)
    compiler.close()


def new_engine(runner: Runner) -> Engine:
    menu, ticks = Menu(), count()
    menu.add(runner.compiler.ready)
    cache = Cache([Pages(PAGES)], PAGE, Naming(PAGE, b"tests"))
    scheduler = Scheduler(cache, max_slots=SLOTS, menu=menu, pace=Pace())
    return Engine(scheduler, runner, 512, clock=lambda: next(ticks) / 1000)


def greedy(adapter: int, prompt: list[int], length: int) -> list[int]:
    """What the weights say into which the adapter is merged."""
    tensors = merged(TENSORS, ADAPTERS[adapter - 1]) if adapter else TENSORS
    params, text = params_of(MODEL, tensors), list(prompt)
    for _ in range(length):
        text.append(int(full_logits(MODEL, params, text)[-1].argmax()))
    return text[len(prompt) :]


def test_many_at_once(runner: Runner) -> None:
    """One prompt, through both adapters and none, side by side; nobody finds another's pages, and each its own."""
    engine, prompt = new_engine(runner), words(70, seed=1)
    cached = []
    for turn in range(2):
        for adapter in range(3):
            engine.submit(replace(submit(10 * turn + adapter, prompt), adapter=adapter))
        outputs = drain(engine)
        cached += [outputs[10 * turn + adapter][0].cached_tokens for adapter in range(3)]
        said = [tokens(outputs[10 * turn + adapter]) for adapter in range(3)]
        assert said == [greedy(adapter, prompt, 12) for adapter in range(3)]

    assert len({tuple(text) for text in said}) == 3
    assert cached == [0, 0, 0, 64, 64, 64]


def test_an_adapter_that_is_not_there_is_refused(runner: Runner) -> None:
    engine = new_engine(runner)
    engine.submit(replace(submit(1, [5]), adapter=3))

    assert [output.error for output in drain(engine)[1]] == ["there is no adapter 3"]
