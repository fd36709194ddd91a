"""Accepting on gevent's servers without falling over: no file descriptors left, peers that went away, a listener that died.

A mix-in for StreamServer and its kin. Must not know what is served.
"""

from __future__ import annotations

import errno
import logging
import socket
from time import monotonic

import gevent

log = logging.getLogger(__name__)

#: Without free file descriptors, try again so often; and say so at most this often.
AGAIN_AFTER_S = 0.2
LINE_EVERY_S = 5.0
#: Files were missing so lately that they still are.
SHORT_FOR_S = 2.0


class CarefulAccept:
    """Deals with errors of accept: gevent would print a traceback for each, and go deaf in silence after a fatal one.

    Attributes:
        broken: why nobody can be accepted any more, or None.
    """

    broken: str | None = None
    _short_at = float("-inf")  # monotonic; when files were missing last
    _resume: gevent.Greenlet | None = None
    _last_line_at = -LINE_EVERY_S

    def do_read(self) -> tuple | None:
        """Accept one connection, or return None; called by gevent on the hub."""
        try:
            return super().do_read()
        except OSError as exc:
            self._accept_failed(exc)
            return None

    def _accept_failed(self, exc: OSError) -> None:
        if exc.errno in (errno.EMFILE, errno.ENFILE, errno.ENOBUFS, errno.ENOMEM):
            now = self._short_at = monotonic()
            if now - self._last_line_at >= LINE_EVERY_S:
                self._last_line_at = now
                log.error("[Server] cannot accept on port %d: %s; trying again every %g s", self.server_port, exc.strerror,
                          AGAIN_AFTER_S)
            self.stop_accepting()
            if self._resume is None:
                self._resume = gevent.spawn_later(AGAIN_AFTER_S, self._accept_again)
        elif exc.errno in (errno.EBADF, errno.EINVAL, errno.ENOTSOCK):
            self.broken = f"accept failed: {exc}"
        # Anything else (ECONNABORTED …) concerns one peer that went away: the next accept is as good as any.

    @property
    def is_short_of_files(self) -> bool:
        """True while nobody can be accepted for want of file descriptors, or memory of the kernel's."""
        return monotonic() - self._short_at < SHORT_FOR_S

    def _accept_again(self) -> None:
        self._resume = None
        if self.started:
            self.start_accepting()

    def stop_listening(self) -> None:
        """Accept nobody any more; connections live on."""
        if self._resume is not None:
            self._resume.kill(block=False)
        self.close()

    def why_deaf(self) -> str | None:
        """Return why the started listener hears nobody any more, or None. (A closed file just drops out of epoll, unnoticed.)"""
        if self.broken is not None:
            return self.broken
        try:
            is_listening = self.socket.getsockopt(socket.SOL_SOCKET, socket.SO_ACCEPTCONN)
        except (OSError, AttributeError) as exc:
            return f"its socket is gone: {exc}"
        return None if is_listening else "its socket does not listen"
