#!/bin/sh
# Runs what stands behind "--", as agent-runner's own re-execution does without its confinement.
while [ "$1" != -- ]; do shift; done
shift
exec "$@"
