"""What opens weights is light: the daemon and the command line read headers too, and have no JAX."""

import subprocess
import sys


def test_opening_weights_imports_no_jax() -> None:
    """The types of stored tensors, and what families read of a config, come from models without JAX."""
    names = "neuron_jax.weights.describe, neuron_jax.weights.checkpoint, models.registry"
    probe = f"import sys, {names}; assert list(models.registry.families()); print('jax' in sys.modules)"
    done = subprocess.run([sys.executable, "-c", probe], capture_output=True, text=True, timeout=30, check=False)

    assert (done.returncode, done.stdout) == (0, "False\n"), done.stderr
