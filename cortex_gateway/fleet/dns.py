"""SRV records as a name server is asked for them and answers: bytes in, records out. Pure; knows no socket and no node.

Source: RFC 1035 section 4 (messages), RFC 2782 (SRV), RFC 6891 (a longer answer over UDP).
"""

import struct

from attrs import frozen

SRV, OPT, INTERNET = 33, 41, 1
LONGEST_DATAGRAM = 4096  # bytes that we take in one
_RECURSIVE, _ANSWER, _CUT, _CODE = 0x0100, 0x8000, 0x0200, 0x000F
_NO_SUCH_NAME = 3
_POINTER = 0xC0
_HEAD = struct.Struct("!6H")
_RECORD = struct.Struct("!HHIH")
_TARGET = struct.Struct("!3H")


class DnsError(Exception):
    """What came is no answer to the question, or tells that there is none."""


class TruncatedError(DnsError):
    """The answer is longer than a datagram: ask by TCP."""


@frozen(order=True)
class Service:
    """One target of a service, the preferred first."""

    priority: int
    weight: int
    port: int
    target: str  # without the last dot


def question(name: str, number: int) -> bytes:
    """Asks for the SRV records of `name`. Raises DnsError for what is no name."""
    labels = name.rstrip(".").encode("ascii", "replace").split(b".")
    if not all(0 < len(label) < 64 for label in labels) or sum(len(label) + 1 for label in labels) > 254:
        raise DnsError(f"{name!r} is no DNS name")
    asked = b"".join(bytes([len(label)]) + label for label in labels) + b"\0"
    head = _HEAD.pack(number, _RECURSIVE, 1, 0, 0, 1)
    return head + asked + struct.pack("!2H", SRV, INTERNET) + b"\0" + _RECORD.pack(OPT, LONGEST_DATAGRAM, 0, 0)


def answers(message: bytes, number: int) -> tuple[Service, ...]:
    """The services, each once, in order; none where the name is not known. Raises TruncatedError, DnsError."""
    try:
        found, flags, questions, records, _, _ = _HEAD.unpack_from(message)
        if found != number or not flags & _ANSWER:
            raise DnsError("that is no answer to the question")
        if flags & _CUT:
            raise TruncatedError("the answer is longer than a datagram")
        if flags & _CODE not in (0, _NO_SUCH_NAME):
            raise DnsError(f"the name server refuses with code {flags & _CODE}")
        at = _HEAD.size
        for _ in range(questions):
            at = _name(message, at)[1] + 4
        services = set()
        for _ in range(records):
            service, at = _record(message, at)
            services |= {service} if service else set()
    except (struct.error, IndexError, UnicodeDecodeError):
        raise DnsError("the answer is cut short or garbled") from None
    return tuple(sorted(services))


def _record(message: bytes, at: int) -> tuple[Service | None, int]:
    """The record at `at`, None where it is of another type; and where the next begins."""
    at = _name(message, at)[1]
    kind, world, _, length = _RECORD.unpack_from(message, at)
    at += _RECORD.size
    if (kind, world) != (SRV, INTERNET):
        return None, at + length
    priority, weight, port = _TARGET.unpack_from(message, at)
    target = _name(message, at + _TARGET.size)[0]
    return (Service(priority, weight, port, target) if target and port else None), at + length


def _name(message: bytes, at: int) -> tuple[str, int]:
    """The name at `at`, and where what follows it begins. A pointer leads backwards only, so that every name ends."""
    labels: list[str] = []
    after: int | None = None
    while length := message[at]:
        if length >= _POINTER:
            to = (length - _POINTER) << 8 | message[at + 1]
            if to >= at:
                raise DnsError("a name points forwards")
            after, at = after or at + 2, to
            continue
        label = message[at + 1 : at + 1 + length]
        if length > 63 or len(label) < length:
            raise DnsError("a label is too long")
        labels.append(label.decode("ascii"))
        at += 1 + length
    return ".".join(labels), after or at + 1
