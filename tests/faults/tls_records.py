"""Hand-made TLS 1.3 records of a client, KeyUpdate among them, from the secret that Python writes into a key log. No sockets.

The standard library can't send a KeyUpdate. This takes over the sending half of a connection that it opened (RFC 8446, 4.6.3,
5.2, 7.1 to 7.3), which from then on may send nothing by itself; the receiving half stays OpenSSL's.
"""

from __future__ import annotations

import hashlib
import hmac
import struct
from pathlib import Path

from cryptography.hazmat.primitives.ciphers.aead import AESGCM

APPLICATION_DATA, HANDSHAKE = 23, 22
KEY_UPDATE_REQUESTED = b"\x18\x00\x00\x01\x01"
CIPHER = "TLS_AES_256_GCM_SHA384"


class Sealer:
    """Seals a client's records.

    Args:
        key_log: what the client's context wrote; its last connection is meant.
        records: how many the client has sent since the handshake.
    """

    def __init__(self, key_log: Path, records: int = 0) -> None:
        lines = [line.split() for line in key_log.read_text().splitlines() if line.startswith("CLIENT_TRAFFIC_SECRET_0 ")]
        self._use(bytes.fromhex(lines[-1][2]))
        self._sequence = records

    def seal(self, data: bytes, kind: int = APPLICATION_DATA) -> bytes:
        """Return one record."""
        inner = data + bytes([kind])
        header = b"\x17\x03\x03" + struct.pack(">H", len(inner) + 16)
        nonce = bytes(a ^ b for a, b in zip(self._iv, self._sequence.to_bytes(12, "big")))
        self._sequence += 1
        return header + self._key.encrypt(nonce, inner, header)

    def key_update(self) -> bytes:
        """Return a KeyUpdate that wants one in return; what follows is sealed with the next key."""
        record = self.seal(KEY_UPDATE_REQUESTED, HANDSHAKE)
        self._use(_expand(self._secret, b"traffic upd", 48))
        return record

    def _use(self, secret: bytes) -> None:
        self._secret = secret
        self._key = AESGCM(_expand(secret, b"key", 32))
        self._iv = _expand(secret, b"iv", 12)
        self._sequence = 0


def _expand(secret: bytes, label: bytes, size: int) -> bytes:
    """HKDF-Expand-Label with SHA-384 and no context, for up to 48 bytes."""
    label = b"tls13 " + label
    info = struct.pack(">HB", size, len(label)) + label + b"\x00"
    return hmac.new(secret, info + b"\x01", hashlib.sha384).digest()[:size]
