"""Model families as pure functions on JAX; knows arrays and names, must not know files, pages, HTTP or hosts."""

from models.attend import causal
from models.errors import ModelError
from models.registry import build
from models.sharding import make_mesh, named_sharding
from models.spec import Attend, CacheSpec, Model, Params, ParamSpec

__all__ = [
    "Attend",
    "CacheSpec",
    "Model",
    "ModelError",
    "ParamSpec",
    "Params",
    "build",
    "causal",
    "make_mesh",
    "named_sharding",
]
