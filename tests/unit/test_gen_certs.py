"""What certs/gen_certs.py promises: contents, modes, idempotence, renewal, refusals, its command line."""

from __future__ import annotations

import importlib.util
import ipaddress
import os
import ssl
import stat
import subprocess
import sys
from datetime import datetime, timedelta, timezone
from pathlib import Path

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import serialization
from cryptography.hazmat.primitives.asymmetric import ec, rsa
from cryptography.x509.oid import ExtendedKeyUsageOID

SCRIPT = Path(__file__).resolve().parents[2] / "certs" / "gen_certs.py"


def load_script() -> object:
    spec = importlib.util.spec_from_file_location("gen_certs_under_test", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


gen_certs = load_script()
generate = gen_certs.generate


def certificate(directory: Path, name: str) -> x509.Certificate:
    return x509.load_pem_x509_certificate((directory / f"{name}.crt").read_bytes())


def private_key(directory: Path, name: str) -> object:
    return serialization.load_pem_private_key((directory / f"{name}.key").read_bytes(), password=None)


def extension(cert: x509.Certificate, kind: type) -> x509.Extension:
    return cert.extensions.get_extension_for_class(kind)


def names_of(cert: x509.Certificate) -> list[str]:
    return [str(name.value) for name in extension(cert, x509.SubjectAlternativeName).value]


def contents(directory: Path) -> dict[str, bytes]:
    return {path.name: path.read_bytes() for path in directory.iterdir()}


def run_script(*arguments: str | Path, interpreter_flags: tuple[str, ...] = ()) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, *interpreter_flags, str(SCRIPT), *map(str, arguments)],
                          capture_output=True, text=True, timeout=60)


def test_the_ca_may_sign_certificates_and_nothing_else(tmp_path: Path) -> None:
    generate(tmp_path)

    ca = certificate(tmp_path, "ca")
    constraints = extension(ca, x509.BasicConstraints)
    usage = extension(ca, x509.KeyUsage)
    assert constraints.critical and constraints.value.ca and constraints.value.path_length == 0
    assert usage.critical and usage.value.key_cert_sign and usage.value.crl_sign and not usage.value.digital_signature
    assert isinstance(private_key(tmp_path, "ca").curve, ec.SECP256R1)


def test_the_server_certificate_is_signed_by_the_ca_and_carries_names_usages_and_identifiers(tmp_path: Path) -> None:
    generate(tmp_path, names=["Broker.Example", "192.0.2.7", "2001:db8:0::7", "*.example.org"])

    ca, server = certificate(tmp_path, "ca"), certificate(tmp_path, "server")
    server.verify_directly_issued_by(ca)
    alternative = extension(server, x509.SubjectAlternativeName).value
    assert alternative.get_values_for_type(x509.DNSName) == ["localhost", "broker.example", "*.example.org"]
    assert alternative.get_values_for_type(x509.IPAddress) == [
        ipaddress.ip_address(text) for text in ("127.0.0.1", "::1", "192.0.2.7", "2001:db8::7")]
    assert list(extension(server, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.SERVER_AUTH]
    assert extension(server, x509.KeyUsage).value.digital_signature
    assert not extension(server, x509.BasicConstraints).value.ca
    assert (extension(server, x509.AuthorityKeyIdentifier).value.key_identifier
            == extension(ca, x509.SubjectKeyIdentifier).value.digest)
    assert extension(server, x509.SubjectKeyIdentifier).value.digest
    assert private_key(tmp_path, "server").public_key() == server.public_key()


def test_validity_is_backdated_a_little_and_as_long_as_asked(tmp_path: Path) -> None:
    before = datetime.now(timezone.utc)
    generate(tmp_path, days=30)
    after = datetime.now(timezone.utc)

    server, ca = certificate(tmp_path, "server"), certificate(tmp_path, "ca")
    assert before - timedelta(minutes=10) < server.not_valid_before_utc < before - timedelta(minutes=1)
    second = timedelta(seconds=1)  # certificates hold whole seconds
    assert before + timedelta(days=30) - second <= server.not_valid_after_utc <= after + timedelta(days=30)
    assert before + timedelta(days=3650) - second <= ca.not_valid_after_utc <= after + timedelta(days=3650)


def test_a_certificate_does_not_outlive_its_ca(tmp_path: Path) -> None:
    generate(tmp_path, days=3650)

    assert certificate(tmp_path, "server").not_valid_after_utc <= certificate(tmp_path, "ca").not_valid_after_utc


def test_a_client_certificate_is_for_clients_and_has_its_name_as_alternative_name(tmp_path: Path) -> None:
    generate(tmp_path, clients=["worker_1.A", "b"])

    client = certificate(tmp_path, "worker_1.A")
    client.verify_directly_issued_by(certificate(tmp_path, "ca"))
    assert names_of(client) == ["worker_1.A"]
    assert list(extension(client, x509.ExtendedKeyUsage).value) == [ExtendedKeyUsageOID.CLIENT_AUTH]
    assert (tmp_path / "b.crt").exists()


def test_rsa_is_for_server_and_clients(tmp_path: Path) -> None:
    generate(tmp_path, clients=["w"], rsa=True)

    for name in ("server", "w"):
        key = private_key(tmp_path, name)
        assert isinstance(key, rsa.RSAPrivateKey) and key.key_size == 2048


def test_keys_are_for_the_owner_only_whatever_the_umask(tmp_path: Path) -> None:
    old = os.umask(0)
    try:
        generate(tmp_path, clients=["w"])
    finally:
        os.umask(old)

    modes = {path.name: stat.S_IMODE(path.stat().st_mode) for path in tmp_path.iterdir()}
    assert modes == {"ca.crt": 0o644, "ca.key": 0o600, "server.crt": 0o644, "server.key": 0o600,
                     "w.crt": 0o644, "w.key": 0o600}


def test_a_key_is_never_open_to_others_while_it_is_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: dict[str, int] = {}
    replace = os.replace

    def watch(source: Path, target: Path) -> None:
        seen[Path(target).name] = stat.S_IMODE(os.stat(source).st_mode)
        replace(source, target)

    monkeypatch.setattr(os, "replace", watch)
    generate(tmp_path)

    assert seen["ca.key"] == seen["server.key"] == 0o600


def test_a_second_run_keeps_everything_and_says_so(tmp_path: Path) -> None:
    generate(tmp_path, names=["broker.example"], clients=["w"])
    first = contents(tmp_path)

    lines = generate(tmp_path, clients=["w"])

    assert contents(tmp_path) == first
    assert len(lines) == 3 and all(": kept, " in line for line in lines)


def test_a_key_that_was_opened_to_others_is_closed_again(tmp_path: Path) -> None:
    generate(tmp_path)
    (tmp_path / "server.key").chmod(0o644)

    lines = generate(tmp_path)

    assert stat.S_IMODE((tmp_path / "server.key").stat().st_mode) == 0o600
    assert any("open to other users" in line for line in lines)


def test_a_server_certificate_that_expires_soon_is_renewed_from_the_same_ca(tmp_path: Path) -> None:
    generate(tmp_path, days=13, names=["broker.example"])
    first = contents(tmp_path)

    lines = generate(tmp_path)

    now = contents(tmp_path)
    assert [name for name in first if first[name] != now[name]] == ["server.crt"]
    assert names_of(certificate(tmp_path, "server")) == ["localhost", "127.0.0.1", "::1", "broker.example"]
    certificate(tmp_path, "server").verify_directly_issued_by(certificate(tmp_path, "ca"))
    assert any("about to expire, renewed" in line for line in lines)


def test_an_expired_server_certificate_is_renewed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    generate(tmp_path)
    real = datetime

    class Later(datetime):
        @classmethod
        def now(cls, tz: timezone | None = None) -> datetime:
            return real.now(tz) + timedelta(days=400)

    monkeypatch.setattr(gen_certs, "datetime", Later)
    lines = generate(tmp_path)

    assert any("had expired, renewed" in line for line in lines)
    assert certificate(tmp_path, "server").not_valid_after_utc > real.now(timezone.utc) + timedelta(days=700)


def test_a_certificate_with_fourteen_days_left_is_kept(tmp_path: Path) -> None:
    generate(tmp_path, days=15)
    first = contents(tmp_path)

    generate(tmp_path)

    assert contents(tmp_path) == first


def test_a_name_asked_for_later_is_added_to_those_there(tmp_path: Path) -> None:
    generate(tmp_path, names=["first.example"])

    lines = generate(tmp_path, names=["192.0.2.9"])

    assert names_of(certificate(tmp_path, "server")) == ["localhost", "127.0.0.1", "::1", "first.example", "192.0.2.9"]
    assert any("lacked 192.0.2.9" in line for line in lines)


def test_force_replaces_ca_and_server_and_names_the_clients_left_behind(tmp_path: Path) -> None:
    generate(tmp_path, clients=["w"])
    first = contents(tmp_path)

    lines = generate(tmp_path, force=True)

    now = contents(tmp_path)
    assert sorted(name for name in first if first[name] != now[name]) == ["ca.crt", "ca.key", "server.crt", "server.key"]
    certificate(tmp_path, "server").verify_directly_issued_by(certificate(tmp_path, "ca"))
    assert any(line.startswith("w.crt: signed by another CA") for line in lines)


def test_force_with_a_client_replaces_that_client_only(tmp_path: Path) -> None:
    generate(tmp_path, clients=["w", "v"])
    first = contents(tmp_path)

    generate(tmp_path, clients=["w"], force=True)

    now = contents(tmp_path)
    assert sorted(name for name in first if first[name] != now[name]) == ["w.crt", "w.key"]


def test_a_ca_whose_key_does_not_match_is_refused(tmp_path: Path) -> None:
    generate(tmp_path / "a")
    generate(tmp_path / "b")
    (tmp_path / "a" / "ca.key").write_bytes((tmp_path / "b" / "ca.key").read_bytes())
    before = contents(tmp_path / "a")

    with pytest.raises(gen_certs.CertificateError, match=r"ca\.key does not belong to .*ca\.crt.*--force"):
        generate(tmp_path / "a", clients=["w"])

    assert contents(tmp_path / "a") == before


def test_without_the_ca_key_good_files_are_kept_but_nothing_is_signed(tmp_path: Path) -> None:
    generate(tmp_path)
    (tmp_path / "ca.key").unlink()

    assert all("kept" in line for line in generate(tmp_path))
    with pytest.raises(gen_certs.CertificateError, match="ca.key is missing"):
        generate(tmp_path, clients=["w"])


@pytest.mark.parametrize("broken", ["ca.crt", "ca.key", "server.crt", "server.key"])
def test_a_file_that_is_not_pem_is_named_and_left_alone(tmp_path: Path, broken: str) -> None:
    generate(tmp_path)
    (tmp_path / broken).write_text("not a certificate\n")
    before = contents(tmp_path)

    with pytest.raises(gen_certs.CertificateError, match=f"{broken} is not a .*--force"):
        generate(tmp_path)

    assert contents(tmp_path) == before
    generate(tmp_path, force=True)
    certificate(tmp_path, "server").verify_directly_issued_by(certificate(tmp_path, "ca"))


def test_a_server_certificate_of_another_ca_is_not_overwritten(tmp_path: Path) -> None:
    generate(tmp_path)
    (tmp_path / "ca.crt").unlink()
    (tmp_path / "ca.key").unlink()

    with pytest.raises(gen_certs.CertificateError, match="server.crt was not signed by"):
        generate(tmp_path)


def test_a_run_that_was_interrupted_after_a_key_is_completed_by_the_next(tmp_path: Path) -> None:
    generate(tmp_path)
    key = (tmp_path / "server.key").read_bytes()
    (tmp_path / "server.crt").unlink()

    generate(tmp_path)

    assert (tmp_path / "server.key").read_bytes() == key
    assert private_key(tmp_path, "server").public_key() == certificate(tmp_path, "server").public_key()


def test_a_ca_near_its_end_is_not_used_to_sign(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(gen_certs, "CA_DAYS", 10)

    with pytest.raises(gen_certs.CertificateError, match="too short to sign with"):
        generate(tmp_path)


@pytest.mark.parametrize("name", ["", ".a", "a b", "a:1", "host/", "1.2.3.999", "fe80::1%eth0", "é.example", "*", "*.",
                                  "-a", "a" * 64, "https://a"])
def test_a_bad_host_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError, match="neither a host name nor an IP address"):
        generate(tmp_path / "new", names=[name])

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("name", ["", "a/b", "../x", "a b", "a" * 65, "ca", "Server", "w\n", "é"])
def test_a_bad_or_taken_client_name_is_refused_before_anything_is_written(tmp_path: Path, name: str) -> None:
    with pytest.raises(ValueError):
        generate(tmp_path / "new", clients=[name])

    assert not (tmp_path / "new").exists()


@pytest.mark.parametrize("days", [0, -1, 3651])
def test_days_out_of_range_are_refused(tmp_path: Path, days: int) -> None:
    with pytest.raises(ValueError, match="1 to 3650"):
        generate(tmp_path, days=days)


def test_no_temporary_file_stays_when_a_write_fails(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    def refuse(source: Path, target: Path) -> None:
        raise PermissionError(13, "Permission denied", str(target))

    monkeypatch.setattr(os, "replace", refuse)
    with pytest.raises(PermissionError):
        generate(tmp_path)

    assert list(tmp_path.iterdir()) == []


def test_strict_verification_accepts_what_it_makes(tmp_path: Path) -> None:
    # The default of Python 3.13's create_default_context, which clients in the wild use.
    generate(tmp_path)
    server = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    server.load_cert_chain(tmp_path / "server.crt", tmp_path / "server.key")
    client = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    client.verify_flags |= ssl.VERIFY_X509_STRICT
    client.load_verify_locations(tmp_path / "ca.crt")

    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ours = client.wrap_bio(to_client, to_server, server_hostname="127.0.0.1")
    theirs = server.wrap_bio(to_server, to_client, server_side=True)
    with pytest.raises(ssl.SSLWantReadError):
        ours.do_handshake()
    with pytest.raises(ssl.SSLWantReadError):
        theirs.do_handshake()
    ours.do_handshake()
    theirs.do_handshake()

    assert ours.getpeercert()["subjectAltName"][0] == ("DNS", "localhost")


def test_the_script_makes_the_files_and_a_second_run_says_kept(tmp_path: Path) -> None:
    first = run_script("--dir", tmp_path, "--name", "broker.example", "--client", "w")
    second = run_script("--dir", tmp_path)

    assert (first.returncode, first.stderr) == (0, "") and "server.crt, server.key: made" in first.stdout
    assert (second.returncode, second.stderr) == (0, "") and "server.crt, server.key: kept" in second.stdout
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "ca.crt", "ca.key", "server.crt", "server.key", "w.crt", "w.key"]


def test_the_script_says_nothing_when_quiet(tmp_path: Path) -> None:
    done = run_script("--dir", tmp_path, "--quiet")

    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")
    assert (tmp_path / "server.crt").exists()


@pytest.mark.parametrize("arguments", [["--days", "0"], ["--days", "3651"], ["--days", "x"], ["--days", "1_0"],
                                       ["--client", "a/b"], ["--client", "ca"], ["--name", "a b"], ["--what"]])
def test_bad_flags_end_with_two_and_a_sentence(tmp_path: Path, arguments: list[str]) -> None:
    done = run_script("--dir", tmp_path / "new", *arguments)

    assert done.returncode == 2
    assert "error: " in done.stderr and "Traceback" not in done.stderr
    assert not (tmp_path / "new").exists()


def test_a_refusal_is_one_line_and_exit_one(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    generate(tmp_path / "certs")
    (tmp_path / "certs" / "ca.key").write_text("junk")

    for directory in (tmp_path / "file", tmp_path / "certs"):
        done = run_script("--dir", directory)
        assert done.returncode == 1
        assert done.stderr.startswith("gen_certs.py: ") and done.stderr.count("\n") == 1


def test_a_missing_package_is_named_with_the_command_that_installs_it(tmp_path: Path) -> None:
    # Without site there are no installed packages.
    done = run_script("--dir", tmp_path, interpreter_flags=("-S", "-E"))

    assert done.returncode == 2
    assert done.stderr.count("\n") == 1
    assert "cryptography" in done.stderr and "`./run setup && . .venv/bin/activate`" in done.stderr and "requirements.txt" in done.stderr
