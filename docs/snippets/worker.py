"""A worker in plain sockets and msgpack, to be translated: worker.py HOST PORT CA_FILE. One job at a time, two small tasks."""
import os, random, select, socket, ssl, sys, threading, time
import msgpack
TASKS = {"reverse_string": lambda payload, stop: payload["data"][::-1],
         "slow_task": lambda payload, stop: "stopped" if stop.wait(payload["seconds"]) else "slept"}
INSTANCE = os.urandom(16)          # once per process: it holds the leases, also after a reconnect
held = {}   # (job, fence) -> {"stop": event, "item": what settles it, None while it runs}; kept until the settle is answered
ended, end = socket.socketpair()   # a job that ends wakes the main thread, which alone touches the TLS socket

def run(lease: tuple, job: dict, task: str, payload: bytes) -> None:
    try:
        result = msgpack.packb(TASKS[task](msgpack.unpackb(payload), job["stop"]))
        if len(result) > 2**20: raise ValueError("the result is over limits.result")   # never send what is sure to be refused
        job["item"] = [*lease, "ack", result]
    except Exception as exc:
        job["item"] = [*lease, "fail", {"name": type(exc).__name__, "message": str(exc)}, {"retry": not isinstance(exc, KeyError)}]
    end.send(b"!")
def give_up(leases: list[tuple]) -> None:   # they may run elsewhere by now; a result that is there may still count
    for lease in leases:
        held[lease]["stop"].set()
        if not held[lease]["item"]: del held[lease]
def read(sock: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        data += (piece := sock.recv(count - len(data)))
        if not piece: raise ConnectionError("the broker closed the connection")
    return data

def serve(sock: ssl.SSLSocket) -> None:   # returns when the worker shall end; raises OSError when it shall come back
    notices = []
    def call(verb: str, **fields: object) -> dict:   # one at a time, so an id may be used again
        body = msgpack.packb({"verb": verb, "id": 1, **fields})
        sock.sendall(len(body).to_bytes(4, "big") + body)
        while "id" not in (message := msgpack.unpackb(read(sock, int.from_bytes(read(sock, 4), "big")))):
            notices.append(message)   # a cancel needs no more: the heartbeat that follows at once tells it too
        if "error" in message: raise ConnectionError(message["error"]["message"])
        return message
    greeting = call("hello", version=1, role="worker", instance=INSTANCE, leases=list(held), tasks=list(TASKS))
    give_up([lease for lease, outcome in zip(held, greeting["leases"]) if outcome != "OK"])
    while held or {"notice": "drain", "reason": "worker"} not in notices:   # the reason "broker": the connection ends by itself
        for job, fence, task, payload, *_ in [] if held else call("reserve", n=1, tasks=list(TASKS), wait=30)["jobs"]:
            held[job, fence] = {"stop": threading.Event(), "item": None}
            threading.Thread(target=run, args=((job, fence), held[job, fence], task, payload), daemon=True).start()
        if items := [job["item"] for job in held.values() if job["item"]]:
            for item, outcome in zip(items, call("settle", leases=items)["outcomes"]):   # "OK", "REPEATED" or an error map
                if not isinstance(outcome, dict) or outcome["code"] != "BUSY": del held[tuple(item[:2])]   # LEASE_LOST: drop it
        elif held:
            if not sock.pending() and ended in select.select([sock, ended], [], [], greeting["heartbeat_s"])[0]: ended.recv(1)
            beat = call("heartbeat", leases=list(held))
            for lease in beat["cancel"]: held[tuple(lease)]["stop"].set()
            give_up([tuple(lease) for lease in beat["lost"]])
    call("bye")
context = ssl.create_default_context(cafile=sys.argv[3])
context.minimum_version = ssl.TLSVersion.TLSv1_3
context.set_alpn_protocols(["greenroom/1"])
while True:
    try:
        plain = socket.create_connection((sys.argv[1], int(sys.argv[2])), timeout=40)
        with context.wrap_socket(plain, server_hostname=sys.argv[1]) as sock: sys.exit(serve(sock))
    except OSError: time.sleep(random.uniform(0, 1))   # better: at once, then at random up to 0.5, 1, 2, 4, 5 s
