"""Lean clients for the brokers that peers.py compares: each one's documented wire on bare sockets, batches in one write.

The published Python clients cost more per job than most of these servers, so they would be what is measured. Each protocol has two
generators, `..._put(link, work)` and `..._take(link, work)`, which read top to bottom as a dialogue and `yield` where they need more
bytes; `drive` runs those of one process. It must not know servers' processes, rounds or figures.
"""

from __future__ import annotations

import json
import select
import socket
import ssl
import struct
import time
from array import array
from collections.abc import Callable, Generator, Iterator

import msgpack

from greenroom.protocol import HEADER

from peer_payload import NUMBER_CHARS, PAYLOAD_CHARS, make_text

#: What all contenders get: as many connections on either side, as many jobs in a write.
CONNECTIONS, BATCH = 4, 100
WAIT_S = 0.5  # how long a take waits at the broker for the first job
GIVE_UP_S = 60.0

Dialogue = Generator[None, None, None]
#: Reads the message that begins at a place of what came: it and where the next begins, or None while it is not whole.
Split = Callable[[bytearray, int], tuple[object, int] | None]
_ENDED = object()


class PeerError(Exception):
    """Raised when a peer answered what it must not, or not at all; the message is one sentence."""


def make_payload(number: int) -> bytes:
    """Return a job's 100 bytes."""
    return make_text(number).encode()


class Work:
    """What one process has to do, shared by its connections.

    Attributes:
        batches: yields ranges of numbers, each once. numbers: those that came, for takers.
        settled: jobs that are through. began_at, ended_at: monotonic.
    """

    def __init__(self, jobs: int) -> None:
        self.jobs = jobs
        self.batches: Iterator[range] = (range(first, min(first + BATCH, jobs)) for first in range(0, jobs, BATCH))
        self.numbers = array("Q")
        self.settled = 0
        self.began_at = self.ended_at = 0.0

    @property
    def is_over(self) -> bool:
        """Whether every job is through."""
        return self.settled >= self.jobs

    def came(self, payload: bytes) -> bytes:
        """Note a job that came, after a look at its payload; returns its result, the number as text."""
        number = int(payload[:NUMBER_CHARS], 16)
        if payload != make_payload(number):
            raise PeerError(f"job {number} came with another payload than it was submitted with")
        self.numbers.append(number)
        return bytes(payload[:NUMBER_CHARS])

    def settle(self, jobs: int) -> None:
        """Note that so many are through: acknowledged, for those who submit, or finished, for those who take."""
        self.settled += jobs
        self.ended_at = time.monotonic()


class Link:
    """One non-blocking connection with what came and what waits to be written."""

    def __init__(self, sock: socket.socket) -> None:
        sock.setblocking(False)
        self.sock = sock
        self.inbox = bytearray()
        self._outgoing = bytearray()

    def send(self, data: bytes) -> None:
        """Queue bytes; `drive` writes them at the next yield."""
        self._outgoing += data

    def flush(self) -> bool:
        """Write as far as the socket takes it; returns whether all is written."""
        while self._outgoing:
            try:
                del self._outgoing[:self.sock.send(self._outgoing)]
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return False
        return True

    def fill(self) -> None:
        """Read what is there. Raises PeerError at the end of the stream."""
        while True:
            try:
                data = self.sock.recv(262144)
            except (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError):
                return
            if not data:
                raise PeerError("the peer closed the connection")
            self.inbox += data
            if len(data) < 262144 and not isinstance(self.sock, ssl.SSLSocket):
                return

    def lines(self, count: int) -> Generator[None, None, list[bytes]]:
        """Take so many lines that end with CR LF."""
        while self.inbox.count(b"\r\n") < count:
            yield
        lines = bytes(self.inbox).split(b"\r\n", count)
        del self.inbox[:len(self.inbox) - len(lines.pop())]
        return lines

    def messages(self, split: Split, most: int = 2**31) -> Generator[None, None, list]:
        """Take all messages that are there whole, at least one and at most so many, as `split` reads them."""
        while True:
            found, position = [], 0
            while len(found) < most and (step := split(self.inbox, position)) is not None:
                message, position = step
                found.append(message)
            if found:
                del self.inbox[:position]
                return found
            yield

    def take(self, size: int) -> Generator[None, None, bytes]:
        """Take so many bytes."""
        while len(self.inbox) < size:
            yield
        data = bytes(self.inbox[:size])
        del self.inbox[:size]
        return data


def connect(port: int) -> Link:
    """Connect to a server on this machine. Raises OSError."""
    sock = socket.create_connection(("127.0.0.1", port), timeout=10)
    sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
    return Link(sock)


def drive(dialogues: list[tuple[Link, Dialogue]], is_over: Callable[[], bool] = lambda: False) -> None:
    """Run the dialogues of one process to their ends, or until `is_over`. Raises PeerError, also when nothing comes for a minute.

    A dialogue may be resumed without new bytes: when another has ended, each looks whether there is something left to do.
    """
    poller = select.epoll()
    running = {}
    for link, dialogue in dialogues:
        poller.register(link.sock.fileno(), select.EPOLLIN)
        running[link.sock.fileno()] = (link, dialogue)
    ready = list(running)
    while running and not is_over():
        if not ready:
            raise PeerError(f"the peer said nothing for {GIVE_UP_S:g} s")
        has_one_ended = False
        for number in ready:
            link, dialogue = running[number]
            link.fill()
            if next(dialogue, _ENDED) is _ENDED:
                link.sock.setblocking(True)
                link.flush()
                poller.unregister(number)
                del running[number]
                has_one_ended = True
            else:
                poller.modify(number, select.EPOLLIN if link.flush() else select.EPOLLIN | select.EPOLLOUT)
        ready = list(running) if has_one_ended else [number for number, _ in poller.poll(GIVE_UP_S)]
    poller.close()


def ask(link: Link, dialogue: Generator[None, None, object]) -> object:
    """Run one dialogue that has a result, waiting. Raises PeerError."""
    found: list[object] = []

    def whole() -> Dialogue:
        found.append((yield from dialogue))

    drive([(link, whole())])
    return found[0]


# -- Greenroom: submit frames of 100; a settle and the next reserve in one write -----------------------------------------------


class Frames:
    """Greenroom's frames over a link, with bare msgpack: like the other clients here it does not guard itself from its server."""

    def __init__(self, link: Link) -> None:
        self.link = link
        self._next_id = 0

    def ask(self, verb: str, **fields: object) -> int:
        """Queue a request; returns its id."""
        self._next_id += 1
        body = msgpack.packb({"verb": verb, "id": self._next_id, **fields})
        self.link.send(HEADER.pack(len(body)) + body)
        return self._next_id

    def answer(self) -> Generator[None, None, dict]:
        """Take the next answer. Raises PeerError if it is an error."""
        (size,) = HEADER.unpack((yield from self.link.take(HEADER.size)))
        answer = msgpack.unpackb((yield from self.link.take(size)))
        if "error" in answer:
            raise PeerError(f"the broker answered {answer['error']}")
        return answer


def greenroom_put(link: Link, work: Work) -> Dialogue:
    """Submit frames of 100 jobs, each waited for."""
    frames = Frames(link)
    frames.ask("hello", version=1, role="client")
    yield from frames.answer()
    for numbers in work.batches:
        frames.ask("submit", jobs=[{"task": "peers.noop", "payload": make_payload(number), "encoding": "raw"} for number in numbers])
        answer = yield from frames.answer()
        if not all(type(job) is int for job in answer["jobs"]):
            raise PeerError(f"a submit was answered {answer['jobs'][:3]}")
        work.settle(len(numbers))


def greenroom_take(link: Link, work: Work) -> Dialogue:
    """Reserve up to 100, settle them with their results, and reserve again in the same write."""
    frames = Frames(link)
    frames.ask("hello", version=1, role="worker")
    yield from frames.answer()
    frames.ask("reserve", n=BATCH, wait=WAIT_S)
    settles: dict[int, int] = {}
    while True:
        answer = yield from frames.answer()
        if "outcomes" in answer:
            leases = settles.pop(answer["id"])
            if answer["outcomes"] != ["OK"] * leases:
                raise PeerError(f"a settle was answered {answer['outcomes'][:3]}")
            work.settle(leases)
            continue
        if answer["jobs"]:
            leases = [[job[0], job[1], "ack", work.came(job[3]), True] for job in answer["jobs"]]
            settles[frames.ask("settle", leases=leases)] = len(leases)
        frames.ask("reserve", n=BATCH, wait=WAIT_S)


# -- beanstalkd: put, reserve and delete, 100 in a write ------------------------------------------------------------------------

def beanstalkd_put(link: Link, work: Work) -> Dialogue:
    """Put 100 jobs in a write and wait for the answers."""
    for numbers in work.batches:
        link.send(b"".join(b"put 0 0 120 %d\r\n%b\r\n" % (PAYLOAD_CHARS, make_payload(number)) for number in numbers))
        for line in (yield from link.lines(len(numbers))):
            if not line.startswith(b"INSERTED "):
                raise PeerError(f"beanstalkd answered {line!r}")
        work.settle(len(numbers))


def beanstalkd_take(link: Link, work: Work) -> Dialogue:
    """Reserve as many as will come, and delete them in the same write as the next reserves."""
    deletes: list[bytes] = []
    for numbers in work.batches:  # a reserve holds up the deletes behind it, so no more are asked for than there will be jobs
        link.send(b"".join(deletes) + b"reserve\r\n" * len(numbers))
        yield from _deleted(link, work, len(deletes))
        lines = yield from link.lines(2 * len(numbers))
        for payload in lines[1::2]:
            work.came(payload)
        deletes = [b"delete %b\r\n" % line.split()[1] for line in lines[::2]]
    link.send(b"".join(deletes))
    yield from _deleted(link, work, len(deletes))


def _deleted(link: Link, work: Work, count: int) -> Dialogue:
    if count:
        lines = yield from link.lines(count)
        if lines != [b"DELETED"] * count:
            raise PeerError(f"beanstalkd answered {sorted(set(lines))[:3]}")
        work.settle(count)


# -- Redis: a list of waiting jobs and one of those at work for each connection; or a stream with a consumer group -----------------

def _redis(*words: bytes) -> bytes:
    return b"*%d\r\n" % len(words) + b"".join(b"$%d\r\n%b\r\n" % (len(word), word) for word in words)


def _redis_with_payload(*words: bytes) -> bytes:
    """Return a command but for its last word, a payload, and the line end behind it: what is the same for each job is made once."""
    return _redis(*words, bytes(PAYLOAD_CHARS))[:-PAYLOAD_CHARS - 2]


def _redis_reply(inbox: bytearray, start: int) -> tuple[bytes | None, int] | None:
    """Split off one reply that is not an array: a bulk's bytes, None for a null, or the line as it is."""
    end = inbox.find(b"\r\n", start)
    if end < 0:
        return None
    line = bytes(inbox[start:end])
    if line in (b"$-1", b"*-1"):
        return None, end + 2
    if not line.startswith(b"$"):
        return line, end + 2
    stop = end + 2 + int(line[1:])
    return (bytes(inbox[end + 2:stop]), stop + 2) if len(inbox) >= stop + 2 else None


def redis_list_put(link: Link, work: Work) -> Dialogue:
    """RPUSH of 100 values."""
    for numbers in work.batches:
        link.send(_redis(b"RPUSH", b"jobs", *map(make_payload, numbers)))
        (line,) = yield from link.lines(1)
        _check_redis(line, b":")
        work.settle(len(numbers))


def redis_list_take(link: Link, work: Work) -> Dialogue:
    """BLMOVE and 99 LMOVE into a list of its own, then an LREM for each job, with the next moves in the same write."""
    mine = b"at-work-%d" % link.sock.fileno()
    move = _redis(b"BLMOVE", b"jobs", mine, b"LEFT", b"RIGHT", b"%g" % WAIT_S)
    move += _redis(b"LMOVE", b"jobs", mine, b"LEFT", b"RIGHT") * (BATCH - 1)
    remove = _redis_with_payload(b"LREM", mine, b"1")
    link.send(move)
    while True:
        replies: list[bytes | None] = []
        while len(replies) < BATCH:
            replies += yield from link.messages(_redis_reply, BATCH - len(replies))
        payloads = [reply for reply in replies if reply is not None]
        for payload in payloads:
            work.came(payload)
        link.send(b"".join(b"%b%b\r\n" % (remove, payload) for payload in payloads) + move)
        if payloads:
            lines = yield from link.lines(len(payloads))
            if lines != [b":1"] * len(payloads):
                raise PeerError(f"Redis answered LREM {sorted(set(lines))[:3]}")
            work.settle(len(payloads))


def redis_stream_put(link: Link, work: Work) -> Dialogue:
    """100 XADD in a write."""
    add = _redis_with_payload(b"XADD", b"jobs", b"*", b"p")
    for numbers in work.batches:
        link.send(b"".join(b"%b%b\r\n" % (add, make_payload(number)) for number in numbers))
        lines = yield from link.lines(2 * len(numbers))
        for line in lines[::2]:
            _check_redis(line, b"$")
        work.settle(len(numbers))


def redis_stream_take(link: Link, work: Work) -> Dialogue:
    """XREADGROUP COUNT 100, then one XACK and one XDEL for all of them with the next read in the same write."""
    read = _redis(b"XREADGROUP", b"GROUP", b"workers", b"w%d" % link.sock.fileno(), b"COUNT", b"%d" % BATCH, b"BLOCK",
                  b"%d" % (WAIT_S * 1000), b"STREAMS", b"jobs", b">")
    link.send(read)
    while True:
        (line,) = yield from link.lines(1)
        if line == b"*-1":
            link.send(read)
            continue
        head = yield from link.lines(4)  # *1 (streams) | *2, $4, jobs, *entries; an entry is *2 $n id *2 $1 p $100 payload
        count = int(head[3][1:])
        entries = yield from link.lines(8 * count)
        for payload in entries[7::8]:
            work.came(payload)
        ids = entries[2::8]
        link.send(_redis(b"XACK", b"jobs", b"workers", *ids) + _redis(b"XDEL", b"jobs", *ids) + read)
        lines = yield from link.lines(2)
        if lines != [b":%d" % count] * 2:
            raise PeerError(f"Redis answered XACK and XDEL {lines}")
        work.settle(count)


def redis_stream_set_up(port: int) -> None:
    """Make the stream and its group."""
    link = connect(port)
    link.send(_redis(b"XGROUP", b"CREATE", b"jobs", b"workers", b"$", b"MKSTREAM"))
    (line,) = ask(link, link.lines(1))
    _check_redis(line, b"+OK")
    link.sock.close()


def _check_redis(line: bytes, start: bytes) -> None:
    if not line.startswith(start):
        raise PeerError(f"Redis answered {line[:80]!r}")


# -- NATS JetStream: publish with acknowledgement; a durable pull consumer on a work queue ----------------------------------------

_NATS_HELLO = b'CONNECT {"verbose":false,"pedantic":false,"headers":true,"no_responders":true,"lang":"bench","version":"1"}\r\n'


def _nats_split(inbox: bytearray, start: int) -> tuple[tuple[bytes, bytes, bytes], int] | None:
    """Split off one message: its reply subject, headers and payload; or, for another line, that as the headers."""
    end = inbox.find(b"\r\n", start)
    if end < 0:
        return None
    line = bytes(inbox[start:end])
    if not line.startswith((b"MSG", b"HMSG")):
        return (b"", line, b""), end + 2
    words = line.split()
    has_head = words[0] == b"HMSG"
    begin, size = end + 2, int(words[-1])
    if len(inbox) < begin + size + 2:
        return None
    body = begin + (int(words[-2]) if has_head else 0)
    reply = words[3] if len(words) == (6 if has_head else 5) else b""
    return (reply, bytes(inbox[begin:body]), bytes(inbox[body:begin + size])), begin + size + 2


def _nats_messages(link: Link, most: int = 2**31) -> Generator[None, None, list[tuple[bytes, bytes, bytes]]]:
    """Take the messages that are there, at least one."""
    found: list[tuple[bytes, bytes, bytes]] = []
    while not found:
        for message in (yield from link.messages(_nats_split, most)):
            word = message[1].split(b" ", 1)[0]
            if word == b"PING":
                link.send(b"PONG\r\n")
            elif word == b"-ERR":
                raise PeerError(f"NATS said {message[1][:80]!r}")
            elif word not in (b"INFO", b"PONG", b"+OK"):
                found.append(message)
    return found


def _nats_call(link: Link, subject: bytes, request: dict) -> Generator[None, None, dict]:
    body = json.dumps(request).encode()
    link.send(b"PUB %b answers %d\r\n%b\r\n" % (subject, len(body), body))
    ((_, head, answer),) = yield from _nats_messages(link, 1)
    if head or "error" in (found := json.loads(answer)):
        raise PeerError(f"NATS answered {(head or answer)[:160]!r}")
    return found


def nats_set_up(port: int) -> None:
    """Make a work-queue stream in files and its pull consumer."""
    link = connect(port)
    link.send(_NATS_HELLO + b"SUB answers 1\r\n")
    ask(link, _nats_call(link, b"$JS.API.STREAM.CREATE.JOBS", {
        "name": "JOBS", "subjects": ["jobs"], "retention": "workqueue", "storage": "file", "num_replicas": 1}))
    ask(link, _nats_call(link, b"$JS.API.CONSUMER.DURABLE.CREATE.JOBS.W", {
        "stream_name": "JOBS", "config": {"durable_name": "W", "ack_policy": "explicit", "max_ack_pending": 20_000,
                                          "ack_wait": 120_000_000_000}}))
    link.sock.close()


def nats_put(link: Link, work: Work) -> Dialogue:
    """Publish 100 in a write and wait for the stream's acknowledgements."""
    inbox = b"acks.%d" % link.sock.fileno()
    link.send(_NATS_HELLO + b"SUB %b 1\r\n" % inbox)
    for numbers in work.batches:
        link.send(b"".join(b"PUB jobs %b %d\r\n%b\r\n" % (inbox, PAYLOAD_CHARS, make_payload(number)) for number in numbers))
        missing = len(numbers)
        while missing:
            for _, head, answer in (yield from _nats_messages(link)):
                if head or b'"seq"' not in answer:
                    raise PeerError(f"NATS answered a publish {(head or answer)[:80]!r}")
                missing -= 1
        work.settle(len(numbers))


def nats_take(link: Link, work: Work) -> Dialogue:
    """Pull 100, acknowledge them in one write; the last connection waits until the stream is empty, since acks are not answered."""
    inbox = b"pulls.%d" % link.sock.fileno()
    body = b'{"batch":%d,"expires":%d}' % (BATCH, WAIT_S * 1e9)
    pull = b"PUB $JS.API.CONSUMER.MSG.NEXT.JOBS.W %b %d\r\n%b\r\n" % (inbox, len(body), body)
    link.send(_NATS_HELLO + b"SUB %b 1\r\n" % inbox + pull)
    asked = BATCH
    while len(work.numbers) < work.jobs:
        for reply, head, payload in (yield from _nats_messages(link)):
            if head:  # 404 or 408: the pull ends with fewer
                asked = 0
            else:
                work.came(payload)
                link.send(b"PUB %b 0\r\n\r\n" % reply)
                asked -= 1
        if asked <= 0:
            link.send(pull)
            asked = BATCH
    yield from _nats_settled(link, work)


def _nats_settled(link: Link, work: Work) -> Dialogue:
    link.send(b"SUB answers.%d 2\r\n" % link.sock.fileno())
    while True:
        link.send(b"PUB $JS.API.STREAM.INFO.JOBS answers.%d 2\r\n{}\r\n" % link.sock.fileno())
        for _, head, answer in (yield from _nats_messages(link)):
            found = {} if head else json.loads(answer or b"{}")
            if found.get("state", {}).get("messages") == 0 and not work.is_over:
                work.settle(work.jobs)
        time.sleep(0.002)  # nothing else is left to do in this process


# -- RabbitMQ: AMQP 0-9-1, a durable classic queue, persistent messages, confirms ---------------------------------------------------

_FRAME = struct.Struct(">BHI")


def _method(channel: int, kind: tuple[int, int], arguments: bytes = b"") -> bytes:
    return _frame(1, channel, struct.pack(">HH", *kind) + arguments)


def _frame(kind: int, channel: int, payload: bytes) -> bytes:
    return _FRAME.pack(kind, channel, len(payload)) + payload + b"\xce"


def _short(text: bytes) -> bytes:
    return bytes([len(text)]) + text


_PUBLISH = _method(1, (60, 40), b"\0\0" + _short(b"") + _short(b"jobs") + b"\0")
_HEADER = _frame(2, 1, struct.pack(">HHQH", 60, 0, PAYLOAD_CHARS, 0x1000) + b"\x02")  # delivery mode 2: persistent


def _amqp_split(inbox: bytearray, start: int) -> tuple[tuple[int, bytes], int] | None:
    """Split off one frame: its kind and payload."""
    if len(inbox) < start + 7:
        return None
    kind, _, size = _FRAME.unpack_from(inbox, start)
    end = start + 7 + size
    return ((kind, bytes(inbox[start + 7:end])), end + 1) if len(inbox) > end else None


def _amqp_call(link: Link, request: bytes, answer: tuple[int, int]) -> Generator[None, None, bytes]:
    """Send a method and take its answer's arguments."""
    link.send(request)
    ((kind, payload),) = yield from link.messages(_amqp_split, 1)
    if kind != 1 or struct.unpack(">HH", payload[:4]) != answer:
        raise PeerError(f"RabbitMQ answered {payload[:80]!r}")
    return payload[4:]


def _amqp_open(link: Link) -> Dialogue:
    """Open the connection and channel 1, and declare the durable queue."""
    yield from _amqp_call(link, b"AMQP\0\0\x09\x01", (10, 10))
    plain = b"\0guest\0guest"
    yield from _amqp_call(link, _method(0, (10, 11), struct.pack(">I", 0) + _short(b"PLAIN") + struct.pack(">I", len(plain)) + plain
                                        + _short(b"en_US")), (10, 30))
    link.send(_method(0, (10, 31), struct.pack(">HIH", 1, 131072, 0)))
    yield from _amqp_call(link, _method(0, (10, 40), _short(b"/") + b"\0\0"), (10, 41))
    yield from _amqp_call(link, _method(1, (20, 10), b"\0"), (20, 11))
    yield from _amqp_call(link, _DECLARE, (50, 11))


_DECLARE = _method(1, (50, 10), b"\0\0" + _short(b"jobs") + b"\x02" + struct.pack(">I", 0))


def rabbitmq_put(link: Link, work: Work) -> Dialogue:
    """Publish 100 persistent messages in a write and wait for their confirms."""
    yield from _amqp_open(link)
    yield from _amqp_call(link, _method(1, (85, 10), b"\0"), (85, 11))
    sent = 0
    for numbers in work.batches:
        link.send(b"".join(_PUBLISH + _HEADER + _frame(3, 1, make_payload(number)) for number in numbers))
        missing = set(range(sent + 1, sent + 1 + len(numbers)))
        sent += len(numbers)
        while missing:
            for kind, payload in (yield from link.messages(_amqp_split)):
                class_id, method, tag, is_multiple = struct.unpack(">HHQB", payload[:13])
                if (kind, class_id, method) != (1, 60, 80):
                    raise PeerError(f"RabbitMQ answered a publish {payload[:80]!r}")
                missing -= {number for number in missing if number <= tag} if is_multiple & 1 else {tag}
        work.settle(len(numbers))


def rabbitmq_take(link: Link, work: Work) -> Dialogue:
    """Consume with a prefetch of 200, one acknowledgement for up to 100. Acknowledgements are not answered: what the channel
    answers after them says that they were handled."""
    yield from _amqp_open(link)
    yield from _amqp_call(link, _method(1, (60, 10), struct.pack(">IHB", 0, 2 * BATCH, 0)), (60, 11))
    yield from _amqp_call(link, _method(1, (60, 20), b"\0\0" + _short(b"jobs") + _short(b"w") + b"\0" + struct.pack(">I", 0)), (60, 21))
    mine = unsettled = tag = 0
    while len(work.numbers) < work.jobs:
        if not link.inbox:  # another connection may have got the last
            yield
            continue
        for kind, payload in (yield from link.messages(_amqp_split, 3 * BATCH)):  # a delivery is three frames
            if kind == 1:
                tag = struct.unpack_from(">Q", payload, 5 + payload[4])[0]  # class, method, consumer tag, delivery tag
            elif kind == 3:
                work.came(payload)
                unsettled += 1
        if unsettled:
            link.send(_method(1, (60, 80), struct.pack(">QB", tag, 1)))
            mine, unsettled = mine + unsettled, 0
    yield from _amqp_call(link, _DECLARE, (50, 11))
    if mine:
        work.settle(mine)


# -- gearmand: foreground jobs, whose results come back, or background jobs in its SQLite queue -------------------------------------

_CAN_DO, _PRE_SLEEP, _NOOP, _SUBMIT, _CREATED, _GRAB, _NO_JOB, _ASSIGN, _COMPLETE, _SUBMIT_BG = 1, 4, 6, 7, 8, 9, 10, 11, 13, 18


_SIZES = struct.Struct(">II")


def _packet(kind: int, *arguments: bytes) -> bytes:
    body = b"\0".join(arguments)
    return b"\0REQ" + _SIZES.pack(kind, len(body)) + body


def _gearman_split(inbox: bytearray, start: int) -> tuple[tuple[int, bytes], int] | None:
    """Split off one packet: its kind and arguments."""
    if len(inbox) < start + 12:
        return None
    kind, size = _SIZES.unpack_from(inbox, start + 4)
    end = start + 12 + size
    return ((kind, bytes(inbox[start + 12:end])), end) if len(inbox) >= end else None


def gearmand_put(link: Link, work: Work) -> Dialogue:
    """Submit 100 foreground jobs in a write, go on when they are created, and check each result that comes back."""
    yield from _gearmand_submit(link, work, _SUBMIT)


def gearmand_put_background(link: Link, work: Work) -> Dialogue:
    """Submit 100 background jobs in a write, go on when they are created."""
    yield from _gearmand_submit(link, work, _SUBMIT_BG)


def _gearmand_submit(link: Link, work: Work, submit: int) -> Dialogue:
    handles: dict[bytes, int] = {}
    results: dict[bytes, bytes] = {}
    for numbers in work.batches:
        link.send(b"".join(_packet(submit, b"noop", b"", make_payload(number)) for number in numbers))
        waiting = iter(numbers)
        created = 0
        while created < len(numbers):
            for kind, body in (yield from link.messages(_gearman_split)):
                if kind == _CREATED:
                    handles[body] = next(waiting)
                    created += 1
                elif kind == _COMPLETE:
                    handle, result = body.split(b"\0", 1)
                    results[handle] = result
                else:
                    raise PeerError(f"gearmand answered a submit {kind} {body[:80]!r}")
        work.settle(len(numbers))
    if submit == _SUBMIT_BG:
        return
    while len(results) < len(handles):
        for _, body in (yield from link.messages(_gearman_split)):
            handle, result = body.split(b"\0", 1)
            results[handle] = result
    if any(int(results[handle], 16) != number for handle, number in handles.items()):
        raise PeerError("gearmand gave a job another's result")


def gearmand_take(link: Link, work: Work) -> Dialogue:
    """Grab 100 in a write, and complete them in the same write as the next grabs."""
    link.send(_packet(_CAN_DO, b"noop"))
    done: list[bytes] = []
    while True:
        link.send(b"".join(done) + _packet(_GRAB) * BATCH)
        finished, done, answers = len(done), [], 0
        while answers < BATCH:
            for kind, body in (yield from link.messages(_gearman_split)):
                answers += kind != _NOOP
                if kind == _ASSIGN:
                    handle, _, payload = body.split(b"\0", 2)
                    done.append(_packet(_COMPLETE, handle, work.came(payload)))
                elif kind not in (_NO_JOB, _NOOP):
                    raise PeerError(f"gearmand answered a grab {kind} {body[:80]!r}")
        if finished:
            work.settle(finished)  # what was sent before the grabs was handled before they were answered
        if not done:
            if len(work.numbers) >= work.jobs:
                return
            link.send(_packet(_PRE_SLEEP))
            yield from link.messages(_gearman_split, 1)  # a NOOP that wakes


#: name -> (put, take, set up or None). What a contender of peers.py names.
PROTOCOLS: dict[str, tuple[Callable[[Link, Work], Dialogue], Callable[[Link, Work], Dialogue], Callable[[int], None] | None]] = {
    "greenroom": (greenroom_put, greenroom_take, None),
    "beanstalkd": (beanstalkd_put, beanstalkd_take, None),
    "redis list": (redis_list_put, redis_list_take, None),
    "redis stream": (redis_stream_put, redis_stream_take, redis_stream_set_up),
    "nats": (nats_put, nats_take, nats_set_up),
    "rabbitmq": (rabbitmq_put, rabbitmq_take, None),
    "gearmand": (gearmand_put, gearmand_take, None),
    "gearmand background": (gearmand_put_background, gearmand_take, None),
}
