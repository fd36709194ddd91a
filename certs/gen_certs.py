"""Make the CA, the server certificate and client certificates: `python certs/gen_certs.py`. Knows nothing of Greenroom.

Needs only the library `cryptography`, no openssl binary. Running it again changes nothing that is still good.
"""

from __future__ import annotations

import argparse
import ipaddress
import os
import re
import secrets
import sys
from collections.abc import Callable, Iterable, Sequence
from datetime import datetime, timedelta, timezone
from pathlib import Path

try:
    from cryptography import x509
    from cryptography.exceptions import InvalidSignature, UnsupportedAlgorithm
    from cryptography.hazmat.primitives import hashes, serialization
    from cryptography.hazmat.primitives.asymmetric import ec, ed448, ed25519, rsa
    from cryptography.hazmat.primitives.asymmetric.types import CertificateIssuerPrivateKeyTypes as PrivateKey
    from cryptography.x509.oid import ExtendedKeyUsageOID, NameOID
except ImportError as missing:
    if __name__ != "__main__":
        raise
    sys.stderr.write(f"gen_certs.py: package cryptography cannot be imported ({missing}): "
                     "run `./run setup && . .venv/bin/activate`, or `pip install -r requirements.txt`\n")
    sys.exit(2)

DEFAULT_DAYS = 397  # what browsers accept at most (398), less a day for the backdating
MAX_DAYS = 3650
CA_DAYS = 3650
RENEW_WITHIN = timedelta(days=14)
# Clocks differ: a certificate made just now must be valid on a machine that is a little behind.
BACKDATE = timedelta(minutes=5)

ALWAYS_NAMES = ("localhost", "127.0.0.1", "::1")
_CLIENT_NAME = re.compile(r"[A-Za-z0-9._-]{1,64}")
_HOST_LABEL = re.compile(r"[A-Za-z0-9_]([A-Za-z0-9_-]{0,61}[A-Za-z0-9_])?")


class CertificateError(Exception):
    """Raised when the files that are there do not allow what was asked; the message is one sentence for a person."""


def generate(directory: Path, *, names: Iterable[str] = (), clients: Iterable[str] = (), days: int = DEFAULT_DAYS,
             rsa: bool = False, force: bool = False) -> list[str]:
    """Make what is missing in `directory`: ca.crt, ca.key, server.crt, server.key, and a pair per client.

    What is there and good is kept, so that this may run before every start. A server or client certificate that expires
    within 14 days, or a server certificate without one of the names asked for, is made anew from the same CA and key.

    Args:
        directory: made if missing.
        names: host names and IP addresses of the server, besides localhost, 127.0.0.1 and ::1.
        clients: names of client certificates, [A-Za-z0-9._-]{1,64}; each is also its subject alternative name.
        days: validity of server and client certificates, 1 … 3650, never beyond the CA's.
        rsa: RSA-2048 keys for new server and client certificates instead of ECDSA P-256.
        force: replace the named clients' pairs or, if no client is named, the CA and the server's pair.

    Returns:
        What was done, a line each.

    Raises:
        ValueError: a name or `days` is out of its grammar or range; nothing was written.
        CertificateError: a file that is there cannot be used; it is left as it was.
        OSError: the directory or a file cannot be read or written.
    """
    host_names = [check_host_name(name) for name in names]
    client_names = [check_client_name(name) for name in clients]
    if not 1 <= days <= MAX_DAYS:
        raise ValueError(f"days must be 1 to {MAX_DAYS}, not {days}")
    directory.mkdir(parents=True, exist_ok=True)
    replace_all = force and not client_names
    authority = _Authority(directory, days=days, rsa=rsa)
    lines = [authority.open(replace=replace_all)]
    lines.append(authority.ensure_server(host_names, replace=replace_all))
    lines.extend(authority.ensure_client(name, replace=force) for name in dict.fromkeys(client_names))
    return lines + authority.orphans()


def check_host_name(name: str) -> str:
    """Return a host name or IP address in its canonical form. Raises ValueError if it is neither."""
    try:
        if "%" not in name:  # a zone, as in fe80::1%eth0, has no place in a certificate
            return str(ipaddress.ip_address(name))
    except ValueError:
        pass
    labels = name.removeprefix("*.").split(".")
    if len(name) > 253 or labels[-1].isdigit() or not all(_HOST_LABEL.fullmatch(label) for label in labels):
        raise ValueError(f"{name!r} is neither a host name nor an IP address")
    return name.lower()


def check_client_name(name: str) -> str:
    """Return the name of a client certificate. Raises ValueError if it is out of its grammar or taken."""
    if not _CLIENT_NAME.fullmatch(name):
        raise ValueError(f"{name!r} is no client name: 1 to 64 of letters, digits, dot, underscore and hyphen")
    # Compared without case because some file systems do.
    if name.lower() in ("ca", "server"):
        raise ValueError(f"client name {name!r} is taken by {name.lower()}.crt")
    return name


class _Authority:
    """The CA of one directory and what it signs."""

    def __init__(self, directory: Path, *, days: int, rsa: bool) -> None:
        self._directory = directory
        self._days = days
        self._rsa = rsa
        self._now = datetime.now(timezone.utc)

    def open(self, *, replace: bool) -> str:
        """Load the CA, or make it. Return what was done."""
        crt, key = self._paths("ca")
        if crt.exists() and not replace:
            self._certificate = _load_certificate(crt)
            self._key = self._load_ca_key(crt, key)
            return self._kept("ca", self._certificate)
        self._key = _load_key(key) if key.exists() and not replace else ec.generate_private_key(ec.SECP256R1())
        self._certificate = self._make_ca()
        self._write_pair("ca", self._certificate, self._key)
        return f"ca.crt, ca.key: made, {_facts(self._certificate)}"

    def ensure_server(self, names: list[str], *, replace: bool) -> str:
        """Make server.crt and server.key unless what is there is good and has `names`. Return what was done."""
        crt, key = self._paths("server")
        old = None if replace else self._existing(crt, key)
        there = _alternative_names(old) if old else list(ALWAYS_NAMES)
        missing = [name for name in dict.fromkeys(names) if name not in there]
        if old and not missing and not self._is_expiring(old):
            return self._kept("server", old)
        every_name = there + missing
        new = self._issue("server", "localhost", every_name, ExtendedKeyUsageOID.SERVER_AUTH, keep_key=not replace)
        why = self._why(old, f"lacked {', '.join(missing)}")
        return f"server.crt, server.key: {why}, for {', '.join(every_name)}, {_facts(new)}"

    def ensure_client(self, name: str, *, replace: bool) -> str:
        """Make NAME.crt and NAME.key unless what is there is good. Return what was done."""
        crt, key = self._paths(name)
        old = None if replace else self._existing(crt, key)
        if old and not self._is_expiring(old):
            return self._kept(name, old)
        new = self._issue(name, name, [name], ExtendedKeyUsageOID.CLIENT_AUTH, keep_key=not replace)
        return f"{name}.crt, {name}.key: {self._why(old, '')}, for a client, {_facts(new)}"

    def orphans(self) -> list[str]:
        """Name the certificates here that this CA did not sign, such as clients of one that was replaced."""
        lines = []
        for crt in sorted(self._directory.glob("*.crt")):
            try:
                if not self._signed(_load_certificate(crt)):
                    lines.append(f"{crt.name}: signed by another CA, peers that trust ca.crt refuse it")
            except CertificateError:
                continue  # not ours to judge
        return lines

    def _paths(self, name: str) -> tuple[Path, Path]:
        return self._directory / f"{name}.crt", self._directory / f"{name}.key"

    def _load_ca_key(self, crt: Path, key: Path) -> PrivateKey | None:
        # The CA's key may be kept elsewhere as long as nothing is to be signed.
        if not key.exists():
            return None
        loaded = _load_key(key)
        if not _is_pair(self._certificate, loaded):
            raise CertificateError(f"{key} does not belong to {crt}, nothing was signed: "
                                   "put the right key there, or replace both with --force")
        return loaded

    def _existing(self, crt: Path, key: Path) -> x509.Certificate | None:
        """Return the certificate that is there, None if there is none. Raises if replacing it needs a person's word."""
        if not crt.exists():
            return None
        certificate = _load_certificate(crt)
        if not key.exists():
            raise CertificateError(f"{crt} is there but {key} is not: put it back, or replace both with --force")
        if not _is_pair(certificate, _load_key(key)):
            raise CertificateError(f"{key} does not belong to {crt}: replace both with --force")
        if not self._signed(certificate):
            raise CertificateError(f"{crt} was not signed by {self._directory / 'ca.crt'}: replace it with --force")
        return certificate

    def _signed(self, certificate: x509.Certificate) -> bool:
        try:
            certificate.verify_directly_issued_by(self._certificate)
        except (ValueError, TypeError, InvalidSignature):
            return False
        return True

    def _is_expiring(self, certificate: x509.Certificate) -> bool:
        return certificate.not_valid_after_utc - self._now < RENEW_WITHIN

    def _why(self, old: x509.Certificate | None, otherwise: str) -> str:
        if old is None:
            return "made"
        if old.not_valid_after_utc <= self._now:
            return "had expired, renewed"
        return "was about to expire, renewed" if self._is_expiring(old) else f"{otherwise}, made anew"

    def _kept(self, name: str, certificate: x509.Certificate) -> str:
        _, key = self._paths(name)
        line = f"{name}.crt, {name}.key: kept, {_facts(certificate)}"
        if key.exists() and key.stat().st_mode & 0o077:
            key.chmod(0o600)
            line += f"; {key.name} was open to other users, now mode 0600"
        return line

    def _make_ca(self) -> x509.Certificate:
        public = self._key.public_key()
        identifier = x509.SubjectKeyIdentifier.from_public_key(public)
        # A name of its own for each CA: "unknown CA" is easier to understand than "bad signature".
        subject = _subject(f"Greenroom CA {identifier.digest.hex()[:8]}")
        builder = self._builder(subject, subject, public, timedelta(days=CA_DAYS))
        builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
        builder = builder.add_extension(_key_usage(is_ca=True), critical=True)
        builder = builder.add_extension(
            x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier), critical=False)
        return builder.sign(self._key, _digest(self._key))

    def _issue(self, name: str, common_name: str, alternative_names: list[str], usage: x509.ObjectIdentifier, *,
               keep_key: bool) -> x509.Certificate:
        """Sign and write a server or client certificate. Keeping the key means that a renewal is one atomic rename."""
        self._check_can_sign()
        _, key_path = self._paths(name)
        key = _load_key(key_path) if keep_key and key_path.exists() else self._new_key()
        validity = min(timedelta(days=self._days), self._certificate.not_valid_after_utc - self._now)
        builder = self._builder(_subject(common_name), self._certificate.subject, key.public_key(), validity)
        builder = builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        builder = builder.add_extension(_key_usage(is_ca=False), critical=True)
        builder = builder.add_extension(x509.ExtendedKeyUsage([usage]), critical=False)
        builder = builder.add_extension(_general_names(alternative_names), critical=False)
        builder = builder.add_extension(_authority_identifier(self._certificate), critical=False)
        certificate = builder.sign(self._key, _digest(self._key))
        self._write_pair(name, certificate, key)
        return certificate

    def _check_can_sign(self) -> None:
        crt, key = self._paths("ca")
        if self._key is None:
            raise CertificateError(f"{key} is missing, so nothing can be signed: "
                                   "put it back, or replace the CA with --force")
        if self._is_expiring(self._certificate):
            raise CertificateError(f"{crt} is only {_until(self._certificate)}, too short to sign with: "
                                   "replace the CA with --force")

    def _new_key(self) -> PrivateKey:
        if self._rsa:
            return rsa.generate_private_key(public_exponent=65537, key_size=2048)
        return ec.generate_private_key(ec.SECP256R1())

    def _builder(self, subject: x509.Name, issuer: x509.Name, public_key: object,
                 validity: timedelta) -> x509.CertificateBuilder:
        return (x509.CertificateBuilder()
                .subject_name(subject).issuer_name(issuer).public_key(public_key)
                .serial_number(x509.random_serial_number())
                .not_valid_before(self._now - BACKDATE).not_valid_after(self._now + validity)
                .add_extension(x509.SubjectKeyIdentifier.from_public_key(public_key), critical=False))

    def _write_pair(self, name: str, certificate: x509.Certificate, key: PrivateKey) -> None:
        crt_path, key_path = self._paths(name)
        pem = key.private_bytes(serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8,
                                serialization.NoEncryption())
        # The key first: a key without its certificate is taken up by the next run, the reverse is not.
        _write_atomically(key_path, pem, 0o600)
        _write_atomically(crt_path, certificate.public_bytes(serialization.Encoding.PEM), 0o644)


def _subject(common_name: str) -> x509.Name:
    return x509.Name([x509.NameAttribute(NameOID.ORGANIZATION_NAME, "Greenroom"),
                      x509.NameAttribute(NameOID.COMMON_NAME, common_name)])


def _key_usage(*, is_ca: bool) -> x509.KeyUsage:
    # TLS 1.3 only ever signs, with RSA as well.
    return x509.KeyUsage(digital_signature=not is_ca, key_cert_sign=is_ca, crl_sign=is_ca, content_commitment=False,
                         key_encipherment=False, data_encipherment=False, key_agreement=False, encipher_only=False,
                         decipher_only=False)


def _general_names(names: list[str]) -> x509.SubjectAlternativeName:
    general: list[x509.GeneralName] = []
    for name in names:
        try:
            general.append(x509.IPAddress(ipaddress.ip_address(name)))
        except ValueError:
            general.append(x509.DNSName(name))
    return x509.SubjectAlternativeName(general)


def _alternative_names(certificate: x509.Certificate) -> list[str]:
    try:
        names = certificate.extensions.get_extension_for_class(x509.SubjectAlternativeName).value
    except x509.ExtensionNotFound:
        return []
    return [str(name.value) for name in names if isinstance(name, (x509.DNSName, x509.IPAddress))]


def _authority_identifier(ca: x509.Certificate) -> x509.AuthorityKeyIdentifier:
    try:
        identifier = ca.extensions.get_extension_for_class(x509.SubjectKeyIdentifier).value
    except x509.ExtensionNotFound:
        return x509.AuthorityKeyIdentifier.from_issuer_public_key(ca.public_key())
    return x509.AuthorityKeyIdentifier.from_issuer_subject_key_identifier(identifier)


def _digest(key: PrivateKey) -> hashes.SHA256 | None:
    # Edwards curves bring their own; such a CA can only be the user's.
    return None if isinstance(key, (ed25519.Ed25519PrivateKey, ed448.Ed448PrivateKey)) else hashes.SHA256()


def _is_pair(certificate: x509.Certificate, key: PrivateKey) -> bool:
    return certificate.public_key() == key.public_key()


def _facts(certificate: x509.Certificate) -> str:
    key = certificate.public_key()
    if isinstance(key, rsa.RSAPublicKey):
        kind = f"RSA-{key.key_size}"
    elif isinstance(key, ec.EllipticCurvePublicKey):
        kind = "P-256" if key.curve.name == "secp256r1" else key.curve.name
    else:
        kind = type(key).__name__
    return f"{kind}, {_until(certificate)}"


def _until(certificate: x509.Certificate) -> str:
    return f"valid until {certificate.not_valid_after_utc:%Y-%m-%d}"


def _load_certificate(path: Path) -> x509.Certificate:
    try:
        return x509.load_pem_x509_certificate(path.read_bytes())
    except ValueError as exc:
        raise CertificateError(f"{path} is not a certificate in PEM form: replace it with --force") from exc


def _load_key(path: Path) -> PrivateKey:
    try:
        return serialization.load_pem_private_key(path.read_bytes(), password=None)
    except (ValueError, TypeError, UnsupportedAlgorithm) as exc:
        raise CertificateError(f"{path} is not a private key in PEM form without a passphrase: "
                               "replace it with --force") from exc


def _write_atomically(path: Path, content: bytes, mode: int) -> None:
    """Write beside the target and rename, so that a reader sees the old file or the new one, and a key never too open."""
    # The name still ends in .key or .crt, so that one left by a crash is ignored by git too.
    temporary = path.with_name(f".{secrets.token_hex(4)}.{path.name}")
    descriptor = os.open(temporary, os.O_WRONLY | os.O_CREAT | os.O_EXCL, mode)
    try:
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(file.fileno())
        os.replace(temporary, path)
    except BaseException:
        temporary.unlink(missing_ok=True)
        raise


def _argument(check: Callable[[str], str]) -> Callable[[str], str]:
    def parse(text: str) -> str:
        try:
            return check(text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from exc
    return parse


def _days(text: str) -> int:
    if not re.fullmatch(r"[0-9]{1,4}", text) or not 1 <= int(text) <= MAX_DAYS:
        raise argparse.ArgumentTypeError(f"must be a whole number from 1 to {MAX_DAYS}, not {text!r}")
    return int(text)


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="gen_certs.py", description="Make the CA, the server certificate and client certificates of Greenroom.",
        epilog="Good files are kept; certificates that expire within 14 days are renewed. Keys have mode 0600.")
    here = Path(__file__).resolve().parent
    if here.name != "certs":
        here = Path.cwd() / "certs"  # installed as greenroom.gen_certs: never into the package
    parser.add_argument("--dir", type=Path, default=here, help="where the files go (default: the folder of this script, or ./certs if it is installed)")
    parser.add_argument("--name", action="append", default=[], type=_argument(check_host_name), metavar="NAME",
                        help="one more host name or IP address of the server, besides localhost, 127.0.0.1 and ::1; "
                             "may be repeated; names given earlier stay unless --force")
    parser.add_argument("--client", action="append", default=[], type=_argument(check_client_name), metavar="NAME",
                        help="make the client certificate NAME.crt, NAME.key; may be repeated")
    parser.add_argument("--days", type=_days, default=DEFAULT_DAYS,
                        help="validity of server and client certificates (default: %(default)s; the CA's is ten years)")
    parser.add_argument("--rsa", action="store_true", help="RSA-2048 keys for server and clients instead of ECDSA P-256")
    parser.add_argument("--force", action="store_true",
                        help="replace the CA and the server's files or, with --client, only those of the named clients")
    parser.add_argument("--quiet", action="store_true", help="print errors only")
    return parser


def main(arguments: Sequence[str] | None = None) -> int:
    """Run the command line. Returns the exit code: 0 done, 1 refused (one line on stderr); bad flags exit with 2."""
    options = _parser().parse_args(arguments)
    try:
        lines = generate(options.dir, names=options.name, clients=options.client, days=options.days, rsa=options.rsa,
                         force=options.force)
    except CertificateError as exc:
        sys.stderr.write(f"gen_certs.py: {exc}\n")
        return 1
    except OSError as exc:
        sys.stderr.write(f"gen_certs.py: cannot use {exc.filename or options.dir}: {exc.strerror or exc}\n")
        return 1
    if not options.quiet:
        print(f"Certificates in {options.dir}:", *lines, sep="\n  ")
    return 0


if __name__ == "__main__":
    sys.exit(main())
