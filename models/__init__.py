"""Model families as pure functions on JAX; knows arrays and names, must not know files, pages, HTTP or hosts.

The names below are imported when first asked for: who only wants `models.errors` or `models.storage` gets no JAX.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from models.attend import causal
    from models.errors import ModelError
    from models.registry import build
    from models.sharding import make_mesh, named_sharding
    from models.spec import Mixer, Model, PagedLayer, Params, ParamSpec

__all__ = [
    "Mixer",
    "Model",
    "ModelError",
    "PagedLayer",
    "ParamSpec",
    "Params",
    "build",
    "causal",
    "make_mesh",
    "named_sharding",
]

_HOMES = {
    "attend": ("causal",),
    "errors": ("ModelError",),
    "registry": ("build",),
    "sharding": ("make_mesh", "named_sharding"),
    "spec": ("Mixer", "Model", "PagedLayer", "Params", "ParamSpec"),
}


def __getattr__(name: str) -> Any:
    for module, names in _HOMES.items():
        if name in names:
            return getattr(importlib.import_module(f"models.{module}"), name)
    raise AttributeError(f"module 'models' has no attribute {name!r}")
