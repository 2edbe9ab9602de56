"""What went wrong in an engine process, in one word; knows the texts of JAX, XLA, CUDA and NCCL, must not know processes.

| kind | what it means | what helps |
|---|---|---|
| bad_checkpoint, does_not_fit | the model cannot be served so | another checkpoint, another plan |
| out_of_memory | the device was full | less of it for pages, once |
| device_error | the CUDA context is broken for good: an illegal address, a failed launch | a new process |
| device_lost | the device itself: off the bus, uncorrectable memory | other devices |
| device_busy | another process holds the device for itself | waiting, or other devices |
| cuda_feature_not_enabled | CUDA was asked for, and this JAX has no CUDA backend | installing it; never a silent CPU |
| rendezvous_timeout | not every rank came to the rendezvous in time | a peer, a firewall, an address |
| port_taken | another program has the port of the rendezvous | another port |
| sanity_mismatch | a rank observed another sum than there are ranks | the collectives do not work: nothing may be served |
| rank_mismatch | the ranks would serve different things | the same files and versions on all hosts |
| rank_exited | a rank ended, with its last words | a new group |
| rank_silent | a rank has said nothing for too long: stopped, or wedged | a new group |
| step_timeout | a step, or a collective in it, took longer than it may | a new group |
| internal | everything else | a new process; its log |

The texts are those of jax 0.10 and 0.11 and of CUDA 12.
"""

TEXTS: dict[str, tuple[str, ...]] = {
    "cuda_feature_not_enabled": (
        "unknown backend: 'cuda'",
        "unknown backend cuda",
        "unable to initialize backend 'cuda'",
        "backend 'cuda' is not in the list of known backends",
        "no supported devices found for platform cuda",
        "cuda_error_no_device",
    ),
    "port_taken": ("address already in use", "failed to add port", "could not start grpc server", "no address added"),
    "device_lost": (
        "gpu is lost",
        "gpuislost",
        "fallen off the bus",
        "cuda_error_ecc_uncorrectable",
        "cuda_error_nvlink_uncorrectable",
        "cuda_error_external_device",
        "cuda_error_system_not_ready",
        "cuda_error_contained",
    ),
    "device_busy": ("cuda_error_device_unavailable", "busy or unavailable"),
    "device_error": (
        "cuda_error_illegal_address",
        "cuda_error_launch_failed",
        "cuda_error_launch_timeout",
        "cuda_error_assert",
        "cuda_error_misaligned_address",
        "cuda_error_illegal_instruction",
        "cuda_error_invalid_pc",
        "cuda_error_invalid_address_space",
        "cuda_error_hardware_stack_error",
        "cuda_error_context_is_destroyed",
        "cuda_error_unknown",
        "illegal memory access",
        "unspecified launch failure",
    ),
    "out_of_memory": ("resource_exhausted", "cuda_error_out_of_memory", "out of memory", "failed to allocate"),
    "rendezvous_timeout": ("deadline_exceeded", "barrier timed out", "gettopology"),
    "rank_exited": (
        "stopped sending heartbeats",
        "connection reset by peer",
        "connection closed by peer",
        "connection refused",
        "broken pipe",
        "gloo",
        "nccl",
        "unavailable:",
    ),
}
"""What the texts of a kind contain, in lower case; the first kind that fits says it."""


def classify(error: BaseException) -> str:
    """The kind of an exception that JAX, XLA or a library under it raised; `internal` where nothing is known of it."""
    if isinstance(error, MemoryError):
        return "out_of_memory"
    text = str(error).lower()
    return next((kind for kind, needles in TEXTS.items() if any(needle in text for needle in needles)), "internal")
