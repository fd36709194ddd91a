"""A producer in plain sockets and msgpack, to be translated: producer.py HOST PORT CA_FILE TASK '{"json": "payload"}'"""
from __future__ import annotations
import json, os, random, socket, ssl, sys, time
import msgpack

RESEND_S = 300   # the broker remembers a submission for 10 minutes: stop resending well before that
AGAIN = ("BUSY", "FULL", "STORE_FULL", "DRAINING", "UNKNOWN", "DEADLINE")   # after these the same request may be sent again

class Refused(Exception):
    """The broker answered with an error; args[0] is its code, args[1] its sentence, args[2] how long to wait."""

def connect(host: str, port: int, ca_file: str) -> ssl.SSLSocket:
    context = ssl.create_default_context(cafile=ca_file)   # verifies the chain and the name
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

def main(host: str, port: int, ca_file: str, task: str, payload: str) -> None:
    jobs = [{"task": task, "payload": msgpack.packb(json.loads(payload))}]
    submission = int(time.time() * 1000).to_bytes(6, "big") + os.urandom(10)   # the same in each attempt: nothing is stored twice
    accepted, finished, give_up = None, [], time.monotonic() + RESEND_S
    while not finished:
        try:
            with connect(host, int(port), ca_file) as sock:
                call(sock, 1, "hello", version=1, role="client", software="snippet/1")
                accepted = accepted or call(sock, 2, "submit", submission=submission, jobs=jobs)["jobs"][0]
                if not isinstance(accepted, int):
                    sys.exit(f"the job was refused: {accepted['message']}")
                while not finished:     # one request at a time, so an id may be used again
                    finished = call(sock, 3, "wait", jobs=[accepted], wait=30)["jobs"]
        except (OSError, Refused) as problem:
            code, sentence, pause_s = problem.args if isinstance(problem, Refused) else ("", str(problem), random.uniform(0, 2))
            if (code and code not in AGAIN) or (not accepted and time.monotonic() > give_up):
                is_known = accepted or (code and code not in AGAIN)
                sys.exit(f"{code}: {sentence}" if is_known else f"UNKNOWN: the job may or may not be stored ({code} {sentence})")
            time.sleep(pause_s)
    print(msgpack.unpackb(finished[0]["result"]) if finished[0].get("result") else finished[0])

main(*sys.argv[1:])
