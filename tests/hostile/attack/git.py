"""Attacks through git: on refs that are not the work branch's, and on repositories that are not the run's."""
import base64
import os
import subprocess
import tempfile
import uuid

from frame import Refused, Sent, Untried, agent_token, attack, base_url, exchange, judged, status


# Words of a push that was refused for what it is: by git on the gateway, ref by ref, and by the gateway to a step that may
# not push at all. Any other failure shows nothing: the gateway was away, too busy, or its disk was full.
REFUSALS = ("a hidden ref", "deletion prohibited", "this step may not push", "returned error: 403")


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
