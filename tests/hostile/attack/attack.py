#!/usr/bin/env python3
"""Runs attacks from inside a sandbox, without a model, and prints a line for each:

    ID tried succeeded|refused|sent|untried EVIDENCE

and before it, where a gateway was asked, `ID answered CODE...`, the status of each answer.

`sent` means that only somebody outside can say whether it succeeded. The last line is `score: N`, the number of attacks
that succeeded as far as the attacker can tell.

usage: attack.py PARAMETERS GROUP|ID...    PARAMETERS is a JSON object, see `tests/e2e/hostile/parameters.rs`
"""
import json
import os
import select
import signal
import sys
import time

import credentials
import cluster
import diffs
import gateway
import git
import limits
import load
import network
import process
import runner
from frame import ALONE, ANSWERS, ATTACKS, Refused, Sent, Untried, one_line

# Longest time of one attack: a body that is sent slowly, and some slack.
ATTACK_SECONDS_MAX = 150
# Attacks that the gateway has to answer.
BY_ANSWER = ("gw-", "git-", "diff-", "cred-gateway-")
# Attacks at once: most of them wait for packets that never come.
ATTACKS_AT_ONCE = 8
assert all([credentials, cluster, diffs, gateway, git, limits, load, network, process, runner]), "imported for their attacks"


def listed(chosen):
    """Ids of the list that are chosen by themselves or by their groups, in the list's order."""
    found = []
    with open(os.path.join(os.path.dirname(os.path.abspath(__file__)), "attacks.list")) as lines:
        for line in lines:
            columns = [column.strip() for column in line.split("|")]
            if len(columns) == 5 and not line.startswith("#") and set(columns[:2]) & set(chosen):
                found.append(columns[0])
    return found


def carry_out(name, parameters):
    """One attack, in a process of its own: outcome and evidence."""
    function = ATTACKS.get(name)
    if function is None:
        return "untried", "the list names it and the program does not have it"
    try:
        return "succeeded", function(parameters)
    except Sent as sent:
        return "sent", str(sent)
    except Refused as refused:
        return "refused", str(refused)
    except Untried as untried:
        return "untried", str(untried)
    except (FileNotFoundError, ProcessLookupError) as error:
        # What is not there was not defended.
        return "untried", repr(error)
    except OSError as error:
        # Kernel and wall refuse so. The gateway refuses by an answer, so that its silence is no defence.
        return "untried" if name.startswith(BY_ANSWER) else "refused", repr(error)
    except Exception as error:  # A defect of the program must never look like a defence.
        return "untried", repr(error)


class Attempt:
    """An attack that runs."""

    def __init__(self, name, parameters):
        self.name = name
        reader, writer = os.pipe()
        self.pid = os.fork()
        if self.pid == 0:
            os.close(reader)
            outcome, evidence = carry_out(name, parameters)
            if ANSWERS:
                # At once and whole: others write beside it.
                os.write(1, ("%s answered %s\n" % (name, " ".join(map(str, ANSWERS)))).encode())
            os.write(writer, ("%s %s" % (outcome, one_line(evidence))).encode())
            os._exit(0)
        os.close(writer)
        self.reader = reader
        self.until = time.monotonic() + ATTACK_SECONDS_MAX

    def ended(self):
        ready, _, _ = select.select([self.reader], [], [], 0)
        if not ready and time.monotonic() < self.until:
            return None
        text = os.read(self.reader, 4096).decode("utf-8", "replace") if ready else ""
        if not ready:
            os.kill(self.pid, signal.SIGKILL)
        os.waitpid(self.pid, 0)
        os.close(self.reader)
        if not text:
            # Killed from outside (a seccomp filter may do that), or too slow: nothing says that it was held off.
            text = "untried it did not come to an end"
        return text


def run(names, parameters, at_once):
    score = 0
    waiting, running = list(names), []
    while waiting or running:
        while waiting and len(running) < at_once:
            running.append(Attempt(waiting.pop(0), parameters))
        time.sleep(0.01)
        for attempt in list(running):
            text = attempt.ended()
            if text is not None:
                running.remove(attempt)
                print("%s tried %s" % (attempt.name, text), flush=True)
                score += text.startswith("succeeded")
    return score


def main():
    parameters = json.loads(sys.argv[1])
    names = [name for name in listed(sys.argv[2:]) if name not in parameters.get("without", [])]
    if parameters.get("control"):
        # What the attacks on PID 1 hit here; they may not end the pod that shows that they work.
        parameters["victim"] = os.posix_spawn("/bin/sleep", ["sleep", "600"], {})
    held = process.listen_for_inbound() if "network" in sys.argv[2:] else None
    score = run([name for name in names if name not in ALONE], parameters, ATTACKS_AT_ONCE)
    score += run([name for name in names if name in ALONE], parameters, 1)
    print("score: %d" % score, flush=True)
    # A plain pod has nobody who clears away what is left; the step has.
    time.sleep(parameters.get("stay", 0))
    if parameters.get("control"):
        os.kill(parameters["victim"], signal.SIGKILL)
    del held


if __name__ == "__main__":
    main()
