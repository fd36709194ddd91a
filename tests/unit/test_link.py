"""What greenroom.link promises, against a scripted broker with real TLS."""

from __future__ import annotations

import random
import socket
import ssl
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest

from greenroom.endpoint import Endpoint, find_endpoint, parse_url
from greenroom.errors import (ConfigError, ConnectError, GreenroomError, NotFoundError, TlsError, TooLargeError,
                              VersionError)
from greenroom.link import BACKOFF_S, Backoff, Link
from greenroom.tls import server_context
from tests.scripted import Background, ScriptedBroker, make_certificates, until

HELLO = {"version": 1, "role": "client"}


@pytest.fixture
def broker(certificates: Path) -> Iterator[ScriptedBroker]:
    scripted = ScriptedBroker(certificates)
    yield scripted
    scripted.close()


def endpoint_of(broker: ScriptedBroker, **options: str) -> Endpoint:
    return find_endpoint(options.pop("url", broker.url), ca=options.pop("ca", broker.ca), environ={}, **options)


def greeted_pair(broker: ScriptedBroker, **greeting: object) -> tuple[Link, object]:
    link = Link(endpoint_of(broker))
    connecting = Background(link.connect, HELLO)
    peer = broker.greeted(**greeting)
    connecting.result()
    link.start()
    return link, peer


def failure_of_connecting(broker: ScriptedBroker, endpoint: Endpoint, *, greets: bool = True) -> GreenroomError:
    connecting = Background(Link(endpoint).connect, HELLO, 3.0)
    try:
        peer = broker.accept()
        if greets:
            peer.greet()
    except (OSError, AssertionError):
        pass  # this side of a failed handshake fails too
    with pytest.raises(GreenroomError) as caught:
        connecting.result()
    return caught.value


def test_the_greeting_and_its_limits_are_kept(broker: ScriptedBroker) -> None:
    link, _ = greeted_pair(broker, limits={"frame": 1000, "list": 7, "new": 1})
    assert link.greeting["broker"] == "scripted/1"
    assert (link.limits.frame, link.limits.list, link.limits.wait) == (1000, 7, 60)
    link.close()


def test_requests_are_pipelined_and_replies_in_any_order_reach_their_callers(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)
    calls = [Background(link.call, {"verb": "get", "jobs": [number]}, 5.0) for number in range(1, 21)]
    requests = [peer.expect("get") for _ in range(20)]  # all arrive before any is answered
    assert len({request["id"] for request in requests}) == 20
    peer.send(*({"id": request["id"], "jobs": [{"id": request["jobs"][0], "state": "queued"}]} for request in reversed(requests)))
    assert [call.result()["jobs"][0]["id"] for call in calls] == list(range(1, 21))
    link.close()


def test_an_error_in_a_reply_is_raised_by_its_class(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)
    call = Background(link.call, {"verb": "get", "jobs": [1]}, 5.0)
    peer.refuse(peer.expect("get"), "NOT_FOUND", field="jobs", retry_after_s=2.5)
    with pytest.raises(NotFoundError) as caught:
        call.result()
    assert (caught.value.field, caught.value.retry_after_s) == ("jobs", 2.5)
    link.close()


def test_an_ended_connection_completes_each_request_exactly_once(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)
    answers: list[object] = []
    for _ in range(3):
        link.request({"verb": "stats"}, answers.append)
    first = peer.expect("stats")
    peer.reply(first, workers=1)
    peer.close()
    until(lambda: len(answers) == 3)
    assert sorted(type(answer).__name__ for answer in answers) == ["ConnectError", "ConnectError", "dict"]
    assert not link.is_open
    with pytest.raises(ConnectError):
        link.request({"verb": "stats"}, answers.append)
    link.close()
    assert len(answers) == 3


def test_closing_completes_what_is_open_and_tells_its_owner(broker: ScriptedBroker) -> None:
    ends: list[GreenroomError] = []
    link = Link(endpoint_of(broker), on_close=ends.append)
    connecting = Background(link.connect, HELLO)
    peer = broker.greeted()
    connecting.result()
    link.start()
    call = Background(link.call, {"verb": "stats"}, 5.0)
    peer.expect("stats")
    link.close()
    with pytest.raises(ConnectError):
        call.result()
    peer.expect_end()
    assert len(ends) == 1


def test_a_frame_over_the_broker_s_limit_is_refused_before_it_is_sent(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker, limits={"frame": 1000})
    with pytest.raises(TooLargeError):
        link.request({"verb": "submit", "jobs": [{"task": "t", "payload": bytes(1000)}]}, print)
    link.request({"verb": "stats"}, lambda answer: None)
    assert peer.expect("stats")
    link.close()


def test_large_frames_arrive_whole_both_ways(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)
    payload = random.Random(7).randbytes(3 * 2**20)
    call = Background(link.call, {"verb": "submit", "jobs": [{"payload": payload}]}, 20.0)
    request = peer.expect("submit")
    assert request["jobs"][0]["payload"] == payload
    peer.reply(request, jobs=[5], echo=payload)
    assert call.result(20.0)["echo"] == payload
    link.close()


def test_notices_reach_their_receiver_and_unknown_ids_are_ignored(broker: ScriptedBroker) -> None:
    notices: list[dict] = []
    link = Link(endpoint_of(broker), on_notice=notices.append)
    connecting = Background(link.connect, HELLO)
    peer = broker.greeted()
    connecting.result()
    link.start()
    peer.send({"id": 99, "what": 1}, {"notice": "drain", "reason": "worker"}, {"notice": "unheard"})
    until(lambda: len(notices) == 2)
    assert notices[0] == {"notice": "drain", "reason": "worker"}
    assert link.is_open
    link.close()


@pytest.mark.parametrize("answer", [{"jobs": 5}, {}, {"jobs": [1, 2]}, {"jobs": ["one"]}])
def test_an_answer_that_is_none_ends_the_connection_after_the_good_ones_before_it(broker: ScriptedBroker, answer: dict) -> None:
    link, peer = greeted_pair(broker)
    answers: list[object] = []
    for _ in range(3):
        link.request({"verb": "submit", "jobs": [{"task": "t"}]}, answers.append)
    first, second, _ = (peer.expect("submit") for _ in range(3))
    peer.send({"id": first["id"], "jobs": [7]}, {"id": second["id"], **answer})

    until(lambda: len(answers) == 3)

    assert answers[0]["jobs"] == [7] and not link.is_open
    assert [type(late) for late in answers[1:]] == [ConnectError] * 2 and "not the protocol" in answers[1].message


@pytest.mark.parametrize("notice", [{"notice": 5}, {"notice": "cancel"}, {"notice": "cancel", "leases": [[1]]}])
def test_a_notice_that_is_none_ends_the_connection(broker: ScriptedBroker, notice: dict) -> None:
    link, peer = greeted_pair(broker)

    peer.send(notice)

    until(lambda: not link.is_open)
    assert "not the protocol" in link.closed_by.message


@pytest.mark.parametrize("fields", [{"limits": {"list": 0, "frame": -1}}, {"limits": {"list": True}}, {"idle_s": 1e300}, {"limits": {}}])
def test_limits_that_cannot_be_are_not_taken(broker: ScriptedBroker, fields: dict) -> None:
    link, _ = greeted_pair(broker, **fields)

    assert link.limits.list == link.limits.leases == 1000 and link.limits.frame > 0
    link.close()


def test_an_idle_connection_is_kept_by_pings(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker, idle_s=0.3)
    for _ in range(3):
        ping = peer.next(2.0)
        assert ping["verb"] == "ping"
        peer.reply(ping, now=1.0)
    link.close()


def test_a_call_without_an_answer_ends_at_its_timeout_and_the_link_stays(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)
    call = Background(link.call, {"verb": "stats"}, 0.2)
    late = peer.expect("stats")
    with pytest.raises(ConnectError, match="did not answer stats in time"):
        call.result()
    peer.reply(late)
    second = Background(link.call, {"verb": "queues"}, 5.0)
    peer.reply(peer.expect("queues"), queues=[])
    assert second.result()["queues"] == []
    link.close()


def test_bytes_that_are_not_the_protocol_end_the_connection(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)
    call = Background(link.call, {"verb": "stats"}, 5.0)
    peer.expect("stats")
    peer._sock.sendall(b"\xff\xff\xff\xff garbage")
    with pytest.raises(ConnectError, match="not the protocol"):
        call.result()


def test_a_refused_hello_is_raised_by_its_class(broker: ScriptedBroker) -> None:
    connecting = Background(Link(endpoint_of(broker)).connect, HELLO)
    peer = broker.accept()
    peer.refuse(peer.expect("hello"), "VERSION")
    with pytest.raises(VersionError):
        connecting.result()


def test_nobody_listening_is_a_sentence_that_says_what_to_start(certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        port = listener.getsockname()[1]
    endpoint = find_endpoint(f"greenroom://localhost:{port}", ca=str(certificates / "ca.crt"), environ={})
    with pytest.raises(ConnectError, match="python broker.py") as caught:
        Link(endpoint).connect(HELLO, 3.0)
    assert not isinstance(caught.value, TlsError)


def test_a_peer_that_never_greets_meets_the_total_deadline(broker: ScriptedBroker) -> None:
    connecting = Background(Link(endpoint_of(broker)).connect, HELLO, 0.5)
    broker.accept()
    with pytest.raises(ConnectError, match="did not greet in time"):
        connecting.result(3.0)


def test_a_peer_that_never_shakes_hands_meets_the_total_deadline(certificates: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as listener:
        endpoint = find_endpoint(f"greenroom://127.0.0.1:{listener.getsockname()[1]}", ca=str(certificates / "ca.crt"), environ={})
        with pytest.raises(ConnectError, match="handshake in time"):
            Background(Link(endpoint).connect, HELLO, 0.5).result(3.0)


def test_another_ca_is_a_tls_error_that_names_the_file(broker: ScriptedBroker, tmp_path: Path) -> None:
    other = make_certificates(tmp_path)
    error = failure_of_connecting(broker, endpoint_of(broker, ca=str(other / "ca.crt")))
    assert isinstance(error, TlsError)
    assert str(other / "ca.crt") in error.message and "--ca" in error.message


def test_another_host_name_is_a_tls_error(broker: ScriptedBroker) -> None:
    named = endpoint_of(broker, url=f"greenroom://127.0.0.3:{broker.port}")
    with socket.create_server(("127.0.0.3", broker.port)) as listener:
        connecting = Background(Link(named).connect, HELLO, 3.0)
        plain, _ = listener.accept()
        with pytest.raises(OSError):
            broker._context.wrap_socket(plain, server_side=True)
        with pytest.raises(TlsError, match="127.0.0.3"):
            connecting.result()


def test_a_server_without_tls_1_3_is_a_tls_error(certificates: Path) -> None:
    old = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    old.maximum_version = ssl.TLSVersion.TLSv1_2
    old.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    broker = ScriptedBroker(certificates, context=old)
    error = failure_of_connecting(broker, endpoint_of(broker))
    broker.close()
    assert isinstance(error, TlsError) and "TLS 1.3" in error.message


def test_a_server_that_speaks_something_else_inside_tls_is_a_tls_error(certificates: Path) -> None:
    other = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    other.load_cert_chain(certificates / "server.crt", certificates / "server.key")
    broker = ScriptedBroker(certificates, context=other)
    error = failure_of_connecting(broker, endpoint_of(broker), greets=False)
    broker.close()
    assert isinstance(error, TlsError) and "greenroom/1" in error.message


def test_a_required_client_certificate_is_asked_for_and_accepted(certificates: Path) -> None:
    strict = server_context(certificates / "server.crt", certificates / "server.key", certificates / "ca.crt")
    broker = ScriptedBroker(certificates, context=strict)
    error = failure_of_connecting(broker, endpoint_of(broker))
    assert "--cert" in error.message
    link = Link(endpoint_of(broker, cert=str(certificates / "test-client.crt"), key=str(certificates / "test-client.key")))
    connecting = Background(link.connect, HELLO)
    broker.greeted()
    assert connecting.result()["version"] == 1
    link.close()
    broker.close()


def test_many_threads_share_one_link(broker: ScriptedBroker) -> None:
    link, peer = greeted_pair(broker)

    def serve() -> None:
        while (message := peer.next()) is not None:
            peer.reply(message, echo=message.get("number"))
    serving = Background(serve)
    wrong: list[object] = []

    def ask(base: int) -> None:
        for number in range(base, base + 50):
            if link.call({"verb": "stats", "number": number}, 10.0)["echo"] != number:
                wrong.append(number)
    threads = [threading.Thread(target=ask, args=(1000 * base,)) for base in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join(20.0)
    assert not wrong and not any(thread.is_alive() for thread in threads)
    link.close()
    serving.result()


def test_reconnect_pauses_are_nothing_first_and_full_jitter_up_to_5_s_later() -> None:
    backoffs = [Backoff(random.Random(seed)) for seed in range(200)]
    rounds = [[backoff.next() for backoff in backoffs] for _ in range(9)]
    assert set(rounds[0]) == {0.0}
    for longest, pauses in zip([*BACKOFF_S[1:], 5.0, 5.0, 5.0], rounds[1:]):
        assert max(pauses) <= longest
        assert max(pauses) > 0.8 * longest and min(pauses) < 0.2 * longest


@pytest.mark.parametrize("url", ["http://x", "greenroom://", "greenroom://h:0", "greenroom://h:99999", "greenroom://h:x", "x",
                                 "greenroom://h/path", "greenroom://h?q", "greenroom://token@h", "greenroom://[::1", "greenroom://.h"])
def test_a_bad_url_is_a_sentence(url: str) -> None:
    with pytest.raises(ConfigError) as caught:
        parse_url(url)
    assert "\n" not in caught.value.message


def test_urls_and_their_defaults() -> None:
    assert parse_url("greenroom://h") == ("h", 65432)
    assert parse_url("greenroom://[::1]:7/") == ("::1", 7)


def test_a_missing_ca_says_which_command_makes_it(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"run `python certs/gen_certs.py` \(or give --ca\)"):
        find_endpoint("greenroom://h", ca=str(tmp_path / "ca.crt"), environ={})


def test_url_and_ca_come_from_the_environment(certificates: Path) -> None:
    found = find_endpoint(environ={"GREENROOM_URL": "greenroom://h:9", "GREENROOM_CA": str(certificates / "ca.crt")})
    assert (found.host, found.port, found.address) == ("h", 9, "h:9")


