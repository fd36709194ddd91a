"""Where the broker is and how it is trusted: URL, CA and client certificate from arguments, environment and defaults.

Must not connect to anything.
"""

from __future__ import annotations

import os
import ssl
from collections.abc import Mapping
from pathlib import Path
from typing import NamedTuple
from urllib.parse import urlsplit

from greenroom.errors import ConfigError
from greenroom.protocol import DEFAULT_PORT
from greenroom.tls import client_context

SCHEME = "greenroom"
DEFAULT_URL = f"{SCHEME}://localhost:{DEFAULT_PORT}"

_CHECKOUT = Path(__file__).resolve().parent.parent


class Endpoint(NamedTuple):
    """A broker to connect to."""

    host: str
    port: int
    context: ssl.SSLContext  # verifies the broker, holds our certificate if we have one
    ca_file: str  # for error messages

    @property
    def address(self) -> str:
        """The text `host:port`, with an IPv6 address in brackets."""
        return f"[{self.host}]:{self.port}" if ":" in self.host else f"{self.host}:{self.port}"


def find_endpoint(url: str | None = None, *, ca: str | None = None, cert: str | None = None, key: str | None = None,
                  environ: Mapping[str, str] = os.environ) -> Endpoint:
    """Put together where to connect, and read the certificates.

    Args:
        url: `greenroom://host[:port]`; None: GREENROOM_URL, else greenroom://localhost:65432.
        ca: PEM file of the CA that signed the broker's certificate; None: GREENROOM_CA, else certs/ca.crt of this checkout,
            else ./certs/ca.crt.
        cert, key: PEM files of a client certificate, for brokers that require one; None: GREENROOM_CERT, GREENROOM_KEY.

    Raises:
        ConfigError: a bad URL, or a file that is missing or unusable; the sentence says what to do.
    """
    host, port = parse_url(url or environ.get("GREENROOM_URL") or DEFAULT_URL)
    ca_file = _find_ca(ca or environ.get("GREENROOM_CA"))
    context = client_context(ca_file, cert or environ.get("GREENROOM_CERT") or None,
                             key or environ.get("GREENROOM_KEY") or None)
    return Endpoint(host, port, context, str(ca_file))


def parse_url(url: str) -> tuple[str, int]:
    """Return host and port of `greenroom://host[:port]`. Raises ConfigError with a sentence."""
    example = f"write it as {DEFAULT_URL}"
    try:
        parts = urlsplit(url)
        host, port = parts.hostname, parts.port
    except ValueError as exc:
        raise ConfigError(f"the URL {url!r} cannot be read ({exc}): {example}") from None
    if parts.scheme != SCHEME:
        raise ConfigError(f"the URL {url!r} does not begin with {SCHEME}://: {example}")
    if not host or not host.isprintable() or " " in host or host.startswith("."):
        raise ConfigError(f"the URL {url!r} names no host: {example}")
    if parts.username is not None:
        raise ConfigError("a token in the URL is not supported by this version: leave out what is before the @")
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise ConfigError(f"the URL {url!r} has something after host and port: {example}")
    if port == 0:
        raise ConfigError(f"the URL {url!r} has port 0: {example}")
    return host, port or DEFAULT_PORT


def _find_ca(given: str | None) -> Path:
    if given:
        return _existing(Path(given))
    candidates = [Path("certs/ca.crt")]
    if (_CHECKOUT / "protocol.py").exists():
        candidates.insert(0, _CHECKOUT / "certs" / "ca.crt")
    for path in candidates:
        if path.exists():
            return path
    return _existing(candidates[0])


def _existing(path: Path) -> Path:
    if not path.exists():
        raise ConfigError(f"no CA certificate at {path}: run `python certs/gen_certs.py` (or give --ca)")
    return path
