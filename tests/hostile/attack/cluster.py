"""Attacks on the cluster and the node as Kubernetes shows them."""
import glob
import os
import re
import socket
import ssl
import urllib.error
import urllib.request

from frame import Refused, Untried, attack

TOKEN = "/var/run/secrets/kubernetes.io/serviceaccount/token"


@attack("k8s-token-file")
def token_file(parameters):
    paths = [TOKEN] + glob.glob("/var/run/secrets/**", recursive=True) + glob.glob("/run/secrets/**", recursive=True)
    for path in paths:
        if os.path.isfile(path):
            with open(path, "rb") as file:
                if re.match(rb"[\w-]{10,}\.[\w-]{10,}\.[\w-]{10,}$", file.read(1 << 16).strip()):
                    return path
    raise Refused("no token in /var/run/secrets")


@attack("k8s-environment")
def variables(parameters):
    found = [name for name in os.environ if name.startswith("KUBERNETES_")]
    if found:
        return " ".join(found)
    raise Refused("no variable of the cluster")


def get(url):
    request = urllib.request.Request(url)
    try:
        with open(TOKEN) as file:
            request.add_header("Authorization", "Bearer " + file.read().strip())
    except OSError:
        pass
    context = ssl._create_unverified_context()
    # Past the proxy that the environment names: what the gateway refuses is another attack.
    direct = urllib.request.build_opener(urllib.request.ProxyHandler({}), urllib.request.HTTPSHandler(context=context))
    try:
        with direct.open(request, timeout=5) as answer:
            return "%d from %s" % (answer.status, url)
    except (urllib.error.URLError, TimeoutError) as error:
        raise Refused("%s: %s" % (url, error))


@attack("k8s-api-call")
def api_call(parameters):
    return get("https://%s/api/v1/namespaces/%s/pods" % (parameters["apiServices"][0], parameters["namespace"]))


@attack("k8s-kubelet-call")
def kubelet_call(parameters):
    return get("https://%s/pods" % parameters["kubelets"][0])


@attack("k8s-runtime-socket")
def runtime_socket(parameters):
    paths = ["/run/containerd/containerd.sock", "/var/run/docker.sock", "/run/crio/crio.sock"]
    failed = []
    for path in paths + parameters.get("runtimeSockets", []):
        try:
            with socket.socket(socket.AF_UNIX) as stream:
                stream.connect(path)
                return "connected to %s" % path
        except OSError as error:
            failed.append(str(error))
    raise Refused(failed[0])


@attack("k8s-gateway-socket")
def gateway_socket(parameters):
    sockets = glob.glob("/run/agent-operator/*.sock") + glob.glob("/run/*.sock")
    if sockets:
        return sockets[0]
    raise Refused("no socket of the supervisor")


@attack("k8s-host-paths")
def host_paths(parameters):
    found = [path for path in glob.glob("/var/log/pods/*") + glob.glob("/var/lib/agent-operator/*")]
    if found:
        return found[0]
    raise Refused("nothing of the node")


@attack("k8s-host-processes")
def host_processes(parameters):
    mine = os.getpid()
    chain = set()
    while mine > 1:
        chain.add(mine)
        with open("/proc/%d/stat" % mine) as file:
            mine = int(file.read().rsplit(")", 1)[1].split()[1])
    for path in glob.glob("/proc/[0-9]*/cmdline"):
        try:
            with open(path, "rb") as file:
                line = file.read()
        except (FileNotFoundError, ProcessLookupError):
            # It has ended meanwhile.
            continue
        # The program's own line names targets.
        if b"marker" not in line and re.search(rb"/pause|kubelet|containerd|supervisor|gateway", line):
            return line.replace(b"\0", b" ").decode("utf-8", "replace")
    if not chain:
        raise Untried("no process of its own was seen")
    raise Refused("only processes of this container")


@attack("k8s-devices")
def devices(parameters):
    found = [path for path in glob.glob("/dev/*") if re.match(r"/dev/(mem|kmsg|kvm|fuse|loop|vd|sd|nvme|disk)", path)]
    if found:
        return " ".join(found)
    raise Refused("no device of the node")
