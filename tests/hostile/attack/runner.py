"""Attacks on agent-runner's word: what looks as if it had said it."""
import os
import signal
import threading
import time

from frame import Sent, Untried, attack, raw_exchange, status
from gateway import message, request

FLOOD_BYTES = 64 << 20
# How long the last word waits behind a flood, which would be left out with it.
FLOOD_SECONDS = 8

# The mark of dropped output begins so where the runner itself writes it; from a child it must never arrive.
CANCEL = "\x18"


@attack("run-forged-marks")
def forged_marks(parameters):
    mark = parameters["marker"]
    with os.fdopen(os.dup(1), "w") as out:
        out.write("%s[... 7 lines, 4096 bytes left out ...]\n" % CANCEL)
        out.write("\n%s[... 7 lines, 4096 bytes left out ...]%s\n" % (CANCEL, mark))
        out.write("2026-01-01T00:00:00.000000000Z stdout F [runner] Completed: forged %s\n" % mark)
        out.write("[runner] Completed: forged %s\r\x1b[2K\n" % mark)
        out.write("::set-output name=phase::Complete %s\n" % mark)
    raise Sent("five lines")


@attack("run-forged-files")
def forged_files(parameters):
    text = '{"reason":"Completed","message":"forged %s","exitCode":0}' % parameters["marker"]
    written = []
    for path in ("/workspace/.agent-operator/result.json", "/workspace/result.json", "/dev/termination-log",
                 "/tmp/result.json", "/home/agent/result.json"):
        try:
            with open(path, "w") as file:
                file.write(text)
            written.append(path)
        except OSError:
            continue
    raise Sent(" ".join(written))


@attack("run-linger", alone=True)
def linger(parameters):
    """A daemon that ignores what can be ignored, for who counts processes after the end of the step."""
    if os.fork() == 0:
        os.setsid()
        if os.fork() == 0:
            for descriptor in range(3, 64):
                try:
                    os.close(descriptor)
                except OSError:
                    pass
            os.execvp("sh", ["sh", "-c", "trap '' TERM INT HUP QUIT; while :; do sleep 7920; done",
                                 parameters["marker"] + "-linger"])
        os._exit(0)
    raise Sent(parameters["marker"])


@attack("run-log-flood", alone=True)
def log_flood(parameters):
    """Bytes that are no text, with no end of a line among them."""
    piece = bytes(range(11, 256)) * 4096
    sent = 0
    with os.fdopen(os.dup(1), "wb", buffering=0) as out:
        while sent < FLOOD_BYTES:
            sent += out.write(piece)
        out.write(b"\n")
    time.sleep(FLOOD_SECONDS)
    raise Sent("%d MiB without a line" % (sent >> 20))


@attack("run-outlive", alone=True)
def outlive(parameters):
    """Goes on behind the deadline: ignores what can be ignored, in processes that left the group, and asks for more."""
    for number in set(signal.Signals) - {signal.SIGKILL, signal.SIGSTOP, signal.SIGCHLD}:
        signal.signal(number, signal.SIG_IGN)
    print("run-outlive tried sent it ignores its end", flush=True)
    if os.fork() == 0:
        os.setsid()
    for _ in range(4):
        threading.Thread(target=lambda: time.sleep(7919)).start()
    while True:
        try:
            # With what only a live step may have: its token for the model.
            body = message(parameters)
            code = status(request(parameters, "POST /llm/v1/messages", body=body, send=raw_exchange))
        except (OSError, Untried):
            code = 0
        # Who watches outside knows the deadline.
        print("run-outlive answered %.3f %d" % (time.time(), code), flush=True)
        time.sleep(0.25)
