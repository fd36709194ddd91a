"""TLS contexts, certificate facts, and the reason why a handshake failed. No sockets of its own, no gevent, no protocol.

`ssl` is looked up when a function runs: in the broker, whose standard library gevent has patched, the contexts made here
are therefore gevent's; in clients and workers they are the standard library's.
"""

from __future__ import annotations

import os
import ssl
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING

from greenroom.errors import ConfigError

if TYPE_CHECKING:
    from cryptography import x509

#: What both sides must agree on in the handshake (RFC 7301); a peer that does not offer it is not one of ours.
ALPN = "greenroom/1"

#: Every value that `rejection_reason` returns, in the order in which the security panel shows them.
REJECTION_REASONS = (
    "plain_http",       # an HTTP request without TLS
    "plain_tcp",        # other bytes that are not TLS
    "old_tls",          # a peer that speaks no TLS 1.3
    "no_certificate",   # a client certificate was required and none was sent
    "unknown_ca",       # the peer's certificate was not signed by a CA that we trust
    "bad_certificate",  # the peer's certificate is expired, for another purpose or for another host name
    "peer_refused_us",  # the peer sent an alert, most often because it does not trust our CA
    "alpn",             # TLS went well, but the peer does not speak greenroom/1
    "timeout",          # the handshake was not finished in time
    "closed",           # the peer went away in the middle, or without a word
    "other",
)

_GENERATE = "python certs/gen_certs.py"
_HTTP_STARTS = (b"GET ", b"POST ", b"HEAD ", b"PUT ", b"DELETE ", b"OPTIONS ", b"PATCH ", b"TRACE ", b"CONNECT ",
                b"PRI ", b"HTTP/")
# First byte of a TLS record that may open a conversation: alert and handshake (RFC 8446, 5.1).
_TLS_FIRST_BYTES = (0x15, 0x16)
# OpenSSL's names for "that was no TLS record"; which one it is depends on the bytes and on its version.
_NOT_TLS = {"WRONG_VERSION_NUMBER", "UNKNOWN_PROTOCOL", "BAD_RECORD_TYPE", "PACKET_LENGTH_TOO_LONG",
            "RECORD_LAYER_FAILURE"}
_HTTP = {"HTTP_REQUEST", "HTTPS_PROXY_REQUEST"}
_OLD_TLS = {"UNSUPPORTED_PROTOCOL", "WRONG_SSL_VERSION", "VERSION_TOO_LOW", "TLSV1_ALERT_PROTOCOL_VERSION"}
_NO_CERTIFICATE = {"PEER_DID_NOT_RETURN_A_CERTIFICATE", "TLSV13_ALERT_CERTIFICATE_REQUIRED"}
_ALPN = {"NO_APPLICATION_PROTOCOL", "TLSV1_ALERT_NO_APPLICATION_PROTOCOL"}
_CLOSED = {"UNEXPECTED_EOF_WHILE_READING"}
# The last one is what OpenSSL 3 says of an RSA key with an ECDSA certificate.
_KEY_DOES_NOT_FIT = {"KEY_VALUES_MISMATCH", "KEY_TYPE_MISMATCH", "NO_CERTIFICATE_ASSIGNED"}
# X509_V_ERR_…: unable to get issuer (2, 20), self-signed (18, 19), unable to verify the first certificate (21).
_UNKNOWN_CA_CODES = {2, 18, 19, 20, 21}


@dataclass(frozen=True, slots=True)
class CertificateInfo:
    """What a person wants to know of a certificate; made by `describe_certificate`."""

    subject: str        #: RFC 4514, such as "CN=localhost,O=Greenroom"
    issuer: str         #: RFC 4514
    sans: list[str]     #: subject alternative names: host names and IP addresses as text
    serial: str         #: lower-case hexadecimal
    sha256: str         #: fingerprint of the DER form, upper-case hexadecimal with colons
    not_before: float   #: Unix seconds
    not_after: float    #: Unix seconds
    key_type: str       #: "ECDSA P-256", "RSA 2048", "Ed25519" …


def server_context(cert_file: str | Path, key_file: str | Path,
                   client_ca: str | Path | None = None) -> ssl.SSLContext:
    """Make the broker's context: TLS 1.3 only, ALPN, no session tickets.

    Args:
        cert_file: PEM, the server certificate, followed by intermediate certificates if there are any.
        key_file: PEM, its private key without a passphrase, readable by its owner only.
        client_ca: PEM with the CAs whose client certificates are accepted; one is then required of every peer. None
            accepts peers without a certificate.

    Raises:
        ConfigError: a file is missing, unreadable, not PEM, readable by others (key), does not fit the other one or is a client's
            certificate; the sentence names the file and what mends it.
    """
    context = _bare_context(ssl.PROTOCOL_TLS_SERVER)
    # A resumed handshake saves 0.05 ms of 0.29, and tickets outlive a change of certificates.
    context.num_tickets = 0
    _load_pair(context, Path(cert_file), Path(key_file))
    _check_purpose(Path(cert_file))
    if client_ca is not None:
        context.verify_mode = ssl.CERT_REQUIRED
        _load_ca(context, Path(client_ca))
    return context


def client_context(ca_file: str | Path, cert_file: str | Path | None = None,
                   key_file: str | Path | None = None) -> ssl.SSLContext:
    """Make the context of clients and workers: TLS 1.3, ALPN, chain and host name verified. There is no way around that.

    Args:
        ca_file: PEM with the CA that signed the broker's certificate (`ca.crt`); the system's CAs are not trusted.
        cert_file, key_file: a client certificate and its key, for a broker that requires one; both or neither.

    Raises:
        ConfigError: as `server_context`, and if only one of `cert_file` and `key_file` is given.
    """
    if (cert_file is None) != (key_file is None):
        raise ConfigError("a client certificate needs both its certificate file and its key file")
    # This protocol constant means CERT_REQUIRED and check_hostname.
    context = _bare_context(ssl.PROTOCOL_TLS_CLIENT)
    _load_ca(context, Path(ca_file))
    if cert_file is not None and key_file is not None:
        _load_pair(context, Path(cert_file), Path(key_file))
    return context


def check_alpn(sock: ssl.SSLSocket) -> bool:
    """Say whether the peer agreed to `greenroom/1`. OpenSSL lets a handshake without a common protocol succeed, so ask."""
    return sock.selected_alpn_protocol() == ALPN


def describe_certificate(path: str | Path) -> CertificateInfo:
    """Read the first certificate in a PEM file.

    Raises:
        ConfigError: the file is missing, unreadable or holds no certificate.
    """
    from cryptography.hazmat.primitives import hashes

    certificate = _load_certificate(Path(path))
    return CertificateInfo(
        subject=certificate.subject.rfc4514_string(),
        issuer=certificate.issuer.rfc4514_string(),
        sans=_subject_alternative_names(certificate),
        serial=f"{certificate.serial_number:x}",
        sha256=certificate.fingerprint(hashes.SHA256()).hex(":").upper(),
        not_before=certificate.not_valid_before_utc.timestamp(),
        not_after=certificate.not_valid_after_utc.timestamp(),
        key_type=_key_type(certificate),
    )


def days_left(info: CertificateInfo, now: float) -> float:
    """Return the days from `now` (Unix seconds) until the certificate expires; negative if it has expired."""
    return (info.not_after - now) / 86400


def rejection_reason(exc: BaseException, first_bytes: bytes = b"") -> str:
    """Classify a failed handshake, seen from either side, as one of `REJECTION_REASONS`.

    Args:
        exc: what the handshake, or the first read after it, raised. (In TLS 1.3 a client learns only at its first read
            that its certificate was refused.)
        first_bytes: the first bytes that the peer sent, if the caller peeked at them. They tell apart what OpenSSL does
            not: most HTTP methods, and a few stray bytes before the end. Empty if unknown.

    Returns:
        Never "alpn" for a handshake that succeeded without a common protocol: ask `check_alpn` after it.
    """
    if first_bytes and first_bytes[0] not in _TLS_FIRST_BYTES:
        return "plain_http" if first_bytes.startswith(_HTTP_STARTS) else "plain_tcp"
    if _is_timeout(exc):
        return "timeout"
    if isinstance(exc, ssl.SSLCertVerificationError):
        return "unknown_ca" if getattr(exc, "verify_code", 0) in _UNKNOWN_CA_CODES else "bad_certificate"
    if isinstance(exc, (ssl.SSLEOFError, ssl.SSLZeroReturnError, ssl.SSLSyscallError, ConnectionError, EOFError)):
        return "closed"
    if isinstance(exc, ssl.SSLError):
        # The attribute is missing, not None, where Python and not OpenSSL made the error.
        return _reason_of_openssl(getattr(exc, "reason", None) or "")
    return "other"


def _reason_of_openssl(reason: str) -> str:
    for names, answer in ((_HTTP, "plain_http"), (_NOT_TLS, "plain_tcp"), (_OLD_TLS, "old_tls"),
                          (_NO_CERTIFICATE, "no_certificate"), (_ALPN, "alpn"), (_CLOSED, "closed")):
        if reason in names:
            return answer
    return "peer_refused_us" if "ALERT" in reason else "other"


def _is_timeout(exc: BaseException) -> bool:
    # gevent.Timeout is no TimeoutError, and gevent is not imported here: known by its name.
    return isinstance(exc, TimeoutError) or any(cls.__name__ == "Timeout" for cls in type(exc).__mro__)


def _bare_context(protocol: int) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.options |= ssl.OP_NO_COMPRESSION | ssl.OP_NO_RENEGOTIATION
    context.set_alpn_protocols([ALPN])
    return context


def _load_pair(context: ssl.SSLContext, cert_file: Path, key_file: Path) -> None:
    _read_pem(cert_file, "certificate", b"CERTIFICATE")
    key = _read_pem(key_file, "private key", b"PRIVATE KEY")
    if b"ENCRYPTED" in key:
        # OpenSSL would ask for the passphrase on the terminal, and a service would hang there.
        raise ConfigError(f"private key {key_file} is protected by a passphrase: "
                          f"decrypt it, or make another with `{_GENERATE}`")
    _check_key_mode(key_file)
    try:
        context.load_cert_chain(cert_file, key_file)
    except ssl.SSLError as exc:
        if exc.reason in _KEY_DOES_NOT_FIT:
            raise ConfigError(f"private key {key_file} does not belong to certificate {cert_file}: "
                              f"give files that fit, or make both anew with `{_GENERATE} --force`") from exc
        raise ConfigError(_not_usable(cert_file, "certificate", f"or its private key {key_file}: {exc}")) from exc


def _load_ca(context: ssl.SSLContext, ca_file: Path) -> None:
    _read_pem(ca_file, "CA certificate", b"CERTIFICATE")
    try:
        context.load_verify_locations(ca_file)
    except ssl.SSLError as exc:
        raise ConfigError(_not_usable(ca_file, "CA certificate", str(exc))) from exc


def _read_pem(path: Path, what: str, label: bytes) -> bytes:
    try:
        content = path.read_bytes()
    except FileNotFoundError as exc:
        raise ConfigError(f"{what} {path} does not exist: make it with `{_GENERATE}`") from exc
    except OSError as exc:
        raise ConfigError(f"{what} {path} cannot be read ({exc.strerror}): "
                          f"mend its permissions, or make it with `{_GENERATE}`") from exc
    # A label may have words before it: "EC PRIVATE KEY".
    if b"-----BEGIN " not in content or label + b"-----" not in content:
        raise ConfigError(_not_usable(path, what, f"it holds no PEM block {label.decode()}"))
    return content


def _check_key_mode(key_file: Path) -> None:
    if os.name != "posix":
        return
    mode = key_file.stat().st_mode & 0o777
    if mode & 0o077:
        raise ConfigError(f"private key {key_file} is open to other users (mode {mode:04o}): run `chmod 600 {key_file}`, "
                          f"and if they may have read it, make another with `{_GENERATE} --force`")


def _not_usable(path: Path, what: str, why: str) -> str:
    return f"{what} {path} cannot be used ({why}): give a PEM file, or make it with `{_GENERATE} --force`"


def _load_certificate(path: Path) -> x509.Certificate:
    # Imported here because only the broker asks, and clients and workers should not pay for the import.
    from cryptography import x509

    try:
        return x509.load_pem_x509_certificate(_read_pem(path, "certificate", b"CERTIFICATE"))
    except ValueError as exc:
        raise ConfigError(_not_usable(path, "certificate", str(exc))) from exc


def _check_purpose(path: Path) -> None:
    """Refuse a certificate for clients only: a broker that shows it starts, and is then refused by everybody."""
    from cryptography import x509
    from cryptography.x509.oid import ExtendedKeyUsageOID

    try:
        usages = set(_load_certificate(path).extensions.get_extension_for_class(x509.ExtendedKeyUsage).value)
    except x509.ExtensionNotFound:  # then it is for everything (RFC 5280, 4.2.1.12)
        return
    if not usages & {ExtendedKeyUsageOID.SERVER_AUTH, ExtendedKeyUsageOID.ANY_EXTENDED_KEY_USAGE}:
        raise ConfigError(f"certificate {path} is not for servers (its extended key usage lacks serverAuth), so every client would "
                          "refuse it: give the server's pair with --cert and --key, or GREENROOM_CERT and GREENROOM_KEY")


def _subject_alternative_names(certificate: x509.Certificate) -> list[str]:
    from cryptography import x509

    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names]


def _key_type(certificate: x509.Certificate) -> str:
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa

    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        return f"RSA {key.key_size}"
    if isinstance(key, ec.EllipticCurvePublicKey):
        curve = {"secp256r1": "P-256", "secp384r1": "P-384", "secp521r1": "P-521"}.get(key.curve.name, key.curve.name)
        return f"ECDSA {curve}"
    if isinstance(key, ed25519.Ed25519PublicKey):
        return "Ed25519"
    if isinstance(key, ed448.Ed448PublicKey):
        return "Ed448"
    return type(key).__name__
