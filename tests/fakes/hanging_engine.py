"""An engine process without JAX that says it is ready, and then that its step does not end."""

import argparse
import socket

from neuron_jax.workers.frames import CommandReader, Pulse, Ready, encode


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("--fd", type=int, required=True)
    with socket.socket(fileno=parser.parse_args().fd) as link:
        reader = CommandReader()
        while not reader.feed(link.recv(1 << 20)):
            pass
        ready = Ready(512, 1, 16, 32, "none", "", "float32", "", "xla", "", "float32", ("cpu:0",), (), 0.0)
        link.sendall(encode(ready))
        link.sendall(encode(Pulse(busy=1.5, allowed=1.0, what="step 4")))
        while link.recv(1 << 20):
            pass


if __name__ == "__main__":
    main()
