"""TLS files as contexts, and what is wrong with them or with the other side, in words; reads files, opens no connection."""

import contextlib
import os
import pathlib
import re
import ssl
from typing import Literal

HANDSHAKE_TURNS = 4
EXPIRED = 10  # X509_V_ERR_CERT_HAS_EXPIRED
OTHER_NAME = (62, 64)  # X509_V_ERR_HOSTNAME_MISMATCH, X509_V_ERR_IP_ADDRESS_MISMATCH
UNKNOWN_SIGNER = (18, 19, 20, 21)  # of the certificate itself, or somewhere up its chain
ALERTS = {
    "CERTIFICATE_REQUIRED": "it wants a client certificate: tls_cert and tls_key",
    "UNKNOWN_CA": "it does not know who signed our certificate, tls_cert",
    "CERTIFICATE_EXPIRED": "our certificate, tls_cert, has expired",
    "BAD_CERTIFICATE": "it does not take our certificate, tls_cert",
    "WRONG_VERSION_NUMBER": "it does not speak TLS there: http:// instead of https://",
    "RECORD_LAYER_FAILURE": "it does not speak TLS there: http:// instead of https://",
}
"""What a peer says, or is, by the end of OpenSSL's name for it."""
HUNG_UP = "it hung up: it may want a client certificate that it knows, tls_cert and tls_key"
"""Where what a peer said was lost with the connection, which it cuts at once."""
Path = str | os.PathLike[str]
Which = Literal["cert", "key", "ca", "client_ca"]


class TlsFileError(Exception):
    """A file cannot be used. `which` of the keys that begin with tls_ names it."""

    def __init__(self, which: Which, message: str) -> None:
        super().__init__(message)
        self.which = which


def server_context(cert: Path, key: Path | None = None, client_ca: Path | None = None) -> ssl.SSLContext:
    """For listening. `cert`: the chain in PEM, and the key too where `key` is left out. With `client_ca` whoever connects
    needs a certificate that it signed. Raises TlsFileError."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.set_alpn_protocols(["http/1.1"])
    _show(context, cert, key)
    if client_ca:
        _trust(context, "client_ca", client_ca)
        context.verify_mode = ssl.CERT_REQUIRED
    return context


def client_context(ca: Path | None = None, cert: Path | None = None, key: Path | None = None) -> ssl.SSLContext:
    """For connecting. `ca`: who must have signed the other's certificate, else whom the system trusts; `cert` and `key` are
    ours, for one that asks. Raises TlsFileError."""
    if ca:
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
        _trust(context, "ca", ca)
    else:
        context = ssl.create_default_context()
    context.set_alpn_protocols(["http/1.1"])
    if cert:
        _show(context, cert, key)
    return context


def words(error: BaseException, ca: str = "tls_ca") -> str | None:
    """Why a connection over TLS failed, in one line; None where TLS is not the reason. `ca`: what names whom to trust."""
    seen: BaseException | None = error
    while seen is not None and not isinstance(seen, ssl.SSLError):
        seen = seen.__cause__ or seen.__context__
    if seen is None:
        return None
    if not isinstance(seen, ssl.SSLCertVerificationError):
        reason = seen.reason or ""
        return next((told for name, told in ALERTS.items() if reason.endswith(name)), f"TLS failed: {reason or seen}")
    if seen.verify_code == EXPIRED:
        return "its certificate has expired"
    if seen.verify_code in OTHER_NAME:
        return f"its certificate is for another name: {seen.verify_message}"
    if seen.verify_code in UNKNOWN_SIGNER:
        return f"nobody who is known here signed its certificate: {ca} names who did"
    return f"its certificate cannot be used: {seen.verify_message}"


def _show(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    if b"-----BEGIN CERTIFICATE-----" not in _read("cert", cert):
        raise TlsFileError("cert", f"{cert} has no certificate in PEM")
    which: Which = "key" if key else "cert"
    found = re.search(rb"-----BEGIN [A-Z ]*PRIVATE KEY-----\r?\n(Proc-Type: 4,ENCRYPTED)?", _read(which, key or cert))
    if found is None:
        raise TlsFileError(
            which, f"{key or cert} has no private key in PEM" + "; tls_key names its file" * (key is None)
        )
    if b"ENCRYPTED" in found[0]:
        raise TlsFileError(which, f"{key or cert} is encrypted: a key without a passphrase is needed")
    try:
        context.load_cert_chain(cert, key)
    except ssl.SSLError as error:
        if error.reason == "KEY_VALUES_MISMATCH":
            raise TlsFileError(which, f"{key or cert} is not the key of the certificate in {cert}") from error
        raise TlsFileError("cert", f"{cert} cannot be used: {error.reason or error}") from error
    with contextlib.suppress(ssl.SSLError):
        _meet(context, cert, key)


def _trust(context: ssl.SSLContext, which: Which, ca: Path) -> None:
    _read(which, ca)
    try:
        context.load_verify_locations(ca)
    except ssl.SSLError as error:
        raise TlsFileError(which, f"{ca} has no certificate in PEM") from error
    context.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN  # whatever is in the file is trusted, a root or not


def _read(which: Which, path: Path) -> bytes:
    try:
        return pathlib.Path(path).read_bytes()
    except OSError as error:
        raise TlsFileError(which, f"{path} cannot be read: {error.strerror}") from error


def _meet(context: ssl.SSLContext, cert: Path, key: Path | None) -> None:
    """A handshake in memory with somebody who trusts just this certificate, since OpenSSL looks at no date before that.

    Raises TlsFileError for one that has expired; what else may be wrong with it is its peers' affair.
    """
    serving = context.protocol == ssl.PROTOCOL_TLS_SERVER
    server, client = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER), ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.check_hostname = False
    client.verify_mode = ssl.CERT_NONE
    for one in (server, client):
        one.load_cert_chain(cert, key)
    judge = client if serving else server
    judge.verify_mode = ssl.CERT_REQUIRED
    judge.verify_flags |= ssl.VERIFY_X509_PARTIAL_CHAIN
    judge.load_verify_locations(cert)
    there, back = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (client.wrap_bio(back, there), server.wrap_bio(there, back, server_side=True))
    try:
        for end in ends * HANDSHAKE_TURNS:
            with contextlib.suppress(ssl.SSLWantReadError):
                end.do_handshake()
    except ssl.SSLCertVerificationError as error:
        if error.verify_code == EXPIRED:
            raise TlsFileError("cert", f"{cert} has expired") from error
        raise
