"""Checkpoint tensors onto devices, one parameter at a time; knows jax, must not know sources or processes."""

from collections import deque
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from typing import Any

import jax
from jax.sharding import Mesh, NamedSharding

from models import mapping
from models.errors import ModelError
from models.registry import read
from models.sharding import named_sharding
from models.spec import Embedder, Model, Params
from models.storage import Array
from neuron_jax.weights.converted import ConvertedCheckpoint
from neuron_jax.weights.errors import bad_checkpoint
from neuron_jax.weights.spec import Checkpoint

AT_ONCE = 4
"""Parameters that are read and arranged at the same time: numpy does that on one core each."""

Leaves = Mapping[str, Array]
Report = Callable[[str, int, int, str], None]
"""Called with phase, done, total, unit."""


def load_params(model: Model | Embedder, checkpoint: Checkpoint, mesh: Mesh, report: Report) -> Params:
    """Every parameter of `model`, sharded over `mesh` by its logical axes; progress in bytes read, phase "weights".

    Host memory beyond the weights is twice that of the largest parameter. Raises WeightsError with all misfits.
    """
    if isinstance(checkpoint, ConvertedCheckpoint):
        from neuron_jax.weights.orbax_params import restored  # a second to import, which other loads do without

        return restored(model, checkpoint, mesh, report)
    rules = checked(model, checkpoint)
    sizes = [sum(checkpoint.tensors[part.name].nbytes for part in rule.parts) for rule in rules]
    total, done = sum(sizes), 0
    params: dict[str | int, Any] = {}
    report("weights", 0, total, "bytes")
    for rule, size, leaves in zip(rules, sizes, _assembled(rules, sizes, checkpoint), strict=True):
        specs = _subtree(model.param_specs, rule.keys)
        placed = {name: put(leaf, named_sharding(mesh, specs[name].axes)) for name, leaf in leaves.items()}
        # Without waiting, host copies of many parameters would be alive at once.
        mapping.place(params, rule.keys, jax.block_until_ready(placed))
        done += size
        report("weights", done, total, "bytes")
    return params


def check(model: Model | Embedder, checkpoint: Checkpoint) -> None:
    """Whether a checkpoint's tensors are those of `model`, before anything is planned for it. Raises WeightsError as
    `checked` does; the parameters of a converted one are looked at when they are read."""
    if not isinstance(checkpoint, ConvertedCheckpoint):
        checked(model, checkpoint)


def check_layers(checkpoint: Checkpoint) -> None:
    """Whether a checkpoint can have so many layers as its config says: thousands would take minutes to be laid out, only to
    find that all of them are missing. Raises WeightsError."""
    layers, tensors = len(read(checkpoint.config).layers), len(checkpoint.tensors)
    if layers > tensors:
        raise bad_checkpoint(
            checkpoint.path, [f"its config has {layers} layers, and its files {tensors} tensors in all"]
        )


def _assembled(rules: Sequence[mapping.Rule], sizes: Sequence[int], checkpoint: Checkpoint) -> Iterator[Leaves]:
    """The leaves of each rule, in order. Of those that nobody took yet there are AT_ONCE at most, and no more bytes than
    the largest has."""
    pool, waiting = ThreadPoolExecutor(AT_ONCE, "weights"), deque[tuple[Future[Leaves], int]]()
    most = max(sizes, default=0)
    try:
        for rule, size in zip(rules, sizes, strict=True):
            while len(waiting) == AT_ONCE or sum(held for _, held in waiting) > most - size:
                yield waiting.popleft()[0].result()
            storage = rule.storage(checkpoint.storage)
            waiting.append((pool.submit(rule.assemble, checkpoint.stored, storage), size))
        for leaves, _ in waiting:
            yield leaves.result()
    finally:
        pool.shutdown(cancel_futures=True)


def checked(model: Model | Embedder, checkpoint: Checkpoint) -> Sequence[mapping.Rule]:
    """The rules that make `model`'s parameters of a checkpoint's tensors. Raises WeightsError with all misfits."""
    wanted = {part.name for rule in model.rules if isinstance(rule, mapping.Rule) for part in rule.parts}
    spare = checkpoint.spare - wanted
    shapes = {name: info.shape for name, info in checkpoint.tensors.items() if name not in spare}
    try:
        return mapping.check(model.rules, shapes)
    except ModelError as error:
        raise bad_checkpoint(checkpoint.path, error.misfits) from error


def put(array: Any, sharding: NamedSharding) -> jax.Array:
    """An array that every process has whole, on its devices of the sharding."""
    # Over several processes `device_put` would compare the array among them: every weight over the wire, to each.
    placed: jax.Array = (
        jax.device_put(array, sharding)
        if sharding.is_fully_addressable
        else jax.make_array_from_callback(array.shape, sharding, lambda index: array[index])
    )
    return placed


def _subtree(specs: Any, keys: tuple[str | int, ...]) -> Any:
    for key in keys:
        specs = specs[key]
    return specs
