"""Attacks by system calls: on PID 1, on the walls of the container, on its limits."""
import ctypes
import os
import socket
import subprocess

from frame import Refused, Untried, attack

LIBC = ctypes.CDLL(None, use_errno=True)
MACHINE = os.uname().machine
# Numbers of system calls, x86-64 and those of the newer machines (aarch64).
NUMBERS = {
    "ptrace": (101, 117), "prlimit64": (302, 261), "process_vm_readv": (310, 270), "add_key": (248, 217),
    "io_uring_setup": (425, 425), "pidfd_open": (434, 434), "pidfd_getfd": (438, 438), "setpriority": (141, 140),
    "sched_setscheduler": (144, 119), "ioprio_set": (251, 30), "io_setup": (206, 0),
}
CLONE = {"mount": 0x20000, "user": 0x10000000, "pid": 0x20000000, "net": 0x40000000}
PROCESSES = 1200
PROCESSES_HELD = 1024


def call(name, *arguments):
    number = NUMBERS[name][0 if MACHINE == "x86_64" else 1]
    wide = [argument if isinstance(argument, (ctypes.c_void_p, bytes, type(None))) else ctypes.c_long(argument)
            for argument in arguments]
    result = LIBC.syscall(ctypes.c_long(number), *wide)
    if result < 0:
        error = ctypes.get_errno()
        raise Refused("%s: %s" % (name, os.strerror(error)))
    return result


def pointer(data):
    return ctypes.c_void_p(ctypes.addressof(data))


def libc(name, *arguments):
    if getattr(LIBC, name)(*arguments) != 0:
        raise Refused("%s: %s" % (name, os.strerror(ctypes.get_errno())))
    return name


def victim(parameters):
    """PID 1; the control has a process of the same user in its place, which may come to harm."""
    return parameters.get("victim", 1)


def listen_for_inbound():
    """A server for who comes from outside; kept as long as the attacks take."""
    server = socket.socket(socket.AF_INET, socket.SOCK_STREAM)
    server.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
    server.bind(("0.0.0.0", 7777))
    server.listen(16)
    return server


@attack("proc-signal-pid1")
def signal_pid_1(parameters):
    os.kill(victim(parameters), 0)
    return "the signal was allowed"


@attack("proc-prlimit-pid1")
def limit_pid_1(parameters):
    # So many seconds of CPU that nobody comes to harm while this is looked at.
    limits = (ctypes.c_ulong * 2)(100000, 200000)
    call("prlimit64", victim(parameters), 0, pointer(limits), None)
    return "a CPU limit was set"


@attack("proc-nice-pid1")
def nice_pid_1(parameters):
    call("setpriority", 0, victim(parameters), 5)
    return "it is slower now"


@attack("proc-affinity-pid1")
def affinity_pid_1(parameters):
    os.sched_setaffinity(victim(parameters), {0})
    return "it is on one processor now"


@attack("proc-scheduler-pid1")
def scheduler_pid_1(parameters):
    priority = ctypes.c_int(0)
    call("sched_setscheduler", victim(parameters), 3, pointer(priority))
    return "it is a batch process now"


@attack("proc-ioprio-pid1")
def io_priority_pid_1(parameters):
    call("ioprio_set", 1, victim(parameters), 3 << 13)
    return "its disk is idle-only now"


@attack("proc-ptrace-pid1")
def trace_pid_1(parameters):
    call("ptrace", 0x4206, victim(parameters), 0, 0)
    return "traced"


@attack("proc-vm-readv-pid1")
def read_pid_1(parameters):
    # Nothing there is readable in both cases, so what tells is the kind of the refusal: EFAULT comes after the check.
    local = ctypes.create_string_buffer(8)
    vector = (ctypes.c_ulong * 2)(ctypes.addressof(local), 8)
    remote = (ctypes.c_ulong * 2)(8, 8)
    try:
        call("process_vm_readv", victim(parameters), pointer(vector), 1, pointer(remote), 1, 0)
    except Refused as refused:
        if os.strerror(14) in str(refused):
            return "only the address was wrong"
        raise
    return "read"


@attack("proc-pidfd-pid1")
def descriptor_of_pid_1(parameters):
    handle = call("pidfd_open", victim(parameters), 0)
    return "descriptor %d" % call("pidfd_getfd", handle, 0, 0)


@attack("proc-oom-score-pid1")
def oom_score_pid_1(parameters):
    with open("/proc/%d/oom_score_adj" % victim(parameters), "w") as file:
        file.write("999")
    return "it is killed first now"


def unshare(kind):
    libc("unshare", CLONE[kind])
    return "a %s namespace of its own" % kind


for space in CLONE:
    attack("proc-unshare-%s" % space)(lambda parameters, space=space: unshare(space))


@attack("proc-mount")
def mount(parameters):
    return libc("mount", b"none", b"/mnt", b"tmpfs", 0, None)


@attack("proc-chroot")
def chroot(parameters):
    return libc("chroot", b"/tmp")


@attack("proc-setuid")
def become_root(parameters):
    os.setresuid(0, 0, 0)
    return "uid %d" % os.getuid()


@attack("proc-capabilities")
def capabilities(parameters):
    held = field("CapEff") + field("CapPrm") + field("CapBnd") + field("CapAmb")
    if int(held, 16):
        return held
    raise Refused("none")


@attack("proc-new-privileges")
def new_privileges(parameters):
    if field("NoNewPrivs") == "0":
        return "setuid programs give what they promise"
    raise Refused("no_new_privs is set")


@attack("proc-seccomp-off")
def no_filter(parameters):
    if field("Seccomp") == "0":
        return "any system call"
    raise Refused("mode %s" % field("Seccomp"))


def field(name):
    with open("/proc/self/status") as lines:
        for line in lines:
            if line.startswith(name + ":"):
                return line.split()[1]
    raise Untried("the kernel does not tell %s" % name)


@attack("proc-write-root")
def write_root(parameters):
    failed = []
    for folder in ("/", "/etc", "/usr/local/bin", "/opt/agent-operator", "/var/tmp", "/bin"):
        path = os.path.join(folder, "hostile-%d" % os.getpid())
        try:
            with open(path, "w") as file:
                file.write("here")
            os.unlink(path)
            return path
        except OSError as error:
            failed.append(error.strerror)
    raise Refused(" / ".join(sorted(set(failed))))


@attack("proc-write-sysctl")
def write_sysctl(parameters):
    with open("/proc/sys/net/ipv4/ip_forward", "r+"):
        return "opened for writing"


@attack("proc-cgroup-write")
def write_cgroup(parameters):
    failed = None
    for path in ("/sys/fs/cgroup/pids/cgroup.procs", "/sys/fs/cgroup/memory/cgroup.procs", "/sys/fs/cgroup/cgroup.procs"):
        try:
            with open(path, "r+"):
                return path
        except OSError as error:
            failed = error
    raise Refused(failed)


@attack("proc-mknod")
def mknod(parameters):
    path = "/tmp/hostile-device-%d" % os.getpid()
    os.mknod(path, 0o20600, os.makedev(1, 3))
    os.unlink(path)
    return "a device of its own"


@attack("proc-keyring")
def keyring(parameters):
    return "key %d" % call("add_key", b"user", b"hostile", b"x", 1, -2)


@attack("proc-io-uring")
def io_uring(parameters):
    ring = ctypes.create_string_buffer(256)
    return "descriptor %d" % call("io_uring_setup", 4, pointer(ring))


@attack("proc-hostname")
def hostname(parameters):
    name = os.uname().nodename.encode()
    return libc("sethostname", name, len(name))


@attack("proc-sudo")
def sudo(parameters):
    done = subprocess.run(["su", "-c", "id -u"], capture_output=True, text=True, stdin=subprocess.DEVNULL, timeout=10)
    if done.returncode == 0 and done.stdout.strip() == "0":
        return "root by su"
    raise Refused(done.stderr.strip() or done.returncode)


@attack("proc-fork-bomb", alone=True)
def fork_bomb(parameters):
    made = []
    try:
        for _ in range(PROCESSES):
            made.append(os.posix_spawn("/bin/sleep", ["sleep", "30"], {}))
    except OSError as error:
        failed = error
    else:
        failed = None
    count = len(made)
    for pid in made:
        os.kill(pid, 9)
    for pid in made:
        os.waitpid(pid, 0)
    if count > PROCESSES_HELD:
        return "%d processes" % count
    raise Refused("%d processes, then %s" % (count, failed))
