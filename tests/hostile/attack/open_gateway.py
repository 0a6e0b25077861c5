#!/usr/bin/env python3
"""A gateway without any rule: what attacks on a gateway must succeed against, or they show nothing.

usage: open_gateway.py PARAMETERS
"""
import base64
import http.client
import json
import os
import socket
import socketserver
import sys
import threading
import time
import urllib.parse

PORT = 8080
PATIENCE_SECONDS = 120


def resolve(target):
    """Names that nobody knows lead to the sink, which stands for the internet."""
    host, port = target.rsplit(":", 1)
    host = host.strip("[]")
    try:
        return socket.create_connection((host, int(port)), timeout=1)
    except OSError:
        sink, sink_port = PARAMETERS["sinks"][0].rsplit(":", 1)
        return socket.create_connection((sink, int(sink_port)), timeout=2)


class Handler(socketserver.BaseRequestHandler):
    """Reads requests one behind the other, by Content-Length alone."""

    def handle(self):
        self.rest = b""
        while True:
            while b"\r\n\r\n" not in self.rest:
                piece = self.request.recv(1 << 20)
                if not piece:
                    # It waits for the rest of a head that nobody can send any more.
                    return time.sleep(PATIENCE_SECONDS) if self.rest else None
                self.rest += piece
            head, self.rest = self.rest.split(b"\r\n\r\n", 1)
            lines = head.decode("latin-1").replace("\r\n", "\n").split("\n")
            headers = {}
            for line in lines[1:]:
                name, _, value = line.partition(":")
                headers[name.strip().lower()] = value.strip()
            try:
                length = int(headers.get("content-length", "0").split(",")[0].strip("+ "))
            except ValueError:
                length = 0
            parts = [self.rest]
            size = len(self.rest)
            while size < length:
                piece = self.request.recv(1 << 20)
                if not piece:
                    return
                parts.append(piece)
                size += len(piece)
            data = b"".join(parts)
            body, self.rest = data[:length], data[length:]
            method, target = lines[0].split(" ")[:2]
            if method == "CONNECT":
                return self.tunnel(target)
            self.answer(method, target, headers, body)
            if headers.get("connection", "").lower() == "close":
                return

    def say(self, code, body=b"", headers=()):
        text = "HTTP/1.1 %d X\r\nX-Upstream-Key: %s\r\nContent-Length: %d\r\n" % (code, os.environ.get("CANARY", ""), len(body))
        for name, value in headers:
            if name.lower() not in ("content-length", "transfer-encoding", "connection"):
                text += "%s: %s\r\n" % (name, value)
        self.request.sendall(text.encode("latin-1") + b"\r\n" + body)

    def answer(self, method, target, headers, body):
        if headers.get("upgrade"):
            return self.say(101)
        if target.startswith("http://"):
            parsed = urllib.parse.urlsplit(target)
            return self.forward(parsed.netloc, method, parsed.path, headers, body)
        path = urllib.parse.unquote(target.replace("%2e", "."))
        if headers.get("host") in PARAMETERS["forges"]:
            return self.forward(headers["host"], method, path, headers, body)
        if path.startswith("/llm"):
            path = os.path.normpath("/" + path[len("/llm"):].lstrip("/"))
            headers.setdefault("x-api-key", "open")
            return self.forward(PARAMETERS["models"][0], method, path, headers, body)
        if path.startswith("/git/"):
            names = {PARAMETERS["repository"] + ".git": PARAMETERS["repositoryName"] + ".git"}
            first, _, rest = target[len("/git/"):].partition("/")
            login = base64.b64encode(os.environ["FORGE_LOGIN"].encode()).decode()
            headers["authorization"] = "Basic " + login
            path = "/jcwearn/%s/%s" % (names.get(first, first), rest)
            return self.forward(PARAMETERS["forges"][0], method, path, headers, body)
        return self.say(200, b"{}")

    def forward(self, host, method, path, headers, body):
        if host in PARAMETERS["models"] and len(body) > 30 << 20:
            # The model's own limit is no rule of a gateway.
            return self.say(200)
        upstream = http.client.HTTPConnection(host, timeout=30)
        upstream.putrequest(method, path.replace(" ", "%20"), skip_host=True, skip_accept_encoding=True)
        upstream.putheader("Host", host)
        for name, value in headers.items():
            if name not in ("host", "content-length", "connection", "transfer-encoding", "x-padding"):
                upstream.putheader(name, value)
        upstream.putheader("Content-Length", str(len(body)))
        upstream.endheaders(body)
        answer = upstream.getresponse()
        self.say(answer.status, answer.read(), answer.getheaders())

    def tunnel(self, target):
        other = resolve(target)
        self.request.sendall(b"HTTP/1.1 200 Connected\r\n\r\n")
        threading.Thread(target=self.pump, args=(other, self.request), daemon=True).start()
        self.pump(self.request, other)

    @staticmethod
    def pump(source, target):
        try:
            while piece := source.recv(65536):
                target.sendall(piece)
        except OSError:
            pass


class Server(socketserver.ThreadingTCPServer):
    allow_reuse_address = True
    daemon_threads = True
    request_queue_size = 1024


PARAMETERS = json.loads(sys.argv[1])
Server(("0.0.0.0", PORT), Handler).serve_forever()
