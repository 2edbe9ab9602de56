"""A Flax nnx definition as pure functions over a plain tree of arrays; must not know any family."""

from collections.abc import Callable, Mapping
from typing import Any, Generic, TypeVar

import jax
from attrs import frozen
from flax import nnx

from models.spec import Params, ParamSpec

ModuleT = TypeVar("ModuleT", bound=nnx.Module)


@frozen
class Functional(Generic[ModuleT]):
    """A module without its arrays. `param_specs` is a nested dict with a `ParamSpec` for each of them."""

    param_specs: Mapping[str, Any]
    _graph: Any
    _tree: Any

    def bind(self, params: Params) -> ModuleT:
        """The module with `params` in it. Costs Python time for every layer: call it while tracing, not per step."""
        own: Any = jax.tree.structure(self.param_specs, is_leaf=_is_spec)
        leaves, given = jax.tree.flatten(params)
        assert own == given, "params of another model"
        module: ModuleT = nnx.merge(self._graph, jax.tree.unflatten(self._tree, leaves))
        return module


def functional(build: Callable[[], ModuleT]) -> Functional[ModuleT]:
    """Split what `build` makes, whose parameters are shapes without values."""
    graph, state = nnx.split(build())
    flat = nnx.to_flat_state(state)
    specs: dict[Any, Any] = {}
    for path, variable in flat:
        value = variable.get_value()
        parent = specs
        for key in path[:-1]:
            parent = parent.setdefault(key, {})
        parent[path[-1]] = ParamSpec(shape=value.shape, dtype=value.dtype, axes=variable.axes)
    # Both trees flatten in the order of their sorted keys, so leaves pass from one to the other by position.
    ordered = [(spec.shape, spec.dtype) for spec in jax.tree.leaves(specs, is_leaf=_is_spec)]
    assert ordered == [(leaf.shape, leaf.dtype) for leaf in jax.tree.leaves(state)], "tree orders differ"
    return Functional(specs, graph, jax.tree.structure(state))


def _is_spec(node: Any) -> bool:
    return isinstance(node, ParamSpec)
