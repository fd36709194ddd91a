"""How long until jobs flow again after a kill, and what it cost: the broker killed and restarted under load, a worker killed, one stopped.

Starts a broker of its own with its shipped defaults. Producers resend what was not acknowledged, as the protocol says; workers come back
with the leases that they hold. docs/benchmarks.md says how to read the figures.
"""

from __future__ import annotations

from common import BenchError, Broker, Certificates, Loop, Peer, Report, check, percentile, positive, run
from crew import Crew, Member
from throughput import submission_id

import argparse
import multiprocessing
import os
import signal
import time
from array import array
from dataclasses import dataclass, field

from greenroom.endpoint import Endpoint

TASK = "bench.noop"
BATCH = 20  # jobs of a submit
IN_FLIGHT = 4  # submits without an acknowledgement
WORKERS = 4  # connections that work
RESERVE = 20
RESERVE_WAIT_S = 5.0
NUMBER_BYTES = 8
FILLER = os.urandom(92)
VICTIM_QUEUE = "bench.victim"
VICTIM_JOBS = 50
RETRY_S = 0.005
WARM_UP_S = 1.0
FLOWS_WITHIN_S = 60.0
WITHIN_S = 120.0

_fork = multiprocessing.get_context("fork")


class Clock:
    """Memory that the processes share: when the latest settle was accepted, and how many were. One process writes it."""

    def __init__(self) -> None:
        self._times = _fork.RawArray("d", 2)

    def note(self, settled: int) -> None:
        """Note that so many more were accepted, now."""
        self._times[0] = time.monotonic()
        self._times[1] += settled

    @property
    def latest(self) -> float:
        """Monotonic seconds."""
        return self._times[0]

    @property
    def settled(self) -> int:
        """How many so far."""
        return int(self._times[1])


@dataclass
class Submitted:
    """What the producer knows at its end: number -> id of every job, all acknowledged."""

    ids: array = field(default_factory=lambda: array("Q"))
    resent: int = 0  # frames
    repeated: int = 0  # of them, those that the broker knew


@dataclass
class Worked:
    """What the workers saw: ids in the order in which they came, again if they came again; ids whose settle was accepted."""

    came: array = field(default_factory=lambda: array("Q"))
    accepted: array = field(default_factory=lambda: array("Q"))
    lost: int = 0  # settles answered LEASE_LOST
    gaps_s: list[float] = field(default_factory=list)  # the longest pauses between two accepted settles


def connect(endpoint: Endpoint, role: str, **hello: object) -> Peer:
    """Connect and greet, again and again until it works. Raises BenchError after a minute."""
    deadline = time.monotonic() + FLOWS_WITHIN_S
    while True:
        try:
            return Peer(endpoint, role, **hello).open()
        except OSError:
            if time.monotonic() > deadline:
                raise BenchError(f"no connection within {FLOWS_WITHIN_S:g} s") from None
            time.sleep(RETRY_S)


# -- a stream of jobs -------------------------------------------------------------------------------------------------------


def produce(member: Member, endpoint: Endpoint, rate: float) -> Submitted:
    """Submit so many jobs a second until told to end, and until all are acknowledged; a frame is resent when its connection ended."""
    outcome, frames, acked = Submitted(), [], []
    waiting: list[int] = []  # frames that must be sent again
    peer = connect(endpoint, "client")
    member.ready()
    began = time.monotonic()
    while not member.is_over or waiting or peer.in_flight:
        try:
            while waiting and len(peer.in_flight) < IN_FLIGHT:
                _send(peer, frames, waiting.pop(0))
            due = not member.is_over and (time.monotonic() - began) * rate > len(frames) * BATCH
            if due and not waiting and len(peer.in_flight) < IN_FLIGHT:
                first = len(frames) * BATCH
                frames.append((submission_id(), [_job(number) for number in range(first, first + BATCH)]))
                acked.append(None)
                _send(peer, frames, len(frames) - 1)
            peer.flush()
            for message in peer.receive_within(0.005):
                frame = peer.in_flight.pop(check(message)["id"])
                outcome.repeated += "repeated" in message
                acked[frame] = message["jobs"]
        except OSError:
            waiting = sorted([*peer.in_flight.values(), *waiting])
            outcome.resent += len(peer.in_flight)
            peer.close()
            peer = connect(endpoint, "client")
    for ids in acked:
        outcome.ids.extend(ids)
    return outcome


def _send(peer: Peer, frames: list, frame: int) -> None:
    submission, jobs = frames[frame]
    peer.in_flight[peer.ask("submit", submission=submission, jobs=jobs)] = frame


def _job(number: int) -> dict:
    return {"task": TASK, "payload": number.to_bytes(NUMBER_BYTES, "big") + FILLER, "encoding": "raw"}


def work(member: Member, endpoint: Endpoint, clock: Clock) -> Worked:
    """Be WORKERS connections that settle at once, until told to end; each comes back when its connection ends, with what it holds."""
    worked = Worked()
    instances = [os.urandom(16) for _ in range(WORKERS)]
    loop = Loop()
    for number, instance in enumerate(instances):
        _join(loop, connect(endpoint, "worker", number=number, hello={"instance": instance}), {})
    member.ready()
    while not member.is_over:
        for peer in loop.ready(0.02):
            try:
                for message in peer.receive():
                    _take(peer, check(message), worked, clock)
                loop.send(peer)
            except OSError:
                held = {job_id: lease for leases in peer.in_flight.values() for job_id, lease in leases.items()}
                loop.forget(peer)
                peer.close()
                hello = {"instance": instances[peer.number], "leases": [[job_id, lease[1]] for job_id, lease in held.items()]}
                _join(loop, connect(endpoint, "worker", number=peer.number, hello=hello), held)
    return worked


def _join(loop: Loop, peer: Peer, held: dict[int, list]) -> None:
    """Begin to work on a connection; `held` are settles whose answer is not known, by job id."""
    loop.add(peer)
    if held:
        peer.in_flight[peer.ask("settle", leases=list(held.values()))] = held
    peer.in_flight[peer.ask("reserve", n=RESERVE, queues=["default"], wait=RESERVE_WAIT_S)] = {}
    loop.send(peer)


def _take(peer: Peer, message: dict, worked: Worked, clock: Clock) -> None:
    settles = peer.in_flight.pop(message["id"])
    if settles:
        accepted = [job_id for job_id, outcome in zip(settles, message["outcomes"]) if outcome in ("OK", "REPEATED")]
        worked.lost += len(settles) - len(accepted)
        worked.accepted.extend(accepted)
        if accepted:
            if clock.latest:
                worked.gaps_s = sorted([*worked.gaps_s, time.monotonic() - clock.latest])[-20:]
            clock.note(len(accepted))
        return
    jobs = message["jobs"]
    for job_id, _, _, payload, *_ in jobs:
        if payload[NUMBER_BYTES:] != FILLER:
            raise BenchError(f"job {job_id} came with another payload than it was submitted with")
        worked.came.append(job_id)
    if jobs:
        held = {job[0]: [job[0], job[1], "ack", job[3][:NUMBER_BYTES], True] for job in jobs}
        peer.in_flight[peer.ask("settle", leases=list(held.values()))] = held
    peer.in_flight[peer.ask("reserve", n=RESERVE, queues=["default"], wait=RESERVE_WAIT_S)] = {}


# -- the broker is killed ---------------------------------------------------------------------------------------------------


def kill_broker(report: Report, certificates: Certificates, args: argparse.Namespace) -> None:
    """Kill and restart the broker again and again under load; print how long each part took, and what the jobs went through."""
    clock = Clock()
    times: dict[str, list[float]] = {"hello": [], "first settle": [], "half the rate": []}
    with Broker(certificates) as broker, Crew() as crew:
        crew.start(produce, broker.endpoint, args.rate)
        crew.start(work, broker.endpoint, clock)
        crew.go()
        for _ in range(args.kills):
            _wait_until_it_flows(crew, clock, args.seconds)
            killed_at = time.monotonic()
            broker.kill()
            before = clock.settled
            broker.spawn()
            broker.wait_until_it_greets().close()
            times["hello"].append(time.monotonic() - killed_at)
            _wait_for(crew, lambda: clock.settled > before)
            times["first settle"].append(clock.latest - killed_at)
            times["half the rate"].append(_until_half_the_rate(crew, clock, args.rate) - killed_at)
        _wait_until_it_flows(crew, clock, args.seconds)
        submitted, worked = _end_stream(crew, broker, clock)
        lost_s = worked.gaps_s[-args.kills:]
        broker.stop()
        completed = _check_store(broker, submitted, 0)
    for what, values in times.items():
        report.result(f"broker killed: until {what}", percentile(values, 50) * 1000, "ms", kills=args.kills, rate=args.rate,
                      max=round(max(values) * 1000))
    report.result("broker killed: no settle accepted for", percentile(lost_s, 50) * 1000, "ms", kills=args.kills, rate=args.rate,
                  max=round(max(lost_s) * 1000))
    report.result("broker killed: jobs lost", len(submitted.ids) - completed, "jobs", of=len(submitted.ids))
    report.result("broker killed: jobs that came again", len(worked.came) - len(set(worked.came)), "jobs", of=len(submitted.ids))
    report.result("broker killed: jobs finished twice", len(worked.accepted) - len(set(worked.accepted)), "jobs", of=len(submitted.ids))
    report.result("broker killed: settles refused (LEASE_LOST)", worked.lost, "leases")
    report.result("broker killed: submits sent again", submitted.resent, "frames", known=submitted.repeated)


def _wait_for(crew: Crew, condition: object) -> None:
    deadline = time.monotonic() + FLOWS_WITHIN_S
    while not condition():
        if crew.has_ended(0.0):
            crew.outcomes(1.0)  # says why
        if time.monotonic() > deadline:
            raise BenchError(f"jobs did not flow again within {FLOWS_WITHIN_S:g} s")
        time.sleep(0.001)


def _wait_until_it_flows(crew: Crew, clock: Clock, seconds: float) -> None:
    before = clock.settled
    _wait_for(crew, lambda: clock.settled > before)
    time.sleep(seconds)


def _until_half_the_rate(crew: Crew, clock: Clock, rate: float) -> float:
    """Return when a tenth of a second began in which settles came at half the rate at least."""
    while True:
        began, before = time.monotonic(), clock.settled
        if crew.has_ended(0.1):
            crew.outcomes(1.0)
        if clock.settled - before >= 0.1 * rate / 2:
            return began


def _end_stream(crew: Crew, broker: Broker, clock: Clock) -> tuple[Submitted, Worked]:
    """End the producer, wait until every job is finished, end the workers."""
    watcher = Peer(broker.endpoint).open()
    crew.end(0)
    submitted = crew.outcome(0, WITHIN_S)
    _wait_for(crew, lambda: watcher.call("stats")["states"]["queued"] + watcher.call("stats")["states"]["running"] == 0)
    watcher.close()
    crew.end()
    return submitted, crew.outcome(1, WITHIN_S)


def _check_store(broker: Broker, submitted: Submitted, others: int) -> int:
    """Count and compare the stopped broker's store; returns how many of the submitted jobs are completed in it."""
    if len(set(submitted.ids)) != len(submitted.ids):
        raise BenchError("an id was given to two jobs")
    numbers = {job_id: number for number, job_id in enumerate(submitted.ids)}
    right = 0
    for job_id, result in broker.stored_results():
        number = numbers.get(job_id)
        if number is not None and result != number.to_bytes(NUMBER_BYTES, "big"):
            raise BenchError(f"job {job_id} is completed with the result of another")
        right += number is not None
    stored, wanted = broker.count_stored(), {"waiting": 0, "completed": len(numbers) + others, "other": 0}
    if right != len(numbers) or stored != wanted:
        raise BenchError(f"{right} of {len(numbers)} acknowledged jobs are completed; the store holds {stored}, it should hold {wanted}")
    return right


# -- a worker is killed, or stopped -----------------------------------------------------------------------------------------


def be_victim(member: Member, endpoint: Endpoint, held: object, outcomes: object) -> None:
    """Reserve all the victim's jobs and hold them, heartbeating; when told to end, try to settle them.

    Args:
        held, outcomes: shared arrays: the ids that it holds, then 0 or 1 for each: whether its settle was accepted.
    """
    peer = Peer(endpoint, "worker", name="victim").open()
    member.ready()
    leases: list[list[int]] = []
    while len(leases) < VICTIM_JOBS:
        jobs = peer.call("reserve", n=VICTIM_JOBS - len(leases), queues=[VICTIM_QUEUE], wait=RESERVE_WAIT_S)["jobs"]
        leases += [job[:2] for job in jobs]
    for place, (job_id, _) in enumerate(leases):
        held[place] = job_id
    beat_at = time.monotonic()
    while not member.is_over:
        if time.monotonic() >= beat_at:
            beat_at += peer.greeting["heartbeat_s"]
            peer.call("heartbeat", leases=leases)
        time.sleep(0.01)
    answers = peer.call("settle", leases=[[*lease, "ack", b"late", True] for lease in leases])["outcomes"]
    for place, answer in enumerate(answers):
        outcomes[place] = answer == "OK"


def help_victim(member: Member, endpoint: Endpoint) -> None:
    """Work on the victim's queue until told to end."""
    peer = Peer(endpoint, "worker").open()
    member.ready()
    while not member.is_over:
        jobs = peer.call("reserve", n=RESERVE, queues=[VICTIM_QUEUE], wait=0.5)["jobs"]
        if jobs:
            peer.call("settle", leases=[[job[0], job[1], "ack", job[3][:NUMBER_BYTES], True] for job in jobs])


def lose_worker(report: Report, certificates: Certificates, args: argparse.Namespace, how: signal.Signals) -> None:
    """Kill or stop a worker that holds jobs, while a stream of others goes on; print how long until others finished them."""
    times, accepted_late = [], 0
    clock = Clock()
    with Broker(certificates) as broker, Crew() as stream:
        stream.start(produce, broker.endpoint, args.rate)
        stream.start(work, broker.endpoint, clock)
        stream.go()
        rounds = args.kills if how is signal.SIGKILL else args.stops
        for _ in range(rounds):
            _wait_until_it_flows(stream, clock, WARM_UP_S)
            took_s, late = _lose_once(broker, how)
            times.append(took_s)
            accepted_late += late
        submitted, worked = _end_stream(stream, broker, clock)
        broker.stop()
        _check_store(broker, submitted, rounds * VICTIM_JOBS)
    name = f"worker {'killed' if how is signal.SIGKILL else 'stopped'}"
    report.result(f"{name}: until its jobs were finished", percentile(times, 50) * 1000, "ms", times=rounds, jobs=VICTIM_JOBS,
                  rate=args.rate, max=round(max(times) * 1000))
    report.result(f"{name}: late settles accepted", accepted_late, "leases", of=rounds * VICTIM_JOBS)
    report.result(f"{name}: other jobs that came again", len(worked.came) - len(set(worked.came)), "jobs", of=len(submitted.ids))


def _lose_once(broker: Broker, how: signal.Signals) -> tuple[float, int]:
    """Give a victim jobs, lose it, wait for others to finish them; returns seconds, and how many settles it still got accepted."""
    held, outcomes = _fork.RawArray("Q", VICTIM_JOBS), _fork.RawArray("b", VICTIM_JOBS)
    watcher = Peer(broker.endpoint).open()
    with Crew() as victims, Crew() as helpers:
        victim = victims.start(be_victim, broker.endpoint, held, outcomes)
        victims.go()
        jobs = [{**_job(number), "queue": VICTIM_QUEUE} for number in range(VICTIM_JOBS)]
        ids = watcher.call("submit", jobs=jobs)["jobs"]
        _wait_for(victims, lambda: held[VICTIM_JOBS - 1])
        if sorted(held) != sorted(ids):
            raise BenchError("the victim holds other jobs than were submitted for it")
        helpers.start(help_victim, broker.endpoint)
        helpers.go()
        lost_at = time.monotonic()
        os.kill(victim.pid, how)
        missing = set(ids)
        while missing:
            views = watcher.call("wait", jobs=sorted(missing), wait=30.0)["jobs"]
            for view in views:
                if view["state"] != "completed" or view["result"] != ids.index(view["id"]).to_bytes(NUMBER_BYTES, "big"):
                    raise BenchError(f"a job of the lost worker ended as {view}")
                missing.discard(view["id"])
            if time.monotonic() > lost_at + FLOWS_WITHIN_S:
                raise BenchError(f"{len(missing)} jobs of the lost worker were not finished")
        took_s = time.monotonic() - lost_at
        if how is signal.SIGSTOP:
            victims.end()
            os.kill(victim.pid, signal.SIGCONT)
            _wait_for_end(victims)
        helpers.end()
        helpers.outcomes(WITHIN_S)
    watcher.close()
    return took_s, sum(outcomes)


def _wait_for_end(victims: Crew) -> None:
    # The broker may have closed its connection meanwhile: then nothing was accepted either.
    try:
        victims.outcomes(WITHIN_S)
    except BenchError as exc:
        if "closed the connection" not in str(exc):
            raise


# -- the script -------------------------------------------------------------------------------------------------------------


def build_parser() -> argparse.ArgumentParser:
    """Return the parser of the command line."""
    parser = argparse.ArgumentParser(prog="recovery.py", description="Kills: how long until jobs flow again, and what was lost.")
    parser.add_argument("--kills", type=positive, default=5, help="kill broker and worker so often each (default: 5)")
    parser.add_argument("--stops", type=positive, default=1, help="stop a worker so often; each takes as long as a lease (default: 1)")
    parser.add_argument("--rate", type=positive, default=2000, metavar="JOBS", help="jobs a second that flow meanwhile (default: 2,000)")
    parser.add_argument("--seconds", type=float, default=2.0, help="how long jobs flow before each kill of the broker (default: 2)")
    parser.add_argument("--only", choices=("broker", "killed", "stopped"), help="measure this alone")
    parser.add_argument("--json", action="store_true", help="one JSON object a result on stdout")
    return parser


def main() -> int:
    """Measure what the command line asks for."""
    args = build_parser().parse_args()
    if not 0.1 <= args.seconds <= 60:
        raise BenchError("--seconds must be 0.1 to 60")
    with Certificates() as certificates:
        report = Report.begin("Recovery", args, Broker(certificates).settings)
        if args.only in (None, "broker"):
            kill_broker(report, certificates, args)
        if args.only in (None, "killed"):
            lose_worker(report, certificates, args, signal.SIGKILL)
        if args.only in (None, "stopped"):
            lose_worker(report, certificates, args, signal.SIGSTOP)
    return 0


if __name__ == "__main__":
    run(main)
