"""The commands of one host: serving, measuring, models' files, and what its ranks need.

Everything a command needs is imported inside it, so that `--help` is quick and a bare install can say what is missing.
Exit codes: 0 done, 1 it did not work out (the message says why), 2 a wrong flag or configuration.
"""

from neuron_jax.cli.app import app, run

__all__ = ["app", "run"]
