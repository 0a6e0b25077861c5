"""Attacks on limits: more of the machine than a step was given."""
import ctypes
import mmap
import os
import resource
import tempfile
import time

from frame import Refused, Untried, attack
from process import call, pointer

# What the runtime gives a container as shared memory, and more than that.
SHARED_BYTES = 64 << 20
SHARED_BYTES_WANTED = 96 << 20
# Most descriptors of one process of a step, and where this program stops counting.
DESCRIPTORS_HELD = 16 * 1024
DESCRIPTORS_WANTED = 70_000
# The kubelet looks at volumes every 10 seconds, and as often at what it saw there.
DISK_SECONDS = 75
PIECE_BYTES = 1 << 20


@attack("res-memory", alone=True)
def memory(parameters):
    """A child touches page after page of more than the pod may have."""
    wanted = parameters["memoryBytes"]
    reader, writer = os.pipe()
    pid = os.fork()
    if pid == 0:
        pages = mmap.mmap(-1, wanted)
        for at in range(0, wanted, mmap.PAGESIZE):
            pages[at] = 1
        os.write(writer, b"held")
        os._exit(0)
    os.close(writer)
    held = os.read(reader, 4)
    os.close(reader)
    _, ended = os.waitpid(pid, 0)
    if held:
        return "%d MiB" % (wanted >> 20)
    raise Refused("the kernel ended it by signal %d" % os.WTERMSIG(ended))


@attack("res-shm", alone=True)
def shared_memory(parameters):
    path = "/dev/shm/hostile-%d" % os.getpid()
    written = 0
    try:
        with open(path, "wb", buffering=0) as file:
            while written < SHARED_BYTES_WANTED:
                written += file.write(b"x" * PIECE_BYTES)
    except OSError as error:
        failed = error
    else:
        failed = None
    os.unlink(path)
    if written > SHARED_BYTES:
        return "%d MiB" % (written >> 20)
    raise Refused("%d MiB, then %s" % (written >> 20, failed))


def number(paths, otherwise):
    """The first number that one of these files holds."""
    for path in paths:
        try:
            with open(path) as file:
                return int(file.read())
        except (OSError, ValueError):
            continue
    return otherwise


@attack("res-descriptors", alone=True)
def descriptors(parameters):
    """What one process can hold open, and what all that the pod may have could, beside what the whole node has."""
    hard = resource.getrlimit(resource.RLIMIT_NOFILE)[1]
    resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))
    held = []
    try:
        while len(held) < DESCRIPTORS_WANTED:
            held.append(os.open("/dev/null", os.O_RDONLY))
    except OSError:
        pass
    count = len(held)
    for descriptor in held:
        os.close(descriptor)
    # The kubelet's limit is set on the pod, where nothing of it sees it; the control has none.
    processes = number(["/proc/sys/kernel/pid_max"], 0)
    if not parameters.get("control"):
        processes = parameters["processes"]
    node = number(["/proc/sys/fs/file-max"], 0)
    if not processes or not node:
        raise Untried("the kernel does not tell its limits")
    evidence = "%d in each of %d processes, the node has %d" % (count, processes, node)
    if count > DESCRIPTORS_HELD or count * processes > node:
        return evidence
    raise Refused(evidence)


@attack("res-aio")
def asynchronous_io(parameters):
    """Contexts of asynchronous I/O come out of one number for the whole node."""
    context = ctypes.c_ulong(0)
    call("io_setup", 1024, pointer(context))
    return "1024 events of the node's %d" % number(["/proc/sys/fs/aio-max-nr"], 0)


@attack("res-core")
def core(parameters):
    """The kernel may hand a crash to a program of the node, with all the memory of the one who crashed."""
    folder = tempfile.mkdtemp(dir="/tmp")
    pid = os.fork()
    if pid == 0:
        os.chdir(folder)
        hard = resource.getrlimit(resource.RLIMIT_CORE)[1]
        resource.setrlimit(resource.RLIMIT_CORE, (hard, hard))
        os.abort()
    _, ended = os.waitpid(pid, 0)
    if os.WCOREDUMP(ended):
        return "its memory was written down"
    raise Refused("no core of a limit of %d" % resource.getrlimit(resource.RLIMIT_CORE)[1])


# Volume, and where it is in a step. HOME is made as `/tmp` is; both would be a lot for a developer's disk.
VOLUMES = {"disk-workspace": "/workspace", "disk-tmp": "/tmp"}


def fill(parameters, name):
    """Takes more than the volume's size, and stays. Who is thrown out for it does not come back to tell."""
    folder, wanted = VOLUMES[name], parameters["diskBytes"][name]
    os.makedirs(folder, exist_ok=True)
    space = os.statvfs(folder)
    if space.f_bavail * space.f_frsize < 2 * wanted:
        raise Untried("the machine's own disk is too full for this")
    path = os.path.join(folder, "hostile-%s" % name)
    with open(path, "wb") as file:
        os.posix_fallocate(file.fileno(), 0, wanted)
    time.sleep(DISK_SECONDS)
    os.unlink(path)
    return "%d MiB for %d seconds" % (wanted >> 20, DISK_SECONDS)


for volume in VOLUMES:
    attack(volume)(lambda parameters, volume=volume: fill(parameters, volume))
