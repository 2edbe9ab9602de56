"""What JAX, XLA and CUDA say is told apart; the texts are theirs."""

import pytest

from neuron_jax.workers.faults import classify

ILLEGAL = "INTERNAL: CUDA_ERROR_ILLEGAL_ADDRESS: an illegal memory access was encountered"
NO_CUDA = "Unknown backend: 'cuda' requested, but no platforms that are instances of cuda are present."
NO_PLUGIN = "Unable to initialize backend 'cuda': Backend 'cuda' is not in the list of known backends: cpu, tpu."
TEXTS = [
    ("out_of_memory", "RESOURCE_EXHAUSTED: Out of memory allocating 8589934592 bytes."),
    ("out_of_memory", "INTERNAL: CUDA error: CUDA_ERROR_OUT_OF_MEMORY: out of memory"),
    ("device_error", ILLEGAL),
    ("device_error", "INTERNAL: CUDA_ERROR_LAUNCH_FAILED: unspecified launch failure"),
    ("device_lost", "INTERNAL: CUDA_ERROR_ECC_UNCORRECTABLE: uncorrectable ECC error encountered"),
    ("device_lost", "NVMLError_GpuIsLost: GPU is lost"),
    ("device_busy", "CUDA_ERROR_DEVICE_UNAVAILABLE: CUDA-capable device(s) is/are busy or unavailable"),
    ("cuda_feature_not_enabled", NO_CUDA),
    ("cuda_feature_not_enabled", NO_PLUGIN),
    ("rendezvous_timeout", "DEADLINE_EXCEEDED: Barrier timed out. Id: [Init]Wait_for_all_tasks_to_register::0."),
    ("port_taken", "UNKNOWN: No address added out of total 1 resolved"),
    ("rank_exited", "UNAVAILABLE: The following tasks are unhealthy (stopped sending heartbeats)"),
    ("rank_exited", "FAILED_PRECONDITION: Gloo all-reduce failed: Connection closed by peer [127.0.0.1]:43511"),
    ("internal", "an assertion of ours"),
]


@pytest.mark.parametrize(("kind", "text"), TEXTS)
def test_kind_of_a_text(kind: str, text: str) -> None:
    assert classify(RuntimeError(text)) == kind


def test_pythons_own_memory_error() -> None:
    assert classify(MemoryError()) == "out_of_memory"
