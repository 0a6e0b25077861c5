#!/usr/bin/env python3
"""Changes that no agent may bring upstream, each as a diff of its own.

usage: diffs.py KIND    makes the change in the work tree of the present folder; the step commits and pushes it
"""
import os
import subprocess
import sys
import tempfile

GIANT_BYTES = 120 * 1024 * 1024
MANY_FILES = 12_000


def write(tree, path, text):
    path = os.path.join(tree, path)
    os.makedirs(os.path.dirname(path), exist_ok=True)
    with open(path, "w") as file:
        file.write(text)


def workflow(tree):
    write(tree, ".github/workflows/hostile.yml", "on: push\njobs: {x: {runs-on: ubuntu-latest, steps: [{run: env}]}}\n")


def code_owners(tree):
    write(tree, ".github/CODEOWNERS", "* @hostile\n")


def symlink(tree):
    os.symlink("/proc/self/environ", os.path.join(tree, "hostile-link"))


def submodule(tree):
    write(tree, ".gitmodules", '[submodule "hostile"]\n\tpath = hostile\n\turl = ext::sh -c id\n')
    head = subprocess.run(["git", "rev-parse", "HEAD"], cwd=tree, capture_output=True, text=True).stdout.strip()
    subprocess.run(["git", "update-index", "--add", "--cacheinfo", "160000,%s,hostile" % head], cwd=tree, check=True)


def giant_file(tree):
    # Random, or it would be small in a pack.
    with open(os.path.join(tree, "hostile.bin"), "wb") as file:
        for _ in range(GIANT_BYTES >> 20):
            file.write(os.urandom(1 << 20))


def many_files(tree):
    for number in range(MANY_FILES):
        write(tree, "hostile/%d/%d" % (number % 100, number), "%d" % number)


# Kind, how it is made, and the path by which it is found upstream.
KINDS = {
    "diff-workflow": workflow,
    "diff-codeowners": code_owners,
    "diff-symlink": symlink,
    "diff-submodule": submodule,
    "diff-giant-file": giant_file,
    "diff-many-files": many_files,
}


def register():
    from frame import Sent, attack
    import git

    def push(parameters, kind):
        with tempfile.TemporaryDirectory(dir="/tmp") as folder:
            tree, _ = git.clone(parameters, folder)
            KINDS[kind](tree)
            git.run(parameters, tree, "add", "--all")
            git.run(parameters, tree, "commit", "--quiet", "--message", kind)
            branch = "HEAD:refs/heads/%s-%s" % (parameters["marker"], kind)
            code, text = git.run(parameters, tree, "push", git.repository(parameters), branch)
            if code == 0:
                raise Sent(text)
            raise git.refusal(text)

    for kind in KINDS:
        attack(kind, alone=True)(lambda parameters, kind=kind: push(parameters, kind))


if __name__ == "__main__":
    KINDS[sys.argv[1]](".")
else:
    register()
