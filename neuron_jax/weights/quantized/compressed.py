"""compressed-tensors, llm-compressor's: int8, float8 and packed codes, by groups of modules; must not know files.

    weight int8 or float8 [N, K]            weight_scale [1], [N, 1] or [N, groups]   weight_zero_point, if asymmetric, alike
    weight_packed int32 [N, K * bits / 32]  weight_scale  weight_zero_point int32 [N * bits / 32, groups]
    weight_shape int64 [2]                  weight_g_idx int32 [K], where groups are in another order

Packed codes and zero points are shifted to have no sign.
https://github.com/vllm-project/compressed-tensors, compressed_tensors/compressors and quantization/lifecycle/forward.py.
"""

import re
from collections.abc import Mapping
from typing import Any

import numpy as np
from attrs import frozen

from models.config import Keys
from models.storage import Floats
from neuron_jax.weights.quantized import fp8
from neuron_jax.weights.quantized.codes import (
    CodeMatrix,
    Codes,
    broadcast_scale,
    is_scale,
    read_index,
    read_width,
    unpack,
)
from neuron_jax.weights.quantized.record import (
    FLOATS,
    WORDS,
    Files,
    Found,
    Joined,
    MisfitError,
    Settings,
    expect,
    gather,
    parts_of,
    stems_of,
)

_FORMATS = ("dense", "pack-quantized", "int-quantized", "naive-quantized", "float-quantized", "mixed-precision")


@frozen
class Scheme:
    """How the weights of some modules are stored. `group` None: one scale for a row or for all."""

    targets: tuple[str, ...]
    bits: int
    group: int | None
    symmetric: bool
    block: fp8.Block | None


def find(settings: Settings, files: Files) -> Found:
    """Every matrix of the checkpoint that is stored so."""
    keys = Keys(settings, "quantization_config")
    _refuse_others(keys)
    schemes = [_scheme(keys, name, group) for name, group in keys.section("config_groups").items()]
    if not schemes:
        keys.refuse("config_groups is missing")
    if keys.misfits:
        return Found(misfits=keys.misfits)
    packed, whole = stems_of(files, ".weight_packed", WORDS), stems_of(files, ".weight", ("I8",))
    found = gather([*packed, *whole], lambda stem: _join(files, stem, _of(stem, schemes)))
    floats = gather(
        stems_of(files, "", fp8.FLOAT8),
        lambda name: fp8.join(files, name, block=_of(name.removesuffix(".weight"), schemes).block),
    )
    return Found(found.joined + floats.joined, found.misfits + floats.misfits)


def _refuse_others(keys: Keys) -> None:
    sections = keys.section("config_groups").values()
    named = [keys.get("format"), *(group.get("format") for group in sections if isinstance(group, Mapping))]
    for name in named:
        if name is not None and name not in _FORMATS:
            keys.refuse(f"format is {name!r}, must be {' or '.join(map(repr, _FORMATS))}")
    if (sparse := keys.section("sparsity_config").get("format", "dense")) != "dense":
        keys.refuse(f"sparsity_config.format is {sparse!r}, must be 'dense'")
    if keys.section("transform_config").get("config_groups"):
        keys.refuse("transform_config: rotations around quantized maps are not supported")


def _scheme(keys: Keys, name: str, group: Any) -> Scheme:
    here = f"config_groups.{name}"
    weights = group.get("weights") if isinstance(group, Mapping) else None
    if not isinstance(weights, Mapping):
        keys.refuse(f"{here} has no weights")
        return Scheme((), 8, None, symmetric=True, block=None)
    targets = group.get("targets")
    if not isinstance(targets, list | tuple) or not all(isinstance(target, str) for target in targets):
        keys.refuse(f"{here}.targets is {targets!r}, must be a list of names")
        targets = ()
    inner = Keys(weights, here)
    bits = read_width(inner, "num_bits")
    size = inner.get("group_size")
    group_size = None if size == -1 else inner.optional_size("group_size")
    symmetric = inner.flag("symmetric", default=True)
    block = fp8.read_block(inner, "block_structure")
    keys.misfits += [f"{here}: {row}" for row in inner.misfits]
    return Scheme(tuple(targets), bits, group_size, symmetric, block)


def _of(module: str, schemes: list[Scheme]) -> Scheme:
    """That of a module by its name; else the first, for classes of modules are not in the files."""
    named = (scheme for scheme in schemes if any(_names(target, module) for target in scheme.targets))
    return next(named, schemes[0])


def _names(target: str, module: str) -> bool:
    if not target.startswith("re:"):
        return module == target
    try:
        return re.match(target.removeprefix("re:"), module) is not None
    except re.error as error:
        raise MisfitError(f"target {target!r} is no expression: {error}") from error


def _join(files: Files, stem: str, scheme: Scheme) -> Joined:
    packed, zeros, scales = (f"{stem}.weight_{part}" for part in ("packed", "zero_point", "scale"))
    bits = scheme.bits if packed in files.tensors else 8
    rows, columns = _shape(files, stem, bits)
    group = scheme.group or columns
    groups = -(-columns // group)
    _check_scales(files, scales, rows, groups, FLOATS)
    if packed in files.tensors and (zeros in files.tensors or not scheme.symmetric):
        expect(files, zeros, (-(-rows * bits // 32), groups), WORDS)
    elif zeros in files.tensors or not scheme.symmetric:
        _check_scales(files, zeros, rows, groups, ("I8",))
    names = ("weight", "weight_packed", "weight_scale", "weight_zero_point", "weight_g_idx", "weight_shape")
    return CodeMatrix(
        stem=stem,
        parts=parts_of(files, *(f"{stem}.{name}" for name in names)),
        dtype=f"{scheme.bits} bits",
        rows=rows,
        columns=columns,
        bits=bits,
        group=group,
        scales=files.tensors[scales].dtype,
        symmetric=scheme.symmetric,
        index=read_index(files, f"{stem}.weight_g_idx", columns, group),
        codes=lambda: _codes(files, stem, bits, columns),
        zeros=lambda: _zeros(files, stem, bits, rows, groups),
        scale=lambda: broadcast_scale(files.read(scales), rows, groups),
    ).joined()


def _shape(files: Files, stem: str, bits: int) -> tuple[int, int]:
    """(N, K). Raises MisfitError where the codes are not of that many."""
    packed, said = f"{stem}.weight_packed", f"{stem}.weight_shape"
    if packed not in files.tensors:
        shape = files.tensors[f"{stem}.weight"].shape
        if len(shape) != 2 or 0 in shape:
            raise MisfitError(f"{stem}.weight is {shape}, must be a matrix")
        return shape[0], shape[1]
    expect(files, said, (2,), ("I64", "I32"))
    rows, columns = (int(size) for size in files.read(said))
    if rows < 1 or columns < 1:
        raise MisfitError(f"{said} says ({rows}, {columns})")
    expect(files, packed, (rows, -(-columns * bits // 32)), WORDS)
    return rows, columns


def _check_scales(files: Files, name: str, rows: int, groups: int, dtypes: tuple[str, ...]) -> None:
    shape = files.tensors[name].shape if name in files.tensors else ()
    expect(files, name, shape if is_scale(shape, rows, groups) and name in files.tensors else (rows, groups), dtypes)


def _codes(files: Files, stem: str, bits: int, columns: int) -> Codes:
    if f"{stem}.weight_packed" in files.tensors:
        return np.ascontiguousarray(unpack(files.read(f"{stem}.weight_packed"), bits)[:, :columns])
    codes: Codes = files.read(f"{stem}.weight").view(np.uint8) ^ np.uint8(128)
    return codes


def _zeros(files: Files, stem: str, bits: int, rows: int, groups: int) -> Floats:
    name, middle = f"{stem}.weight_zero_point", np.float32(1 << bits - 1)
    if name not in files.tensors:
        return np.full((rows, groups), middle)
    if f"{stem}.weight_packed" in files.tensors:
        return unpack(files.read(name).T, bits)[:, :rows].T.astype(np.float32)
    return broadcast_scale(files.read(name), rows, groups) + middle
