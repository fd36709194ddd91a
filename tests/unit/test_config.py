"""Where the broker's settings come from, and what is refused: greenroom.config."""

from __future__ import annotations

from dataclasses import asdict, fields
from pathlib import Path

import pytest

from greenroom.config import BrokerConfig, load
from greenroom.errors import ConfigError

#: One good value that is not the default for every setting, as TOML and as text.
OTHER: dict[str, object] = {
    "host": "::1", "port": 1234, "web_port": 0, "data": "elsewhere", "cert": "a.crt", "key": "a.key", "client_ca": "ca.crt",
    "lease_s": 2.5, "reconnect_grace_s": 0.25, "restart_grace_s": 7.0, "max_waiting_jobs": 10, "max_waiting_bytes": 1000,
    "window_jobs": 500, "window_bytes": 2**21, "history_age_s": 3600.5, "history_count": 0,
    "history_failed_age_s": 7200.5, "history_failed_count": 9, "max_kept_jobs": 5, "max_connections": 77,
    "log_level": "debug",
}
SETTINGS = {setting.name: setting for setting in fields(BrokerConfig)}
NUMBERS = [name for name, setting in SETTINGS.items() if setting.type != "str"]
WHOLE_NUMBERS = [name for name in NUMBERS if SETTINGS[name].type == "int"]
TEXTS = [name for name, setting in SETTINGS.items() if setting.type == "str"]


def flag(name: str) -> str:
    return "--" + name.replace("_", "-")


def toml(tmp_path: Path, text: str) -> str:
    path = tmp_path / "broker.toml"
    path.write_text(text)
    return str(path)


def as_toml(value: object) -> str:
    return f'"{value}"' if isinstance(value, str) else repr(value)


def test_the_table_of_this_test_covers_every_setting() -> None:
    assert set(OTHER) == set(SETTINGS)
    assert all(OTHER[name] != setting.default for name, setting in SETTINGS.items())


def test_without_anything_the_defaults_hold() -> None:
    assert load([], {}) == BrokerConfig()


def test_the_defaults_listen_on_loopback_and_are_in_range() -> None:
    defaults = BrokerConfig()
    assert defaults.host == "127.0.0.1" and defaults.client_ca == ""
    for name in NUMBERS:
        assert SETTINGS[name].metadata["low"] <= getattr(defaults, name) <= SETTINGS[name].metadata["high"]


@pytest.mark.parametrize("name", OTHER)
def test_every_setting_comes_from_file_environment_and_flag(name: str, tmp_path: Path) -> None:
    value = OTHER[name]
    config = toml(tmp_path, f"{name} = {as_toml(value)}\n")

    expected = {**asdict(BrokerConfig()), name: value}
    assert asdict(load(["--config", config], {})) == expected
    assert asdict(load([], {"GREENROOM_CONFIG": config})) == expected
    assert asdict(load([], {"GREENROOM_" + name.upper(): str(value)})) == expected
    assert asdict(load([flag(name), str(value)], {})) == expected
    assert asdict(load([f"{flag(name)}={value}"], {})) == expected


def test_flags_beat_the_environment_and_that_beats_the_file(tmp_path: Path) -> None:
    config = toml(tmp_path, "port = 1\nweb_port = 2\nlease_s = 3\n")
    environ = {"GREENROOM_WEB_PORT": "20", "GREENROOM_LEASE_S": "30"}

    loaded = load(["--config", config, "--lease-s", "300"], environ)

    assert (loaded.port, loaded.web_port, loaded.lease_s) == (1, 20, 300.0)


def test_the_flag_for_the_file_beats_its_environment_name(tmp_path: Path) -> None:
    config = toml(tmp_path, "port = 1\n")
    assert load(["--config", config], {"GREENROOM_CONFIG": "missing.toml"}).port == 1


def test_a_flag_may_set_a_value_back_to_nothing(tmp_path: Path) -> None:
    assert load(["--client-ca", ""], {"GREENROOM_CLIENT_CA": "ca.crt"}).client_ca == ""


def test_names_of_clients_and_workers_in_the_environment_are_left_alone() -> None:
    others = ("GREENROOM_URL", "GREENROOM_CA", "GREENROOM_TOKEN", "GREENROOM_SERVICE_HOST", "GREENROOM_SERVICE_PORT",
              "GREENROOM_PORT_65432_TCP", "GREENROOM_HOME", "PORT", "WEB_PROT")
    assert load([], dict.fromkeys(others, "x")) == BrokerConfig()


@pytest.mark.parametrize(("wrong", "right"), [("WEB_PROT", "WEB_PORT"), ("LEASE", "LEASE_S"), ("LOGLEVEL", "LOG_LEVEL")])
def test_a_slip_of_the_pen_in_the_environment_is_refused_with_the_name_that_was_meant(wrong: str, right: str) -> None:
    with pytest.raises(ConfigError, match=f"unknown name GREENROOM_{wrong}: did you mean GREENROOM_{right}\\?"):
        load([], {f"GREENROOM_{wrong}": "1"})


@pytest.mark.parametrize("name", NUMBERS)
def test_a_number_may_be_lowest_and_highest_and_nothing_beyond(name: str, tmp_path: Path) -> None:
    low, high = SETTINGS[name].metadata["low"], SETTINGS[name].metadata["high"]
    for value in (low, high):
        assert getattr(load([], {"GREENROOM_" + name.upper(): str(value)}), name) == value
    for value in (low - 1, high + 1, -(10**30), 10**30):
        with pytest.raises(ConfigError, match=f"{name} in the environment .* must be from {low} to {high}") as refused:
            load([], {"GREENROOM_" + name.upper(): str(value)})
        assert refused.value.field == name
        with pytest.raises(ConfigError, match=f"{name} in .*broker.toml must be from"):
            load(["--config", toml(tmp_path, f"{name} = {value}\n")], {})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("text", ["nan", "inf", "-inf"])
def test_what_is_no_ordinary_number_is_refused(name: str, text: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=name):
        load([], {"GREENROOM_" + name.upper(): text})
    with pytest.raises(ConfigError, match=name):
        load(["--config", toml(tmp_path, f"{name} = {text}\n")], {})


@pytest.mark.parametrize("name", NUMBERS)
@pytest.mark.parametrize("value", ["true", "false", "[1]", "{}", '"x"', "2020-01-01"])
def test_a_number_in_the_file_is_not_of_another_type(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} in .*broker.toml must be a (whole )?number"):
        load(["--config", toml(tmp_path, f"{name} = {value}\n")], {})


@pytest.mark.parametrize("name", WHOLE_NUMBERS)
def test_a_whole_number_has_no_fraction(name: str, tmp_path: Path) -> None:
    for text in ("500.0", "1e3"):
        with pytest.raises(ConfigError, match="whole number"):
            load(["--config", toml(tmp_path, f"{name} = {text}\n")], {})
        with pytest.raises(ConfigError, match="whole number"):
            load([], {"GREENROOM_" + name.upper(): text})


@pytest.mark.parametrize("name", TEXTS)
@pytest.mark.parametrize("value", ["1", "true", "1.5", "[]", "2020-01-01"])
def test_a_text_in_the_file_is_a_text(name: str, value: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"{name} in .*broker.toml must be a text"):
        load(["--config", toml(tmp_path, f"{name} = {value}\n")], {})


def test_an_empty_number_is_refused_and_not_taken_as_unset() -> None:
    with pytest.raises(ConfigError, match="GREENROOM_PORT.*whole number"):
        load([], {"GREENROOM_PORT": ""})


@pytest.mark.parametrize(("wrong", "right"), [("web_prot", "web_port"), ("leases_s", "lease_s"), ("web-port", "web_port")])
def test_an_unknown_key_is_refused_with_the_one_that_was_meant(wrong: str, right: str, tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=f"unknown key {wrong}: did you mean {right}\\?"):
        load(["--config", toml(tmp_path, f"{wrong} = 1\n")], {})


def test_an_unknown_key_that_resembles_nothing_is_refused_without_a_guess(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="unknown key zzz$"):
        load(["--config", toml(tmp_path, "zzz = 1\n")], {})
    with pytest.raises(ConfigError, match="unknown key broker"):
        load(["--config", toml(tmp_path, "[broker]\nport = 1\n")], {})


@pytest.mark.parametrize(("content", "why"), [
    (b"port = ", "is not TOML"), (b"port 1", "is not TOML"), (b"port = 1\nport = 2", "is not TOML"), (b"\xff\xfe", "is not TOML"),
    (b"# \xe9", "is not TOML")])
def test_a_file_that_is_not_toml_is_named(content: bytes, why: str, tmp_path: Path) -> None:
    path = tmp_path / "broken.toml"
    path.write_bytes(content)
    with pytest.raises(ConfigError, match=f"broken.toml {why}"):
        load(["--config", str(path)], {})


def test_a_file_that_cannot_be_read_is_named(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match="cannot read .*missing.toml: No such file"):
        load(["--config", str(tmp_path / "missing.toml")], {})
    with pytest.raises(ConfigError, match="cannot read .*: Is a directory"):
        load(["--config", str(tmp_path)], {})


def test_an_empty_file_changes_nothing(tmp_path: Path) -> None:
    assert load(["--config", toml(tmp_path, "")], {}) == BrokerConfig()


@pytest.mark.parametrize("level", ["INFO", "verbose", ""])
def test_an_unknown_log_level_is_refused(level: str) -> None:
    with pytest.raises(ConfigError, match="log_level .* must be debug, info, warning or error"):
        load([], {"GREENROOM_LOG_LEVEL": level})


@pytest.mark.parametrize("host", ["0.0.0.0", "::", "192.0.2.1", "example.org", "127.0.0.2", "", "127.0.0.1.example.org"])
def test_another_address_than_loopback_needs_client_certificates(host: str) -> None:
    with pytest.raises(ConfigError, match="--client-ca") as refused:
        load(["--host", host], {})
    assert refused.value.field == "host"
    assert load(["--host", host], {"GREENROOM_CLIENT_CA": "ca.crt"}).host == host


@pytest.mark.parametrize("host", ["127.0.0.1", "::1", "localhost"])
def test_loopback_needs_none(host: str) -> None:
    assert load(["--host", host], {}).host == host


@pytest.mark.parametrize(("arguments", "sentence"), [
    (["--port", "x"], "--port: must be a whole number, not 'x'"),
    (["--port", "65536"], "--port: must be from 0 to 65535"),
    (["--lease-s", "nan"], "--lease-s: must be from 1 to 3600"),
    (["--prot", "1"], "unrecognized arguments: --prot 1: did you mean --port?"),
    (["--por", "1"], "--por 1: did you mean --port?"),
    (["--lease=9"], "--lease=9: did you mean --lease-s?"),
    (["--bogus"], "unrecognized arguments: --bogus\n"),
    (["stray"], "stray"),
    (["--port"], "expected one argument")])
def test_a_bad_flag_exits_with_2_and_one_sentence(arguments: list[str], sentence: str,
                                                  capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(arguments, {})
    assert ended.value.code == 2
    assert sentence in capsys.readouterr().err


def test_help_shows_every_flag_with_its_real_default(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        load(["--help"], {})

    shown = " ".join(capsys.readouterr().out.split())
    assert ended.value.code == 0
    for name, setting in SETTINGS.items():
        assert flag(name) in shown
        if name not in ("cert", "key", "client_ca"):
            assert f"(default: {setting.default})" in shown, name
    assert "(default: certs/server.crt)" in shown and "(default: none)" in shown


@pytest.mark.parametrize("text", ["lease_s = " + "1" * 400, "port = " + "1" * 5000, "port = " + "[" * 5000, "\xff"])
def test_a_file_beyond_what_a_number_or_a_reader_can_hold_is_refused_in_one_short_sentence(text: str, tmp_path: Path) -> None:
    path = tmp_path / "broker.toml"
    path.write_bytes(text.encode("latin-1"))

    with pytest.raises(ConfigError) as refused:
        load(["--config", str(path)], {})

    assert "\n" not in refused.value.message and len(refused.value.message) < 300 + len(str(path))
