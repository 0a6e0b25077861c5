"""Attacks through git: on refs that are not the work branch's, and on repositories that are not the run's."""
import base64
import concurrent.futures
import os
import subprocess
import tempfile
import uuid

from frame import Refused, Sent, Untried, agent_token, attack, base_url, exchange, judged, status


# Words of a push that was refused for what it is: by git on the gateway, ref by ref, and by the gateway to a step that may
# not push at all. Any other failure shows nothing: the gateway was away, too busy, or its disk was full.
REFUSALS = ("a hidden ref", "deletion prohibited", "this step may not push", "returned error: 403")
# Two files of zeros, each a thousandth when it is packed. Whoever looks for a delta between them holds both in memory: of
# so many fetches at once that is twice what a gateway has.
BOMB_BYTES = 250 << 20
BOMB_FETCHES = 4
STREAMED = ("-c", "core.bigFileThreshold=1m")


def repository(parameters):
    return "%s/git/%s.git" % (base_url(parameters), parameters["repository"])


def run(parameters, folder, *arguments):
    login = base64.b64encode(("agent:" + agent_token(parameters)).encode()).decode()
    identity = ["user.name=hostile", "user.email=hostile@example.invalid", "http.postBuffer=209715200"]
    options = [part for setting in identity + ["http.extraHeader=Authorization: Basic " + login]
               for part in ("-c", setting)]
    environment = {key: value for key, value in os.environ.items() if not key.startswith("GIT_CONFIG")}
    done = subprocess.run(["git"] + options + list(arguments), cwd=folder, capture_output=True, text=True, timeout=40,
                          env=dict(environment, GIT_TERMINAL_PROMPT="0"), stdin=subprocess.DEVNULL)
    return done.returncode, (done.stdout + done.stderr).strip()


def clone(parameters, folder):
    """The repository as the attacker has it, with a commit of its own on top; gives that commit."""
    code, text = run(parameters, folder, "clone", "--quiet", repository(parameters), "tree")
    if code != 0:
        # What is refused to a reader says nothing about a writer.
        raise Untried("no clone: " + text)
    tree = os.path.join(folder, "tree")
    with open(os.path.join(tree, "hostile-%s.txt" % uuid.uuid4().hex[:8]), "w") as file:
        file.write(parameters["marker"])
    run(parameters, tree, "add", "--all")
    run(parameters, tree, "commit", "--quiet", "--message", parameters["marker"])
    return tree, run(parameters, tree, "rev-parse", "HEAD")[1]


def push(parameters, *refspecs, options=()):
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        tree, commit = clone(parameters, folder)
        code, text = run(parameters, tree, "push", *options, repository(parameters), *refspecs)
        if code == 0:
            # What counts is what the forge has afterwards.
            raise Sent("%s %s" % (commit, text.splitlines()[-1] if text else ""))
        raise refusal(text)


def refusal(text):
    """What a push that failed with these words is."""
    return Refused(text) if any(words in text for words in REFUSALS) else Untried("no refusal: " + text)


PUSHES = {
    "git-push-base": lambda p: ("HEAD:refs/heads/main",),
    "git-push-foreign": lambda p: ("HEAD:refs/heads/%s-foreign" % p["marker"],),
    "git-push-tag": lambda p: ("HEAD:refs/tags/%s" % p["marker"],),
    "git-push-review": lambda p: ("HEAD:refs/for/main/%s" % p["marker"],),
    "git-push-odd-ref": lambda p: ("HEAD:refs/hostile/%s" % p["marker"],),
    "git-delete-branch": lambda p: (":refs/heads/" + p["victimBranch"],),
}
for name, refspecs in PUSHES.items():
    # One behind the other: the gateway lets an attempt have few git requests at once.
    attack(name, alone=True)(lambda parameters, refspecs=refspecs: push(parameters, *refspecs(parameters)))


@attack("git-force-foreign", alone=True)
def force(parameters):
    return push(parameters, "+HEAD:refs/heads/" + parameters["forcedBranch"], options=("--force",))


@attack("git-other-repository", alone=True)
def other_repository(parameters):
    login = base64.b64encode(("agent:" + agent_token(parameters)).encode()).decode()
    answers = []
    for path in ("/git/%s.git" % parameters["otherRepository"], "/git/../git/%s.git" % parameters["otherRepository"],
                 "/git/%s.git/../%s.git" % (parameters["repository"], parameters["otherRepository"]),
                 "/git/jcwearn/%s.git" % parameters["otherRepository"]):
        text = "GET %s/info/refs?service=git-upload-pack HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic %s\r\n\r\n"
        answer = exchange(parameters, (text % (path, login)).encode())
        if status(answer) == 200 and b"service=git-upload-pack" in answer:
            return path
        answers.append(judged(parameters, path, answer))
    raise Refused("; ".join(answers))


@attack("git-plain-files", alone=True)
def plain_files(parameters):
    login = base64.b64encode(("agent:" + agent_token(parameters)).encode()).decode()
    answers = []
    for path in ("/config", "/HEAD", "/objects/info/packs", "/hooks/update.sample", "/info/refs", "/description"):
        text = "GET /git/%s.git%s HTTP/1.1\r\nHost: x\r\nConnection: close\r\nAuthorization: Basic %s\r\n\r\n"
        answer = exchange(parameters, (text % (parameters["repository"], path, login)).encode())
        if status(answer) == 200:
            return path
        answers.append(judged(parameters, path, answer))
    raise Refused("; ".join(answers))


@attack("git-read-refs", alone=True)
def refs(parameters):
    """Refs of others in the mirror: branches whose name was never given to this run."""
    code, text = run(parameters, "/tmp", "ls-remote", repository(parameters))
    found = [line for line in text.splitlines() if "refs/pull/" in line or "refs/mirror" in line or "refs/quarantine" in line]
    if code != 0:
        raise Untried(text)
    if found:
        return found[0]
    raise Refused("%d refs" % len(text.splitlines()))


def zeros(tree, parent, number):
    """A commit on top of `parent` with a large file, which is nowhere unpacked as a whole."""
    head = "commit refs/heads/bomb\ncommitter hostile <hostile@example.invalid> %d +0000\ndata 4\nbomb\nfrom %s\n"
    with subprocess.Popen(["git", *STREAMED, "-c", "fastimport.unpackLimit=1", "fast-import", "--quiet"], cwd=tree,
                          stdin=subprocess.PIPE) as importer:
        importer.stdin.write((head % (number, parent)).encode())
        importer.stdin.write(b"M 100644 inline zeros\ndata %d\n%d" % (BOMB_BYTES + 1, number))
        for _ in range(BOMB_BYTES >> 20):
            importer.stdin.write(bytes(1 << 20))
        importer.stdin.write(b"\n")
    if importer.returncode != 0:
        raise Untried("no bomb: git fast-import ended with %d" % importer.returncode)


@attack("git-fetch-bomb", alone=True)
def fetch_bomb(parameters):
    """Fetches back, several times at once, what the gateway can pack anew only with much more memory than it has."""
    if parameters.get("control"):
        raise Untried("the gateway without rules packs nothing")
    branch = subprocess.run(["git", "branch", "--show-current"], capture_output=True, text=True).stdout.strip()
    with tempfile.TemporaryDirectory(dir="/tmp") as folder:
        tree, commit = clone(parameters, folder)
        # One behind the other, so that each comes in a pack of its own and none as a delta.
        for number, parent in ((1, commit), (2, "refs/heads/bomb^0")):
            zeros(tree, parent, number)
            code, text = run(parameters, tree, *STREAMED, "push", "--quiet", "--force", repository(parameters),
                             "bomb:refs/heads/" + branch)
            if code != 0:
                raise Refused(text) if "returned error: 403" in text else Untried("no bomb: " + text)
        with concurrent.futures.ThreadPoolExecutor(BOMB_FETCHES) as at_once:
            fetched = list(at_once.map(lambda number: fetch(parameters, folder, branch, number), range(BOMB_FETCHES)))
        # The other attacks of this step clone it too.
        run(parameters, tree, "push", "--quiet", "--force", repository(parameters), "HEAD~1:refs/heads/" + branch)
        # The gateway has one memory limit with its git: it is there, or it is gone.
        code, text = run(parameters, folder, "clone", "--quiet", repository(parameters), "afterwards")
        if code != 0:
            return "no clone behind the fetches: " + text
        raise Refused("%d of %d fetches brought it" % (fetched.count(0), BOMB_FETCHES))


def fetch(parameters, folder, branch, number):
    bare = os.path.join(folder, "bare-%d" % number)
    subprocess.run(["git", "init", "--quiet", "--bare", bare], check=True)
    return run(parameters, bare, *STREAMED, "fetch", "--quiet", repository(parameters), branch)[0]
