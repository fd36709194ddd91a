"""What greenroom.tls promises, tried with real handshakes over loopback sockets."""

from __future__ import annotations

import contextlib
import hashlib
import importlib.util
import socket
import ssl
import stat
import subprocess
import sys
import threading
import time
from collections.abc import Callable
from pathlib import Path

import pytest
from cryptography.hazmat.primitives import serialization

from greenroom.errors import ConfigError
from greenroom.tls import (ALPN, REJECTION_REASONS, check_alpn, client_context, days_left, describe_certificate,
                           rejection_reason, server_context)

SCRIPT = Path(__file__).resolve().parents[2] / "certs" / "gen_certs.py"
DEADLINE_S = 5.0
Peer = Callable[[socket.socket], object]


def generate(directory: Path, **options: object) -> None:
    spec = importlib.util.spec_from_file_location("gen_certs_for_tls", SCRIPT)
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    module.generate(directory, **options)


@pytest.fixture(scope="module")
def pki(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A directory with a CA, a server certificate and the client "w"; in its folder `other`, the same from another CA."""
    directory = tmp_path_factory.mktemp("pki")
    generate(directory, clients=["w"])
    generate(directory / "other", clients=["w"])
    return directory


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A server pair that a test may spoil."""
    generate(tmp_path)
    return tmp_path


def accepting(pki: Path, **options: object) -> ssl.SSLContext:
    return server_context(pki / "server.crt", pki / "server.key", **options)


def loopback_pair() -> tuple[socket.socket, socket.socket]:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        near = socket.create_connection(listener.getsockname(), timeout=DEADLINE_S)
        far, _ = listener.accept()
    far.settimeout(DEADLINE_S)
    return near, far


class Outcome:
    """What both ends of one handshake saw: the TLS socket or the exception."""

    def __init__(self) -> None:
        self.server: object = None
        self.peer: object = None
        self.first_bytes = b""


@contextlib.contextmanager
def meeting(context: ssl.SSLContext, peer: Peer, *, server_timeout_s: float = DEADLINE_S,
            peek: bool = False) -> Outcome:
    """Run `peer` on one end of a connection and the server's handshake on the other; both ends are open inside."""
    near, far = loopback_pair()
    far.settimeout(server_timeout_s)
    outcome = Outcome()

    def run_peer() -> None:
        try:
            outcome.peer = peer(near)
        except (OSError, EOFError) as exc:
            outcome.peer = exc

    thread = threading.Thread(target=run_peer)
    thread.start()
    try:
        if peek:
            outcome.first_bytes = far.recv(16, socket.MSG_PEEK)
        far = outcome.server = context.wrap_socket(far, server_side=True)
    except (OSError, EOFError) as exc:
        outcome.server = exc
    try:
        if isinstance(outcome.server, BaseException):
            far.close()
        thread.join(DEADLINE_S + 1)
        assert not thread.is_alive()
        yield outcome
    finally:
        far.close()
        near.close()
        if isinstance(outcome.peer, ssl.SSLSocket):
            outcome.peer.close()


def tls_peer(context: ssl.SSLContext, host: str = "localhost") -> Peer:
    def peer(sock: socket.socket) -> ssl.SSLSocket:
        return context.wrap_socket(sock, server_hostname=host)
    return peer


def reading_tls_peer(context: ssl.SSLContext) -> Peer:
    """In TLS 1.3 a client learns that its certificate was refused only when it reads."""
    def peer(sock: socket.socket) -> bytes:
        with context.wrap_socket(sock, server_hostname="localhost") as wrapped:
            return wrapped.recv(1)
    return peer


def sending_peer(content: bytes) -> Peer:
    def peer(sock: socket.socket) -> None:
        sock.sendall(content)
        with contextlib.suppress(OSError):
            sock.recv(64)
    return peer


def closing_peer(content: bytes = b"") -> Peer:
    def peer(sock: socket.socket) -> None:
        sock.sendall(content)
        sock.close()
    return peer


def silent_peer(sock: socket.socket) -> bytes:
    return sock.recv(1)


def reason_at_server(context: ssl.SSLContext, peer: Peer, **options: object) -> str:
    with meeting(context, peer, **options) as outcome:
        assert isinstance(outcome.server, BaseException), "the handshake succeeded"
        reason = rejection_reason(outcome.server, outcome.first_bytes)
    assert reason in REJECTION_REASONS
    return reason


@pytest.mark.parametrize("host", ["localhost", "127.0.0.1", "::1"])
def test_both_contexts_meet_with_tls_1_3_and_alpn(pki: Path, host: str) -> None:
    with meeting(accepting(pki), tls_peer(client_context(pki / "ca.crt"), host)) as outcome:
        assert outcome.server.version() == outcome.peer.version() == "TLSv1.3"
        assert check_alpn(outcome.server) and check_alpn(outcome.peer)
        assert outcome.server.selected_alpn_protocol() == ALPN == "greenroom/1"
        assert outcome.server.compression() is None
        outcome.peer.sendall(b"frame")
        assert outcome.server.recv(16) == b"frame"


def test_a_client_certificate_of_the_client_ca_is_accepted_and_shows_its_name(pki: Path) -> None:
    client = client_context(pki / "ca.crt", pki / "w.crt", pki / "w.key")

    with meeting(accepting(pki, client_ca=pki / "ca.crt"), tls_peer(client)) as outcome:
        assert outcome.server.getpeercert()["subjectAltName"] == (("DNS", "w"),)


def test_rsa_certificates_work_too(tmp_path: Path) -> None:
    generate(tmp_path, clients=["w"], rsa=True)
    client = client_context(tmp_path / "ca.crt", tmp_path / "w.crt", tmp_path / "w.key")

    with meeting(accepting(tmp_path, client_ca=tmp_path / "ca.crt"), tls_peer(client)) as outcome:
        assert check_alpn(outcome.server)


@pytest.mark.parametrize("protocols", [[], ["h2", "http/1.1"], ["greenroom/2"]])
def test_a_peer_without_our_alpn_is_noticed(pki: Path, protocols: list[str]) -> None:
    foreign = ssl.create_default_context(cafile=pki / "ca.crt")
    if protocols:
        foreign.set_alpn_protocols(protocols)

    with meeting(accepting(pki), tls_peer(foreign)) as outcome:
        assert not check_alpn(outcome.server)


def test_contexts_issue_no_tickets_and_never_skip_verification(pki: Path) -> None:
    server, client = accepting(pki), client_context(pki / "ca.crt")

    assert server.num_tickets == 0 and server.verify_mode == ssl.CERT_NONE
    assert accepting(pki, client_ca=pki / "ca.crt").verify_mode == ssl.CERT_REQUIRED
    assert client.verify_mode == ssl.CERT_REQUIRED and client.check_hostname
    for context in (server, client):
        assert context.minimum_version == ssl.TLSVersion.TLSv1_3
        assert context.options & ssl.OP_NO_COMPRESSION


def test_an_http_request_is_plain_http(pki: Path) -> None:
    assert reason_at_server(accepting(pki), sending_peer(b"GET / HTTP/1.1\r\nHost: a\r\n\r\n")) == "plain_http"


@pytest.mark.parametrize("request_line", [b"DELETE / HTTP/1.1\r\n\r\n", b"OPTIONS * HTTP/1.1\r\n\r\n",
                                          b"PRI * HTTP/2.0\r\n\r\nSM\r\n\r\n", b"CONNECT a:1 HTTP/1.1\r\n\r\n"])
def test_first_bytes_tell_every_http_method(pki: Path, request_line: bytes) -> None:
    assert reason_at_server(accepting(pki), sending_peer(request_line), peek=True) == "plain_http"


@pytest.mark.parametrize("peek", [False, True])
@pytest.mark.parametrize("content", [b"hello, is this plain TCP?\r\n", b"\x00\x00\x00\x10" + b"\x81" * 16, b"\xff" * 64])
def test_other_bytes_are_plain_tcp(pki: Path, content: bytes, peek: bool) -> None:
    assert reason_at_server(accepting(pki), sending_peer(content), peek=peek) == "plain_tcp"


def test_first_bytes_tell_a_few_stray_bytes_from_a_silent_close(pki: Path) -> None:
    assert reason_at_server(accepting(pki), closing_peer(b"hi"), peek=True) == "plain_tcp"
    assert reason_at_server(accepting(pki), closing_peer(b"hi")) == "closed"


def test_a_silent_close_is_closed(pki: Path) -> None:
    assert reason_at_server(accepting(pki), closing_peer()) == "closed"
    assert reason_at_server(accepting(pki), closing_peer(), peek=True) == "closed"


def test_a_close_in_the_middle_of_a_client_hello_is_closed(pki: Path) -> None:
    assert reason_at_server(accepting(pki), closing_peer(b"\x16\x03\x01\x02\x00\x01"), peek=True) == "closed"


def test_a_reset_is_closed(pki: Path) -> None:
    def resetting(sock: socket.socket) -> None:
        sock.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, b"\x01\x00\x00\x00\x00\x00\x00\x00")
        sock.close()

    assert reason_at_server(accepting(pki), resetting) == "closed"


def test_a_silent_peer_is_a_timeout(pki: Path) -> None:
    assert reason_at_server(accepting(pki), silent_peer, server_timeout_s=0.05) == "timeout"


def test_garbage_in_a_tls_record_is_other(pki: Path) -> None:
    assert reason_at_server(accepting(pki), sending_peer(b"\x16\x03\x01\x00\x05abcde"), peek=True) == "other"


def test_a_tls_1_2_client_is_old_tls_on_both_ends(pki: Path) -> None:
    old = ssl.create_default_context(cafile=pki / "ca.crt")
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    with meeting(accepting(pki), tls_peer(old), peek=True) as outcome:
        assert rejection_reason(outcome.server, outcome.first_bytes) == "old_tls"
        assert rejection_reason(outcome.peer) == "old_tls"


def test_a_server_that_speaks_only_tls_1_2_is_old_tls_on_both_ends(pki: Path) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.load_cert_chain(pki / "server.crt", pki / "server.key")
    old.maximum_version = ssl.TLSVersion.TLSv1_2

    with meeting(old, tls_peer(client_context(pki / "ca.crt"))) as outcome:
        assert rejection_reason(outcome.server) == rejection_reason(outcome.peer) == "old_tls"


def test_a_missing_client_certificate_is_no_certificate_on_both_ends(pki: Path) -> None:
    client = client_context(pki / "ca.crt")

    with meeting(accepting(pki, client_ca=pki / "ca.crt"), reading_tls_peer(client)) as outcome:
        assert rejection_reason(outcome.server) == "no_certificate"
        assert rejection_reason(outcome.peer) == "no_certificate"


def test_a_client_certificate_of_another_ca_is_unknown_ca(pki: Path) -> None:
    stranger = client_context(pki / "ca.crt", pki / "other" / "w.crt", pki / "other" / "w.key")

    with meeting(accepting(pki, client_ca=pki / "ca.crt"), reading_tls_peer(stranger)) as outcome:
        assert rejection_reason(outcome.server) == "unknown_ca"
        assert rejection_reason(outcome.peer) == "peer_refused_us"


def test_a_server_certificate_shown_by_a_client_is_bad_certificate(pki: Path) -> None:
    impostor = client_context(pki / "ca.crt", pki / "server.crt", pki / "server.key")

    with meeting(accepting(pki, client_ca=pki / "ca.crt"), reading_tls_peer(impostor)) as outcome:
        assert rejection_reason(outcome.server) == "bad_certificate"


def test_a_client_that_does_not_trust_our_ca_is_peer_refused_us(pki: Path) -> None:
    with meeting(accepting(pki), tls_peer(client_context(pki / "other" / "ca.crt"))) as outcome:
        assert rejection_reason(outcome.server) == "peer_refused_us"
        assert rejection_reason(outcome.peer) == "unknown_ca"


@pytest.mark.parametrize("host", ["broker.example", "127.0.0.2"])
def test_a_wrong_host_name_is_refused_by_the_client(pki: Path, host: str) -> None:
    with meeting(accepting(pki), tls_peer(client_context(pki / "ca.crt"), host)) as outcome:
        assert isinstance(outcome.peer, ssl.SSLCertVerificationError)
        assert rejection_reason(outcome.peer) == "bad_certificate"
        assert rejection_reason(outcome.server) == "peer_refused_us"


def test_a_client_that_meets_a_plain_server_sees_plain_tcp(pki: Path) -> None:
    near, far = loopback_pair()
    with near, far:
        far.sendall(b"220 mail.example ESMTP\r\n")
        with pytest.raises(ssl.SSLError) as caught:
            client_context(pki / "ca.crt").wrap_socket(near, server_hostname="localhost")

    assert rejection_reason(caught.value) == "plain_tcp"


class Timeout(BaseException):
    """Looks like gevent.Timeout, which is a BaseException of this name."""


@pytest.mark.parametrize(("exc", "reason"), [
    (Timeout(), "timeout"), (TimeoutError("timed out"), "timeout"), (EOFError(), "closed"),
    (ConnectionResetError(104, "reset"), "closed"), (BrokenPipeError(32, "pipe"), "closed"),
    (OSError(9, "bad descriptor"), "other"), (ValueError("x"), "other"), (ssl.SSLError(1, "no reason"), "other"),
    (ssl.SSLCertVerificationError(1, "no code"), "bad_certificate")])
def test_every_exception_has_a_reason(exc: BaseException, reason: str) -> None:
    assert rejection_reason(exc) == reason
    assert reason in REJECTION_REASONS


def test_a_missing_file_is_named_with_the_command_that_makes_it(own: Path) -> None:
    for call in (lambda: server_context(own / "none.crt", own / "server.key"),
                 lambda: server_context(own / "server.crt", own / "none.key"),
                 lambda: server_context(own / "server.crt", own / "server.key", own / "none.crt"),
                 lambda: client_context(own / "none.crt"),
                 lambda: describe_certificate(own / "none.crt")):
        with pytest.raises(ConfigError, match=r"none\.(crt|key) does not exist: .*python certs/gen_certs\.py"):
            call()


def test_an_unreadable_file_is_named(own: Path) -> None:
    # A folder: also root cannot read it as a file.
    (own / "folder.crt").mkdir()

    for call in (lambda: server_context(own / "folder.crt", own / "server.key"),
                 lambda: client_context(own / "folder.crt"), lambda: describe_certificate(own / "folder.crt")):
        with pytest.raises(ConfigError, match=r"folder\.crt cannot be read"):
            call()


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o620, 0o601])
def test_a_key_open_to_others_is_refused_with_the_chmod_that_closes_it(own: Path, mode: int) -> None:
    key = own / "server.key"
    key.chmod(mode)

    with pytest.raises(ConfigError) as caught:
        accepting(own)

    assert f"chmod 600 {key}" in str(caught.value) and f"{mode:04o}" in str(caught.value)
    assert stat.S_IMODE(key.stat().st_mode) == mode


@pytest.mark.parametrize("rsa", [False, True])
def test_a_key_of_another_certificate_is_refused(own: Path, rsa: bool) -> None:
    generate(own / "other", rsa=rsa)

    with pytest.raises(ConfigError, match="does not belong to certificate .*python certs/gen_certs.py"):
        server_context(own / "server.crt", own / "other" / "server.key")


@pytest.mark.parametrize("content", [b"", b"\xff\x00junk", b"hello\n",
                                     b"-----BEGIN CERTIFICATE-----\nAAAA\n-----END CERTIFICATE-----\n"])
def test_a_certificate_that_is_not_pem_is_refused(own: Path, content: bytes) -> None:
    bad = own / "bad.crt"
    bad.write_bytes(content)

    for call in (lambda: server_context(bad, own / "server.key"), lambda: client_context(bad),
                 lambda: server_context(own / "server.crt", own / "server.key", bad),
                 lambda: describe_certificate(bad)):
        with pytest.raises(ConfigError, match=r"bad\.crt cannot be used .*python certs/gen_certs\.py"):
            call()


@pytest.mark.parametrize("content", [b"", b"junk", b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n"])
def test_a_key_that_is_not_pem_is_refused(own: Path, content: bytes) -> None:
    (own / "server.key").write_bytes(content)

    with pytest.raises(ConfigError, match=r"server\.key"):
        accepting(own)


def test_a_key_with_a_passphrase_is_refused_instead_of_asking_for_it(own: Path) -> None:
    key = serialization.load_pem_private_key((own / "server.key").read_bytes(), password=None)
    (own / "server.key").write_bytes(key.private_bytes(
        serialization.Encoding.PEM, serialization.PrivateFormat.PKCS8, serialization.BestAvailableEncryption(b"x")))

    with pytest.raises(ConfigError, match="passphrase"):
        accepting(own)


def test_a_client_s_certificate_is_refused_as_the_broker_s(pki: Path) -> None:
    with pytest.raises(ConfigError, match=r"w\.crt is not for servers .*GREENROOM_CERT"):
        server_context(pki / "w.crt", pki / "w.key")


def test_half_a_client_pair_is_refused(pki: Path) -> None:
    with pytest.raises(ConfigError, match="both"):
        client_context(pki / "ca.crt", pki / "w.crt")
    with pytest.raises(ConfigError, match="both"):
        client_context(pki / "ca.crt", key_file=pki / "w.key")


def test_a_certificate_is_described(pki: Path) -> None:
    info = describe_certificate(pki / "server.crt")

    assert info.subject == "CN=localhost,O=Greenroom" and info.issuer.startswith("CN=Greenroom CA ")
    assert info.sans == ["localhost", "127.0.0.1", "::1"]
    assert info.key_type == "ECDSA P-256"
    assert len(info.sha256) == 95 and info.sha256.count(":") == 31 and info.sha256 == info.sha256.upper()
    der = ssl.PEM_cert_to_DER_cert((pki / "server.crt").read_text())
    assert bytes.fromhex(info.sha256.replace(":", "")) == hashlib.sha256(der).digest()
    assert int(info.serial, 16) > 0
    assert describe_certificate(pki / "ca.crt").sans == []


def test_an_rsa_key_is_described(tmp_path: Path) -> None:
    generate(tmp_path, rsa=True)

    assert describe_certificate(tmp_path / "server.crt").key_type == "RSA 2048"


def test_days_left_counts_down_and_goes_below_zero(pki: Path) -> None:
    info = describe_certificate(pki / "server.crt")

    assert days_left(info, info.not_after - 86400 * 13.5) == 13.5
    assert days_left(info, info.not_after + 86400) == -1
    assert 396.9 < days_left(info, time.time()) <= 397
    assert info.not_before < time.time()


def test_importing_the_module_loads_neither_gevent_nor_cryptography() -> None:
    code = "import sys, greenroom.tls; print([m for m in ('gevent', 'cryptography') if m in sys.modules])"
    done = subprocess.run([sys.executable, "-c", code], cwd=SCRIPT.parents[1], capture_output=True, text=True, timeout=30)

    assert (done.stdout.strip(), done.returncode) == ("[]", 0), done.stderr
