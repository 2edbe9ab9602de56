"""The engine double, whose first two processes find their port taken; the model's folder counts them."""

import argparse
import socket
from pathlib import Path

from neuron_jax.workers.frames import CommandReader, EngineFailed, LoadEngine, encode
from tests.fakes.engine_double import Double


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().fd) as link:
        reader = CommandReader()
        (load,) = reader.feed(link.recv(1 << 20))
        assert isinstance(load, LoadEngine)
        tries = Path(load.spec.path, "tries")
        with tries.open("a") as file:
            file.write("x")
        if len(tries.read_text()) < 3:
            link.sendall(encode(EngineFailed("port_taken", "another program was quicker")))
            return
        double = Double(link)
        double.obey(load)
        double.serve()


if __name__ == "__main__":
    main()
