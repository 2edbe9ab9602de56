"""Discovery: NVIDIA devices that an engine could use, or the CPU and the reason."""

import pynvml
import pytest

from neuron_jax.hardware.cpu import MIB, read_memory
from neuron_jax.hardware.discover import Sampler, discover
from neuron_jax.hardware.records import Device, DeviceLoad, Process
from tests.fakes.nvml import FakeNvml

yes = lambda: True
no = lambda: False


def test_nvidia_devices_are_listed_with_their_driver() -> None:
    """Name, memory, compute capability, and NVML is closed again."""
    api = FakeNvml()
    hardware = discover(api=api, plugin=yes)

    assert hardware.devices == (Device(0, "Fake 0", "cuda", 80_000, "9.0"), Device(1, "Fake 1", "cuda", 80_000, "9.1"))
    assert (hardware.cuda_version, hardware.driver_version) == ("12.8", "570.86.10")
    assert hardware.cuda_unavailable_reason is None
    assert api.opened == 0


@pytest.mark.parametrize(
    ("error", "words"),
    [
        (pynvml.NVMLError_LibraryNotFound(), "libnvidia-ml"),
        (pynvml.NVMLError_DriverNotLoaded(), "kernel module is not loaded"),
        (pynvml.NVMLError_NoPermission(), "does not start: Insufficient Permissions"),
    ],
)
def test_without_a_driver_the_host_is_a_cpu_and_says_why(error: Exception, words: str) -> None:
    """One device whose memory is the host's."""
    hardware = discover(api=FakeNvml(error=error), plugin=yes)
    (device,) = hardware.devices

    assert (device.kind, device.vram_total_mb) == ("cpu", read_memory().total // MIB)
    assert words in (hardware.cuda_unavailable_reason or "")
    assert hardware.driver_version is None


def test_a_driver_without_jax_for_it_is_told_with_the_remedy() -> None:
    """The versions are still those of the driver."""
    hardware = discover(api=FakeNvml(), plugin=no)

    assert "cortex-jax[cuda12]" in (hardware.cuda_unavailable_reason or "")
    assert [device.kind for device in hardware.devices] == ["cpu"]
    assert hardware.driver_version == "570.86.10"


def test_no_device_is_not_no_driver() -> None:
    """The reason tells them apart."""
    assert (
        discover(api=FakeNvml(count=0), plugin=yes).cuda_unavailable_reason
        == "the NVIDIA driver works but sees no device"
    )


@pytest.mark.parametrize(
    ("visible", "expected"),
    [(None, [0, 1]), ("1", [1]), ("1,0", [1, 0]), ("GPU-1a", [1]), ("0,7,1", [0]), ("GPU-", [])],
)
def test_hidden_devices_are_not_offered(visible: str | None, expected: list[int]) -> None:
    """CUDA_VISIBLE_DEVICES as CUDA reads it: in order, up to the first entry that names no device."""
    hardware = discover(visible=visible, api=FakeNvml(), plugin=yes)

    assert [device.index for device in hardware.devices if device.kind == "cuda"] == expected
    assert ("hides all 2" in (hardware.cuda_unavailable_reason or "")) == (not expected)


def test_a_cpu_can_stand_for_several_devices() -> None:
    """Sharding can be tried without an accelerator."""
    assert [device.index for device in discover(3, api=FakeNvml(count=0)).devices] == [0, 1, 2]


def test_the_load_of_nvidia_devices_is_sampled() -> None:
    """NVML stays open between samples and is closed with the sampler."""
    api = FakeNvml()
    with Sampler(discover(api=api, plugin=yes), api) as sampler:
        first, second = sampler.sample()

    assert first == DeviceLoad(0, 10_000, 70_000, 40, 60, power_w=250.5, energy_j=7000.0)
    assert second == DeviceLoad(1, 10_001, 69_999, 41, 61, power_w=250.501, energy_j=7000.001)
    assert api.opened == 0


def test_processes_and_their_memory_are_told() -> None:
    """A process of which the driver does not know the use is left out."""
    api = FakeNvml()
    api.processes = {1: {77: 500, 78: None}}
    with Sampler(discover(api=api, plugin=yes), api) as sampler:
        first, second = sampler.sample()

    assert (first.processes, second.processes) == ((), (Process(77, 500),))


def test_a_device_that_fell_off_the_bus_is_told_and_not_raised() -> None:
    """The others are sampled as before, and so is it when it is back."""
    api = FakeNvml()
    with Sampler(discover(api=api, plugin=yes), api) as sampler:
        api.lost = {0}
        lost, fine = sampler.sample()
        api.lost = set()
        back, _ = sampler.sample()

    assert lost == DeviceLoad(0, 0, 0, None, None, lost="GPU is lost")
    assert (fine.lost, back.lost) == (None, None)


def test_a_device_that_shares_the_hosts_memory_reports_the_hosts() -> None:
    """What a device does not say is None, never 0."""
    api = FakeNvml(count=1, quiet=True)
    hardware = discover(api=api, plugin=yes)
    with Sampler(hardware, api) as sampler:
        (load,) = sampler.sample()

    assert hardware.devices[0].vram_total_mb == read_memory().total // MIB
    assert (load.utilization_pct, load.temp_c, load.power_w, load.energy_j) == (None,) * 4


def test_the_load_of_the_cpu_is_the_hosts() -> None:
    """Every device of kind cpu shows the same memory."""
    with Sampler(discover(2, api=FakeNvml(count=0))) as sampler:
        first, second = sampler.sample()

    assert (first.index, second.index) == (0, 1)
    assert (first.vram_used_mb, first.vram_free_mb) == (second.vram_used_mb, second.vram_free_mb)
    assert first.vram_used_mb + first.vram_free_mb == pytest.approx(read_memory().total // MIB, abs=1)
    assert 0 <= (first.utilization_pct or 0) <= 100


def test_this_host_can_be_described() -> None:
    """Whatever the machine is, there is at least one device, and a reason exactly when none of it is CUDA."""
    hardware = discover()

    assert hardware.hostname
    assert hardware.os
    assert hardware.kernel
    assert (hardware.cuda_unavailable_reason is None) == (hardware.devices[0].kind == "cuda")
