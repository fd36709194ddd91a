"""A producer in plain sockets and msgpack, to be translated: producer.py HOST PORT CA_FILE TASK '{"json": "payload"}'"""
from __future__ import annotations
import json, os, random, socket, ssl, sys, time
import msgpack

class Refused(Exception):
    """The broker answered with an error; args[0] is its code, args[1] its sentence, args[2] how long to wait."""

def connect(host: str, port: int, ca_file: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=ca_file)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.set_alpn_protocols(["greenroom/1"])
    return context.wrap_socket(socket.create_connection((host, port), timeout=40), server_hostname=host)

def read_exactly(sock: ssl.SSLSocket, count: int) -> bytes:
    data = b""
    while len(data) < count:
        piece = sock.recv(count - len(data))
        if not piece:
            raise ConnectionError("the broker closed the connection")
        data += piece
    return data

def call(sock: ssl.SSLSocket, number: int, verb: str, **fields: object) -> dict:
    body = msgpack.packb({"verb": verb, "id": number, **fields})
    sock.sendall(len(body).to_bytes(4, "big") + body)
    while True:
        reply = msgpack.unpackb(read_exactly(sock, int.from_bytes(read_exactly(sock, 4), "big")))
        if "error" in reply:
            error = reply["error"]
            raise Refused(error["code"], error["message"], error.get("retry_after_s") or 0.5)
        if reply.get("id") == number:   # anything else is a notice, which a producer ignores
            return reply

def submit_and_wait(sock: ssl.SSLSocket, submission: bytes, job: dict) -> dict:
    call(sock, 1, "hello", version=1, role="client", software="snippet/1")
    outcome = call(sock, 2, "submit", submission=submission, jobs=[job])["jobs"][0]
    if not isinstance(outcome, int):
        sys.exit(f"the job was refused: {outcome['message']}")
    for number in range(3, 2**53):
        for view in call(sock, number, "wait", jobs=[outcome], wait=30)["jobs"]:
            return view

def main(host: str, port: str, ca_file: str, task: str, payload: str) -> None:
    job = {"task": task, "payload": msgpack.packb(json.loads(payload))}
    submission = int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10)   # the same for every attempt: never stored twice
    while True:
        try:
            with connect(host, int(port), ca_file) as sock:
                view = submit_and_wait(sock, submission, job)
            break
        except (OSError, Refused) as lost:
            if isinstance(lost, Refused) and lost.args[0] not in ("BUSY", "FULL", "STORE_FULL", "DRAINING", "UNKNOWN", "DEADLINE"):
                sys.exit(f"{lost.args[0]}: {lost.args[1]}")
            time.sleep(random.uniform(0, 2) if isinstance(lost, OSError) else lost.args[2])
    print(msgpack.unpackb(view["result"]) if view.get("state") == "completed" else view)

main(*sys.argv[1:])
