"""`broker.py --check`: looks at configuration, certificates and store, says what it found, starts nothing and changes nothing.

Exit codes: 0 nothing is wrong, 1 the store is damaged or can't be read, 2 a start would be refused (configuration,
certificates), or nobody would connect to it (a certificate that has ended).
"""

from __future__ import annotations

import os
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path

from greenroom import config
from greenroom.clock import Clock
from greenroom.config import BrokerConfig
from greenroom.errors import ConfigError, StoreError
from greenroom.tls import days_left, describe_certificate, server_context

#: A certificate that ends sooner is mentioned; it is no error.
WARN_DAYS = 14


def check(argv: Sequence[str], environ: Mapping[str, str], say: Callable[[str], None]) -> int:
    """Look at everything and return the exit code; `say` takes a line at a time."""
    settings, errors = config.collect(argv, environ)
    for error in errors:
        say(f"configuration: {error}")
    if not errors:
        say("configuration: ok")
    is_certified = _check_certificates(settings, say)
    is_whole = _check_store(settings, say)
    if errors or not is_certified:
        return 2
    return 0 if is_whole else 1


def _check_certificates(settings: BrokerConfig, say: Callable[[str], None]) -> bool:
    try:
        server_context(settings.cert, settings.key, settings.client_ca or None)
        certificate = describe_certificate(settings.cert)
    except ConfigError as exc:
        say(f"certificates: {exc}")
        return False
    left = days_left(certificate, Clock().now())
    if left <= 0:
        say(f"certificates: {settings.cert} ended {-left:.1f} days ago: python certs/gen_certs.py renews it")
        return False
    soon = "; python certs/gen_certs.py renews it" if left < WARN_DAYS else ""
    say(f"certificates: ok, {settings.cert} is good for {left:.1f} days{soon}")
    return True


def _check_store(settings: BrokerConfig, say: Callable[[str], None]) -> bool:
    if settings.data == "memory:":
        say("store: kept in memory, there is nothing to check")
        return True
    from greenroom.stores.sqlite_check import CHECKS, MissingStore, findings, log_rest, opened_for_check
    folder = Path(settings.data)
    is_whole = True
    try:
        with opened_for_check(folder) as (query, state):
            say(f"store: {os.path.abspath(folder)}, {state}")
            if "running" not in state:
                say(f"store: log: {log_rest(folder, is_open=False) or 'ok'}")
            for name, look in CHECKS.items():
                found = findings(query, look)
                is_whole = is_whole and not found
                for finding in found or ["ok"]:
                    say(f"store: {name}: {finding}")
    except MissingStore as exc:
        say(f"store: {exc}")
    except StoreError as exc:
        say(f"store: {exc}")
        is_whole = False
    if not is_whole:
        say("store: something is wrong: docs/operations.md (Damage) says what to do")
    return is_whole
