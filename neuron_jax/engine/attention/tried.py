"""The process that tries a kernel: a case comes in, a line goes out that says why the kernel will not do. Knows no engine."""

import json
import sys

from neuron_jax.engine.attention.apart import asked_for
from neuron_jax.engine.attention.choose import RUNGS, trial


def main() -> None:
    """Reads what `apart.asking` made, and answers {why, final}: null where it will do, and whether it would be so again."""
    name, case = asked_for(sys.stdin.read())
    why = trial(next(rung for rung in RUNGS if rung.name == name), case)
    sys.stdout.write(json.dumps({"why": why, "final": why is None or why.startswith("differs")}) + "\n")


if __name__ == "__main__":
    main()
