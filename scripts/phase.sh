#!/usr/bin/env bash
# Runs one phase of a target under its name and prints the time it took.
# usage: phase.sh NAME COMMAND [ARGUMENT…]
# pytest prints its own time, and its line must stay the last one, so nothing follows it.
set -euo pipefail

name=$1
shift
printf '==> %s\n' "$name"
if [[ $name == pytest ]]; then
  exec "$@"
fi
status=0
"$@" || status=$?
verdict=ok
((status == 0)) || verdict="failed (exit $status)"
printf '    %s %s in %d s\n' "$name" "$verdict" "$SECONDS"
exit "$status"
