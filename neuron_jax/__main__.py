"""The program `neuron`: hands the command line and the environment to the CLI and exits with its answer."""

import os
import sys

from neuron_jax.cli import run


def main() -> None:
    """The console script's entry."""
    sys.exit(run(sys.argv[1:], os.environ))


if __name__ == "__main__":
    main()
