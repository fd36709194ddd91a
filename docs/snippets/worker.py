"""A worker in plain sockets and msgpack, to be translated: worker.py HOST PORT CA_FILE. One job at a time, two small tasks."""
from __future__ import annotations
import os, random, socket, ssl, sys, time
import msgpack

TASKS = {"reverse_string": lambda payload: payload["data"][::-1], "to_uppercase": lambda payload: payload["data"].upper()}
RUNS_AT_MOST_S = 60               # the lease gets a deadline of its own: no heartbeats are needed while a job runs

class Worker:
    def __init__(self, host: str, port: int, ca_file: str) -> None:
        self.address, self.context = (host, port), ssl.create_default_context(cafile=ca_file)
        self.context.minimum_version = ssl.TLSVersion.TLSv1_3
        self.context.set_alpn_protocols(["greenroom/1"])
        self.instance = os.urandom(16)      # once per process: who holds its leases, also after a reconnect
        self.unsettled: list[list] = []     # a result whose settle was not answered yet
        self.draining = False

    def read(self, count: int) -> bytes:
        data = b""
        while len(data) < count:
            piece = self.sock.recv(count - len(data))
            if not piece:
                raise ConnectionError("the broker closed the connection")
            data += piece
        return data

    def call(self, verb: str, **fields: object) -> dict:
        body = msgpack.packb({"verb": verb, "id": 1, **fields})
        self.sock.sendall(len(body).to_bytes(4, "big") + body)
        while True:
            message = msgpack.unpackb(self.read(int.from_bytes(self.read(4), "big")))
            if "error" in message:
                raise ConnectionError(message["error"]["message"])
            if "id" in message:
                return message
            self.draining |= message["notice"] == "drain" and message["reason"] == "worker"

    def serve(self) -> None:
        with self.context.wrap_socket(socket.create_connection(self.address, timeout=90), server_hostname=self.address[0]) as self.sock:
            self.call("hello", version=1, role="worker", instance=self.instance, leases=[item[:2] for item in self.unsettled])
            while self.unsettled or not self.draining:
                if self.unsettled:          # REPEATED is as good as OK, and what is answered LEASE_LOST is dropped
                    self.call("settle", leases=self.unsettled)
                    self.unsettled = []
                for job, fence, task, payload, raw, *_ in self.call("reserve", n=1, tasks=list(TASKS), wait=30)["jobs"]:
                    self.call("extend", leases=[[job, fence]], **{"for": RUNS_AT_MOST_S})
                    try:
                        outcome = ["ack", msgpack.packb(TASKS[task](msgpack.unpackb(payload)))]
                    except Exception as exc:
                        outcome = ["fail", {"name": type(exc).__name__, "message": str(exc), "traceback": ""}]
                    self.unsettled = [[job, fence, *outcome]]
            self.call("bye")

worker = Worker(sys.argv[1], int(sys.argv[2]), sys.argv[3])
while not worker.draining:
    try:
        worker.serve()
    except OSError:                         # also what follows a drain of the broker: come back, with leases
        time.sleep(random.uniform(0, 2))
