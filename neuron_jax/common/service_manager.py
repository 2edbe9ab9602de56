"""What systemd is told of a program: that it is ready, that it is alive, that it is about to end. Knows no program.

https://www.freedesktop.org/software/systemd/man/latest/sd_notify.html, sd_watchdog_enabled.html
"""

import asyncio
import logging
import os
import socket
from collections.abc import Mapping

from attrs import frozen

_log = logging.getLogger(__name__)
READY, STOPPING, ALIVE = "READY=1", "STOPPING=1", "WATCHDOG=1"


@frozen
class ServiceManager:
    """`address` of its socket, None where there is none: then nothing is told. `every`: seconds between signs of life, None
    where nobody waits for them.
    """

    address: str | None = None
    every: float | None = None

    def tell(self, state: str) -> None:
        """One of the words above. That it cannot be told is logged, and changes nothing else; nobody waits for systemd."""
        if self.address is None:
            return
        name = "\0" + self.address[1:] if self.address.startswith("@") else self.address
        try:
            with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM | socket.SOCK_CLOEXEC | socket.SOCK_NONBLOCK) as to:
                to.connect(name)
                to.send(state.encode())
        except OSError as error:
            _log.warning("systemd could not be told %s at %s: %s", state, self.address, error)

    async def signs_of_life(self) -> None:
        """For ever, for as long as the event loop turns; at once at an end where nobody waits for them."""
        while self.every is not None:
            self.tell(ALIVE)
            await asyncio.sleep(self.every)


def service_manager(environ: Mapping[str, str]) -> ServiceManager:
    """The one that started this very process, if any. It is told twice as often as it wants to hear."""
    address = environ.get("NOTIFY_SOCKET") or None
    waits = environ.get("WATCHDOG_USEC", "")
    for_us = environ.get("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if address is None or not for_us or not waits.isdecimal() or not int(waits):
        return ServiceManager(address)
    return ServiceManager(address, int(waits) / 2_000_000)
