#!/usr/bin/env python3
"""A neighbour of the attacks: prints numbered rows at a steady pace, and once a second does what every step does, which
must go on working whatever happens beside it.

usage: beat.py LEAVE    until the file LEAVE is there
"""
import os
import subprocess
import sys
import tempfile
import time

import gateway
from frame import Untried, raw_exchange, status

ROW_SECONDS = 0.25
ROWS_PER_BEAT = 4
FILE_BYTES = 1 << 20


def beat():
    """A model call, a child, a file on disk."""
    body = gateway.message({"marker": "beat"})
    answer = gateway.request({}, "POST /llm/v1/messages", body=body, send=raw_exchange)
    if status(answer) != 200:
        raise OSError("the model: %r" % answer[:80])
    subprocess.run(["true"], check=True, timeout=20)
    with tempfile.TemporaryFile(dir="/tmp") as file:
        file.write(b"x" * FILE_BYTES)
        file.flush()
        os.fsync(file.fileno())


def main():
    row = 0
    while not os.path.exists(sys.argv[1]):
        print("row %d" % row, flush=True)
        row += 1
        time.sleep(ROW_SECONDS)
        if row % ROWS_PER_BEAT:
            continue
        began = time.monotonic()
        try:
            beat()
            print("beat well in %.3f seconds" % (time.monotonic() - began), flush=True)
        except (OSError, Untried, subprocess.SubprocessError) as error:
            print("beat failed: %r" % error, flush=True)


if __name__ == "__main__":
    main()
