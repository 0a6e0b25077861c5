"""Attacks on the gateway's patience: connections that cost it something and say little."""
import base64
import socket
import time

from frame import (
    PACKET_SECONDS, Refused, Untried, agent_token, attack, exchange, gateway_address, judged, status, to_gateway,
)

# The gateway gives the head of a request 30 seconds, and its body 2 minutes.
HEAD_SECONDS = 37
BODY_SECONDS = 130
# The gateway gives an exchange of git a minute without a byte.
GIT_SECONDS = 75
# Of each kind at once: together with the others well below what a pod may have open.
HELD = 6
# The gateway answers so many requests of an attempt in a second, and twice that at once.
REQUESTS_PER_SECOND = 100
REQUESTS = 1500
REQUESTS_SECONDS = 5.0
HEADERS = 200
# Whoever is closed sooner than this was not waited for, so nothing says how long one would be.
HELD_SECONDS_LEAST = 5


def hold(parameters, first, more, seconds, half_closed=False):
    """Opens some connections that begin with `first`, sends `more` each second and counts those that are open at the
    end."""
    streams = []
    for _ in range(HELD):
        stream = to_gateway(parameters)
        stream.sendall(first)
        if half_closed:
            stream.shutdown(socket.SHUT_WR)
        stream.setblocking(False)
        streams.append(stream)
    began = time.monotonic()
    lasted = 0.0
    while streams and time.monotonic() < began + seconds:
        time.sleep(1)
        streams = [stream for stream in streams if lives(stream, more)]
        lasted = time.monotonic() - began
    for stream in streams:
        stream.close()
    if streams:
        return "%d of %d connections are open after %d seconds" % (len(streams), HELD, lasted)
    # A half that is closed may be the end of all of it at once.
    if lasted < HELD_SECONDS_LEAST and not half_closed:
        raise Untried("all are closed after %d seconds" % lasted)
    raise Refused("all are closed after %d seconds" % lasted)


def lives(stream, more):
    """Whether the other side has kept it; what it has answered is read away."""
    try:
        while stream.recv(65536):
            pass
        stream.close()
        return False
    except BlockingIOError:
        pass
    except OSError:
        return False
    try:
        if more:
            stream.send(more)
        return True
    except BlockingIOError:
        return True
    except OSError:
        return False


@attack("gw-silent")
def silent(parameters):
    return hold(parameters, b"", b"", HEAD_SECONDS)


@attack("gw-slow-head")
def slow_head(parameters):
    return hold(parameters, b"POST /llm/v1/messages HTTP/1.1\r\nHost: x\r\nX-Slow: ", b"x", HEAD_SECONDS)


@attack("gw-idle")
def idle(parameters):
    return hold(parameters, b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n", b"", HEAD_SECONDS)


@attack("gw-half-closed")
def half_closed(parameters):
    return hold(parameters, b"POST /llm/v1/messages HTTP/1.1\r\nHost: x\r\n", b"", HEAD_SECONDS, half_closed=True)


@attack("gw-slow-body")
def slow_body(parameters):
    head = "POST /llm/v1/messages HTTP/1.1\r\nHost: x\r\nAuthorization: Bearer %s\r\nContent-Length: 1000\r\n\r\n"
    return hold(parameters, (head % agent_token(parameters)).encode(), b" ", BODY_SECONDS)


@attack("git-idle-streams")
def idle_streams(parameters):
    """Exchanges of git that begin with their head alone. An attempt has few of them, and none for long."""
    head = "POST /git/%s.git/git-upload-pack HTTP/1.1\r\nHost: x\r\nAuthorization: Basic %s\r\nContent-Length: 1000\r\n\r\n"
    login = base64.b64encode(("agent:" + agent_token(parameters)).encode()).decode()
    return hold(parameters, (head % (parameters["repository"], login)).encode(), b"", GIT_SECONDS)


@attack("gw-header-count")
def header_count(parameters):
    lines = "".join("X-%d: x\r\n" % number for number in range(HEADERS))
    text = "HEAD / HTTP/1.1\r\nHost: x\r\nConnection: close\r\n%s\r\n" % lines
    answer = exchange(parameters, text.encode())
    if status(answer) == 200:
        return "%d headers" % HEADERS
    raise Refused(judged(parameters, "%d headers" % HEADERS, answer))


@attack("gw-request-flood", alone=True)
def request_flood(parameters):
    """As many requests as go through; those that the gateway does not turn away cost it work."""
    began = time.monotonic()
    answered = turned_away = 0
    stream = None
    while answered + turned_away < REQUESTS and time.monotonic() < began + REQUESTS_SECONDS:
        try:
            if stream is None:
                stream = socket.create_connection(gateway_address(parameters), timeout=PACKET_SECONDS)
            stream.sendall(b"HEAD / HTTP/1.1\r\nHost: x\r\n\r\n")
            code = status(stream.recv(4096))
        except OSError:
            code = 0
        answered += code == 200
        turned_away += code != 200
        if code != 200 and stream is not None:
            stream.close()
            stream = None
    lasted = time.monotonic() - began
    if stream is not None:
        stream.close()
    evidence = "%d answered, %d turned away in %.1f seconds" % (answered, turned_away, lasted)
    # A tenth more: the gateway's clock began a moment earlier.
    if answered > 1.1 * REQUESTS_PER_SECOND * (2 + lasted):
        return evidence
    if not answered:
        # To be turned away is the defence here, of a gateway that answers others.
        raise Untried(evidence)
    raise Refused(evidence)
