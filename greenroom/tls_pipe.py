"""The server's side of one TLS connection, without a socket: what arrived goes in, what it says and what is to be sent comes out.

Pure, so that every step is bounded: OpenSSL with a socket of its own reads on for as long as records come that carry no data
(KeyUpdate, RFC 8446 4.6.3: two key derivations and an answer each, 0.2 ms), and a peer that sends them keeps the hub for ever.
Here it gets one record at a time, and such records are counted. Must not know sockets, greenlets or messages.
"""

from __future__ import annotations

import ssl

#: What one record can carry at most, in clear and sealed (RFC 8446, 5.1 and 5.2).
RECORD_BYTES = 16 * 1024
SEALED_RECORD_BYTES = RECORD_BYTES + 256
#: A ClientHello and a chain of client certificates have a few KiB.
MAX_HANDSHAKE_BYTES = 64 * 1024
#: Records without data that a peer may send; one more for each 64 KiB of data. OpenSSL itself asks for new keys once in terabytes.
MAX_EMPTY_RECORDS = 16
BYTES_PER_EMPTY_RECORD = 64 * 1024

_HEADER_BYTES = 5
_TYPES = range(20, 25)


class TlsPipe:
    """See the module.

    Attributes:
        ended: the peer said that nothing more comes (close_notify).
    """

    __slots__ = ("ended", "_incoming", "_outgoing", "_tls", "_partial", "_handshake_bytes", "_data_bytes", "_empty_records")

    def __init__(self, context: ssl.SSLContext) -> None:
        self.ended = False
        self._incoming = ssl.MemoryBIO()
        self._outgoing = ssl.MemoryBIO()
        self._tls = context.wrap_bio(self._incoming, self._outgoing, server_side=True)
        self._partial = b""  # what OpenSSL has not been given: the beginning of a record, or what came with the handshake's last
        self._handshake_bytes = 0
        self._data_bytes = 0
        self._empty_records = 0

    def shake(self, raw: bytes) -> bool:
        """Go on with the handshake; returns True when it is done. What came behind it waits for `open`.

        Args:
            raw: what arrived, b"" for the end of the stream.

        Raises ssl.SSLError for what can't become a connection; `outgoing` has the alert then.
        """
        self._handshake_bytes += len(raw)
        if self._handshake_bytes > MAX_HANDSHAKE_BYTES:
            raise ssl.SSLError("the handshake is too long")
        if not raw:
            self._incoming.write_eof()
        self._partial += raw
        while True:
            end = _record_end(self._partial, 0)
            if end > 0:
                self._incoming.write(self._partial[:end])
                self._partial = self._partial[end:]
            try:
                self._tls.do_handshake()
                return True
            except ssl.SSLWantReadError:
                if end <= 0:
                    return False

    def selected_alpn_protocol(self) -> str | None:
        """Return what both sides agreed on in the handshake, or None."""
        return self._tls.selected_alpn_protocol()

    @property
    def has_more(self) -> bool:
        """True if `open` finds something without more bytes: what came together with the end of the handshake."""
        return _record_end(self._partial, 0) > 0

    def open(self, raw: bytes, pieces: list[bytes]) -> None:
        """Take what arrived and add what it says to `pieces`, also if it then raises.

        Raises ssl.SSLError for what is not TLS, ConnectionAbortedError for a peer that sends records without data.
        """
        buffer = self._partial + raw if self._partial else raw
        position = 0
        self._partial = b""
        while not self.ended and (end := _record_end(buffer, position)) > 0:
            self._incoming.write(memoryview(buffer)[position:end])
            position = end
            self._open_record(pieces)
        self._partial = buffer[position:]

    def _open_record(self, pieces: list[bytes]) -> None:
        try:
            piece = self._tls.read(RECORD_BYTES)
        except ssl.SSLWantReadError:
            self._empty_records += 1
            if self._empty_records > MAX_EMPTY_RECORDS + self._data_bytes // BYTES_PER_EMPTY_RECORD:
                raise ConnectionAbortedError("the peer sends TLS records without data") from None
            return
        if piece:
            self._data_bytes += len(piece)
            pieces.append(piece)
        else:
            self.ended = True

    def seal(self, data: bytes | memoryview) -> bytes:
        """Return the records that carry `data`, after whatever else waits to be sent. Raises ssl.SSLError."""
        self._tls.write(data)
        return self._outgoing.read()

    def outgoing(self) -> bytes:
        """Return what OpenSSL itself wants sent: its part of the handshake, alerts, answers to KeyUpdate."""
        return self._outgoing.read() if self._outgoing.pending else b""


def _record_end(buffer: bytes, position: int) -> int:
    """Return where the record that begins at `position` ends, 0 if it is not there whole. What is no record ends with the
    buffer: OpenSSL has a word for each kind."""
    left = len(buffer) - position
    if left <= 0:
        return 0
    if buffer[position] not in _TYPES:
        return len(buffer)
    if left < _HEADER_BYTES:
        return 0
    length = buffer[position + 3] << 8 | buffer[position + 4]
    if length > SEALED_RECORD_BYTES:
        return len(buffer)
    end = position + _HEADER_BYTES + length
    return end if end <= len(buffer) else 0
