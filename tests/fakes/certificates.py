"""Certificates for 127.0.0.1 and localhost, made for one test run; knows no program."""

import datetime as dt
import pathlib

import trustme
from attrs import frozen


@frozen
class Pair:
    """A certificate and its key, as files."""

    cert: pathlib.Path
    key: pathlib.Path


@frozen
class Certificates:
    """`ca` signed all of them but `stranger`, whom `stranger_ca` signed."""

    ca: pathlib.Path
    stranger_ca: pathlib.Path
    server: Pair
    client: Pair
    expired: Pair
    elsewhere: Pair  # for another name
    stranger: Pair


def make(folder: pathlib.Path) -> Certificates:
    """All of them in `folder`."""
    now = dt.datetime.now(dt.UTC)
    past = {"not_before": now - dt.timedelta(days=9), "not_after": now - dt.timedelta(days=1)}
    ours, theirs = trustme.CA(), trustme.CA()
    ours.cert_pem.write_to_path(str(folder / "ca.pem"))
    theirs.cert_pem.write_to_path(str(folder / "stranger_ca.pem"))
    here = ("127.0.0.1", "localhost", "::1")
    return Certificates(
        ca=folder / "ca.pem",
        stranger_ca=folder / "stranger_ca.pem",
        server=_written(folder, "server", ours.issue_cert(*here)),
        client=_written(folder, "client", ours.issue_cert("gateway.example")),
        expired=_written(folder, "expired", ours.issue_cert(*here, **past)),
        elsewhere=_written(folder, "elsewhere", ours.issue_cert("elsewhere.example")),
        stranger=_written(folder, "stranger", theirs.issue_cert(*here)),
    )


def _written(folder: pathlib.Path, name: str, made: trustme.LeafCert) -> Pair:
    pair = Pair(folder / f"{name}.pem", folder / f"{name}.key")
    pair.cert.write_bytes(b"".join(blob.bytes() for blob in made.cert_chain_pems))
    made.private_key_pem.write_to_path(str(pair.key))
    return pair
