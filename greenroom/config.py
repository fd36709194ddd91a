"""The broker's configuration: one dataclass is flags, environment names and file keys at once. File < environment < flags.

Checks values; opens and connects to nothing.
"""

from __future__ import annotations

import argparse
import difflib
import functools
import tomllib
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import MISSING, dataclass, field, fields
from pathlib import Path

from greenroom.errors import ConfigError
from greenroom.protocol import DEFAULT_PORT

CHECKOUT = Path(__file__).resolve().parent.parent
#: Where certs/ lies: beside broker.py in a checkout; where the wheel is installed, in the current folder.
CERTIFICATES = (CHECKOUT if (CHECKOUT / "protocol.py").exists() else Path.cwd()) / "certs"
ENVIRONMENT_PREFIX = "GREENROOM_"
#: How alike (difflib, 0 … 1) a name in the environment must be to one of ours to be taken for a mistake.
SLIP_OF_THE_PEN = 0.9
LOOPBACK_HOSTS = ("127.0.0.1", "::1", "localhost")
DEFAULT_WEB_PORT = 8080


def _setting(default: object, doc: str, low: float | None = None, high: float | None = None) -> object:
    return field(default=default, metadata={"doc": doc, "low": low, "high": high})


@dataclass(frozen=True)
class BrokerConfig:
    """What a broker can be told. Flag `--web-port`, environment `GREENROOM_WEB_PORT`, file key `web_port`."""

    host: str = _setting("127.0.0.1", "address to listen on; other than loopback only with --client-ca")
    port: int = _setting(DEFAULT_PORT, "port of the jobs' TLS listener; 0: any free one", 0, 65535)
    web_port: int = _setting(DEFAULT_WEB_PORT, "port of the web page and REST API, on 127.0.0.1; 0: any free one", 0, 65535)
    data: str = _setting("data", "directory of the store, or memory: to keep nothing")
    cert: str = _setting(str(CERTIFICATES / "server.crt"), "PEM file of the broker's certificate")
    key: str = _setting(str(CERTIFICATES / "server.key"), "PEM file of its private key, readable by the owner only")
    client_ca: str = _setting("", "PEM file of a CA; clients and workers must then show a certificate signed by it")
    lease_s: float = _setting(15.0, "seconds after which a silent worker loses its jobs", 1, 3600)
    reconnect_grace_s: float = _setting(0.5, "seconds in which a worker whose connection broke may come back", 0, 60)
    restart_grace_s: float = _setting(60.0, "seconds for which leases hold after a restart of the broker", 0, 3600)
    max_waiting_jobs: int = _setting(20_000_000, "scheduled and queued jobs; beyond it submits get FULL", 1, 10**9)
    max_waiting_bytes: int = _setting(64 * 2**30, "bytes of their payloads; beyond it submits get FULL", 1, 2**50)
    window_jobs: int = _setting(100_000, "queued jobs kept in memory; the rest waits in the store", 100, 10**7)
    window_bytes: int = _setting(128 * 2**20, "bytes of payloads kept in memory", 2**20, 2**40)
    history_age_s: float = _setting(7 * 86400.0, "seconds for which finished jobs are kept that do not say so themselves", 60, 10**9)
    history_count: int = _setting(1_000_000, "finished jobs kept, though each for an hour at least; failed ones not counted", 0, 10**9)
    history_failed_age_s: float = _setting(90 * 86400.0, "seconds for which failed jobs are kept; history_age_s if that is longer", 60, 10**9)
    history_failed_count: int = _setting(100_000, "failed jobs kept, though each for an hour at least", 0, 10**9)
    max_kept_jobs: int = _setting(1_000_000, "jobs with a keep_for of more than an hour, from submit until they are gone; then FULL", 0, 10**9)
    max_connections: int = _setting(0, "connections at once; 0: as many as the file limit allows", 0, 10**6)
    log_level: str = _setting("info", "debug, info, warning or error")


_KINDS: dict[str, type] = {"str": str, "int": int, "float": float}


def load(argv: Sequence[str], environ: Mapping[str, str]) -> BrokerConfig:
    """Put the configuration together from a file, the environment and flags, later ones winning.

    Raises ConfigError that names the bad value and where it stands. `--help` and bad flags exit, as argparse does.
    """
    config, errors = collect(argv, environ)
    if errors:
        raise errors[0]
    return config


def collect(argv: Sequence[str], environ: Mapping[str, str]) -> tuple[BrokerConfig, list[ConfigError]]:
    """Put the configuration together as `load` does; return it without the values that are wrong, and all that is wrong."""
    parser = _parser()
    namespace, unknown = parser.parse_known_args(argv)
    if unknown:
        names = ["config", "check", *(_flag(setting)[2:] for setting in fields(BrokerConfig))]
        hint = _meant(unknown[0].partition("=")[0].removeprefix("--"), names, prefix="--")
        parser.error(f"unrecognized arguments: {' '.join(unknown)}{hint}")
    given = vars(namespace)
    given.pop("check")
    path = given.pop("config") or environ.get("GREENROOM_CONFIG")
    values: dict[str, object] = {}
    errors: list[ConfigError] = []
    values.update(_from_file(Path(path), errors) if path else {})
    values.update(_from_environment(environ, errors))
    values.update({name: value for name, value in given.items() if value is not None})
    config = BrokerConfig(**values)
    errors.extend(_check_together(config))
    return config, errors


@functools.cache  # making it takes longer than all the rest
def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(
        prog="broker.py", allow_abbrev=False, description="The Greenroom job broker.",
        epilog="Each flag is also an environment variable (--web-port: GREENROOM_WEB_PORT) and a key of the TOML file (web_port).")
    parser.add_argument("--config", metavar="FILE", help="TOML file with the settings below (GREENROOM_CONFIG)")
    parser.add_argument("--check", action="store_true",
                        help="look at the configuration, the certificates and the store, say what is wrong, start nothing")
    for setting in fields(BrokerConfig):
        shown = setting.default if setting.default != "" else "none"
        if isinstance(shown, str) and shown.startswith(str(CERTIFICATES)):
            shown = f"certs/{Path(shown).name}"
        parser.add_argument(_flag(setting), type=_flag_type(setting), metavar=setting.type.upper(), default=None,
                            help=f"{setting.metadata['doc']} (default: {shown})")
    return parser


def _flag(setting: object) -> str:
    return "--" + setting.name.replace("_", "-")


def _flag_type(setting: object) -> Callable[[str], object]:
    def convert(text: str) -> object:
        try:
            return _convert(setting, text)
        except ValueError as exc:
            raise argparse.ArgumentTypeError(str(exc)) from None
    return convert


def _convert(setting: object, value: object) -> object:
    """Return a setting's value from a text or a TOML value; raises ValueError with the end of a sentence."""
    kind = _KINDS[setting.type]
    if isinstance(value, bool) or (kind is str and not isinstance(value, str)):
        raise ValueError(f"must be {'a text' if kind is str else 'a number'}")
    if kind is int and isinstance(value, float):
        raise ValueError("must be a whole number")
    try:
        converted = kind(value)
    except (TypeError, ValueError, OverflowError):
        raise ValueError(f"must be a {'whole ' if kind is int else ''}number, not {_shown(value)}") from None
    low, high = setting.metadata["low"], setting.metadata["high"]
    if low is not None and not low <= converted <= high:  # also refuses nan
        raise ValueError(f"must be from {low} to {high}, not {_shown(converted)}")
    if setting.name == "log_level" and converted not in ("debug", "info", "warning", "error"):
        raise ValueError(f"must be debug, info, warning or error, not {value!r}")
    return converted


def _from_file(path: Path, errors: list[ConfigError]) -> dict[str, object]:
    try:
        table = tomllib.loads(path.read_text(encoding="utf-8"))
    except OSError as exc:
        errors.append(ConfigError(f"cannot read {path}: {exc.strerror}"))
        return {}
    except (ValueError, RecursionError) as exc:  # also bytes that are not UTF-8, integers of 5,000 digits, lists in lists in lists …
        errors.append(ConfigError(f"{path} is not TOML: {' '.join(str(exc).split())}"))
        return {}
    return _known(table, str(path), errors)


def _shown(value: object) -> str:
    text = repr(value)
    return text if len(text) <= 100 else f"{text[:100]}…"


def _from_environment(environ: Mapping[str, str], errors: list[ConfigError]) -> dict[str, object]:
    # Clients, workers and orchestrators use the prefix too (GREENROOM_URL, GREENROOM_SERVICE_HOST), so an unknown name is an error
    # only where it can hardly be anything but a slip of the pen.
    names = {ENVIRONMENT_PREFIX + setting.name.upper(): setting.name for setting in fields(BrokerConfig)}
    values = {}
    for key, value in environ.items():
        if key in names:
            values.update(_known({names[key]: value}, f"the environment ({key})", errors))
        elif key.startswith(ENVIRONMENT_PREFIX) and (hint := _meant(key, names, SLIP_OF_THE_PEN)):
            errors.append(ConfigError(f"the environment has an unknown name {key}{hint}", field=key))
    return values


def _meant(name: str, known: Iterable[str], likeness: float = 0.6, *, prefix: str = "") -> str:
    """Return the end of a sentence that names the known name that was probably meant, or nothing."""
    close = difflib.get_close_matches(name, known, n=1, cutoff=likeness)
    return f": did you mean {prefix}{close[0]}?" if close else ""


def _known(table: Mapping[str, object], where: str, errors: list[ConfigError]) -> dict[str, object]:
    """Return the values of a table that are good; what is wrong with the others is added to `errors`."""
    settings = {setting.name: setting for setting in fields(BrokerConfig)}
    values: dict[str, object] = {}
    for name, value in table.items():
        if name not in settings:
            errors.append(ConfigError(f"{where} has an unknown key {name}{_meant(name, settings)}", field=name))
            continue
        try:
            values[name] = _convert(settings[name], value)
        except ValueError as exc:
            errors.append(ConfigError(f"{name} in {where} {exc}", field=name))
    return values


def _check_together(config: BrokerConfig) -> list[ConfigError]:
    if config.host not in LOOPBACK_HOSTS and not config.client_ca:
        return [ConfigError(
            f"--host {config.host} is reachable from other machines: that needs --client-ca FILE, so that only those with a "
            "client certificate get in (docs/operations.md, A worker on a second machine)", field="host")]
    return []


assert all(setting.default is not MISSING and setting.type in _KINDS for setting in fields(BrokerConfig))
