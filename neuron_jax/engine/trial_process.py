"""The process that tries kernels: reads what to try, writes a line with each verdict. Knows where trials are, no engine."""

import json
import os
import signal
import sys
from collections.abc import Callable, Mapping
from typing import Any

import jax
from attrs import asdict

from neuron_jax.engine import drawing, expert_products, products, recurring
from neuron_jax.engine.attention import choose, storing
from neuron_jax.engine.trials import READY, Verdict

TRIALS: dict[str, Callable[[Mapping[str, Any], Any], Verdict]] = {
    "attention": choose.verdict,
    "drawing": drawing.verdict,
    "experts": expert_products.verdict,
    "products": products.verdict,
    "recurring": recurring.verdict,
    "storing": storing.verdict,
}
"""What is asked and the device it is tried on -> what came of it."""


def main() -> None:
    """Reads what `trials.tried` asks. A trial that takes too long ends the process."""
    asked = json.load(sys.stdin)
    answers = os.fdopen(os.dup(1), "w")
    os.dup2(2, 1)  # whatever a compiler prints is no answer
    jax.config.update("jax_platforms", asked["platform"])
    device = jax.local_devices()[asked["device"]]
    jax.config.update("jax_default_device", device)
    print(READY, file=answers, flush=True)
    for subject, what in asked["trials"]:
        signal.alarm(asked["seconds"])
        verdict = TRIALS[subject](what, device)
        signal.alarm(0)
        print(json.dumps(asdict(verdict)), file=answers, flush=True)


if __name__ == "__main__":
    main()
