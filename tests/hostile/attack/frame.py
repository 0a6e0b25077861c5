"""What all attacks share."""
import base64
import os
import socket
import time
import urllib.parse

ATTACKS = {}
ALONE = set()
# Status codes of what a gateway answered, in the process of one attack; 0 for no answer.
ANSWERS = []
# Longest wait for a packet: on one machine they take less than a millisecond.
PACKET_SECONDS = 2.5
# Answers that say nothing of an attack: none at all, too many requests, no upstream, not now. Whoever gets one of the
# last three asks again.
NO_VERDICT = (0, 429, 502, 503)
AGAIN_SECONDS = (1, 2, 4)
# Attacks that a server may rightly answer by the end of the connection alone; the gateway must answer a sound request
# then, or it was away.
CLOSED_IS_REFUSED = {
    "gw-oversize-head": "who goes on sending when the answer is out loses it with the connection",
    "gw-oversize-body": "who goes on sending when the answer is out loses it with the connection",
}
SOUND_REQUEST = b"HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n\r\n"


class Refused(Exception):
    """It was tried and held off."""


class Sent(Exception):
    """It was carried out; who watches outside says what came of it."""


class Untried(Exception):
    """It could not be tried, which is never a defence."""


def attack(name, alone=False):
    """Registers a function: what it returns is the evidence of a success."""

    def register(function):
        assert name not in ATTACKS, name
        ATTACKS[name] = function
        if alone:
            ALONE.add(name)
        return function

    return register


def one_line(text, most=220):
    return " ".join(str(text).split())[:most]


def canaries(parameters):
    """The canaries, which come in halves so that no argument and no object holds one."""
    return ["".join(halves) for halves in parameters["canaries"]]


def forms(canary):
    """A canary as it might be written down."""
    raw = canary.encode()
    shifted = [base64.b64encode(b"x" * shift + raw)[4:-4] for shift in range(3)]
    return [raw, urllib.parse.quote(canary, safe="").encode(), raw.hex().encode()] + shifted


def first_form(parameters, data):
    """The first canary that these bytes hold."""
    for canary in canaries(parameters):
        for form in forms(canary):
            if form in data:
                return canary[:6]
    return None


def base_url(parameters):
    """The gateway as this sandbox knows it; the control has one without rules."""
    given = parameters.get("gateway") or os.environ.get("ANTHROPIC_BASE_URL", "")
    if given.endswith("/llm"):
        given = given[: -len("/llm")]
    if not given:
        raise Untried("nothing names the gateway")
    return given


def gateway_address(parameters):
    host, port = base_url(parameters).split("://")[1].split(":")
    return host, int(port)


def agent_token(parameters):
    token = parameters.get("token") or os.environ.get("ANTHROPIC_API_KEY")
    if not token:
        raise Untried("this step has no token")
    return token


def address(text):
    host, port = text.rsplit(":", 1)
    return host.strip("[]"), int(port)


def to_gateway(parameters):
    """A connection to the gateway. One that is not to be had shows nothing: the gateway must be there to refuse."""
    try:
        return socket.create_connection(gateway_address(parameters), timeout=PACKET_SECONDS)
    except OSError as error:
        raise Untried("the gateway cannot be reached: %r" % error)


def raw_exchange(parameters, payload, seconds=8.0, most=1 << 20, pause_after=None):
    """Sends bytes to the gateway and reads until it closes or is silent."""
    answer = b""
    with to_gateway(parameters) as stream:
        stream.settimeout(seconds)
        try:
            stream.sendall(payload)
            while len(answer) < most:
                piece = stream.recv(65536)
                if not piece:
                    break
                answer += piece
                if pause_after and pause_after(answer):
                    break
        except (TimeoutError, ConnectionError, BrokenPipeError):
            pass
    ANSWERS.append(status(answer))
    return answer


def status(answer):
    """Status code of the first response, 0 for none."""
    parts = answer.split(b" ", 2)
    if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit():
        return int(parts[1])
    return 0


def exchange(parameters, payload, **more):
    """As `raw_exchange`; what is asked to come again does so."""
    answer = raw_exchange(parameters, payload, **more)
    for pause in AGAIN_SECONDS:
        if status(answer) not in NO_VERDICT or status(answer) == 0:
            break
        time.sleep(pause)
        answer = raw_exchange(parameters, payload, **more)
    return answer


def judged(parameters, what, answer, name=None):
    """The words for an answer that is no success of the attack. One that says nothing of it is no defence either."""
    code = status(answer)
    if code == 0 and name in CLOSED_IS_REFUSED and status(exchange(parameters, SOUND_REQUEST)) == 200:
        return "%s: closed" % what
    if code in NO_VERDICT:
        raise Untried("%s: %s" % (what, answer.split(b"\r\n", 1)[0][:60].decode("latin-1") or "no answer"))
    return "%s: %d" % (what, code)
