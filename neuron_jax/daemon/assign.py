"""Which of this host's devices an engine gets; pure, must not know memory shares, engines or clocks."""

from collections import Counter
from collections.abc import Mapping, Sequence

from neuron_jax.config import ModelSpec
from neuron_jax.errors import LoadError
from neuron_jax.hardware.records import DeviceLoad, Hardware


def assign(
    spec: ModelSpec,
    hardware: Hardware,
    loads: Sequence[DeviceLoad],
    residents: Mapping[int, int],
    lost: Mapping[int, str] | None = None,
) -> tuple[int, ...]:
    """This host's devices for one engine of `spec`: those it names, else the emptiest of those that are not `lost`.

    Fewer than it is spread over where other hosts may lend the rest. `residents`: engines per device. Raises LoadError.
    """
    gone = lost or {}
    known = [device.index for device in hardware.devices if device.index not in gone]
    if spec.devices is not None:
        return _named(spec, spec.devices, known, gone)
    if spec.tensor_parallel > len(known) and not (spec.hosts and known):
        raise LoadError(
            "bad_devices",
            f"tensor_parallel is {spec.tensor_parallel}, and this host has {len(known)} device(s): {known}"
            + ("" if not gone else f"; lost: {_words(gone)}")
            + ". On a CPU, engine.cpu_devices in the neuron's config splits it for trying; hosts names peers that may "
            "lend some.",
        )
    free = {load.index: load.vram_free_mb for load in loads}
    # Models that are still loading have not taken their memory yet, so the fewest models come first.
    ranked = sorted(known, key=lambda index: (residents.get(index, 0), -free.get(index, 0), index))
    return tuple(sorted(ranked[: spec.tensor_parallel]))


def assign_all(
    spec: ModelSpec,
    hardware: Hardware,
    loads: Sequence[DeviceLoad],
    residents: Mapping[int, int],
    lost: Mapping[int, str] | None = None,
) -> tuple[tuple[int, ...], ...]:
    """The devices of each replica of `spec`: GPUs are for one replica only, CPU devices may be shared. Raises LoadError."""
    if spec.replicas == 1:
        return (assign(spec, hardware, loads, residents, lost),)
    alone = any(device.kind == "cuda" for device in hardware.devices)
    if spec.devices is not None:
        return _dealt(spec, spec.devices, hardware, lost or {}, alone=alone)
    wanted, found = spec.replicas * spec.tensor_parallel, len(hardware.devices) - len(lost or {})
    if alone and wanted > found:
        raise LoadError("bad_devices", f"{spec.replicas} replicas need {wanted} devices, and this host has {found}.")
    crowd: Counter[int] = Counter(residents)
    chosen: list[tuple[int, ...]] = []
    for _ in range(spec.replicas):
        taken = {index: "" for devices in chosen for index in devices} if alone else {}
        chosen.append(assign(spec, hardware, loads, crowd, {**(lost or {}), **taken}))
        crowd.update(chosen[-1])
    return tuple(chosen)


def _dealt(
    spec: ModelSpec, devices: tuple[int, ...], hardware: Hardware, lost: Mapping[int, str], *, alone: bool
) -> tuple[tuple[int, ...], ...]:
    """The named devices in equal parts, or, where they may be shared, all of them to each."""
    known = [device.index for device in hardware.devices if device.index not in lost]
    size = spec.tensor_parallel
    if len(devices) == size * spec.replicas:
        parts = tuple(devices[at : at + size] for at in range(0, len(devices), size))
    elif len(devices) == size and not alone:
        parts = (devices,) * spec.replicas
    else:
        raise LoadError(
            "bad_devices", f"{spec.replicas} replicas of {size} device(s) each, and {len(devices)} devices are named."
        )
    return tuple(_named(spec, part, known, lost) for part in parts)


def _named(spec: ModelSpec, devices: tuple[int, ...], known: Sequence[int], lost: Mapping[int, str]) -> tuple[int, ...]:
    gone = {index: lost[index] for index in devices if index in lost}
    if gone:
        raise LoadError("bad_devices", f"devices {list(devices)} were named, and of these are lost: {_words(gone)}.")
    missing = [index for index in devices if index not in known]
    if missing:
        raise LoadError("bad_devices", f"devices {list(devices)}: {missing} are not here; this host has {list(known)}.")
    if spec.tensor_parallel not in (1, len(devices)) and not (spec.hosts and spec.tensor_parallel > len(devices)):
        raise LoadError(
            "bad_devices", f"tensor_parallel is {spec.tensor_parallel}, and {len(devices)} devices are named; give one."
        )
    return devices


def _words(lost: Mapping[int, str]) -> str:
    return "; ".join(f"device {index} ({reason})" for index, reason in lost.items())
