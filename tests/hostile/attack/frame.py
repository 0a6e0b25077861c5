"""What all attacks share."""
import base64
import os
import socket
import urllib.parse

ATTACKS = {}
ALONE = set()
# Longest wait for a packet: on one machine they take less than a millisecond.
PACKET_SECONDS = 2.5


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


def raw_exchange(target, payload, seconds=8.0, most=1 << 20, pause_after=None):
    """Sends bytes and reads until the other side closes or is silent."""
    answer = b""
    with socket.create_connection(target, timeout=PACKET_SECONDS) as stream:
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
    return answer


def status(answer):
    """Status code of the first response, 0 for none."""
    parts = answer.split(b" ", 2)
    if len(parts) > 1 and parts[0].startswith(b"HTTP/") and parts[1].isdigit():
        return int(parts[1])
    return 0
