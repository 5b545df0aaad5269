#!/usr/bin/env bash
# Training as the first process of a container: worker.sh WORKDIR COMMAND ...
#
# Passes SIGTERM on, at which the run saves and leaves with 0; and exits with 75 if the command
# ended well before the run's last step, so that the cluster takes it for failed and starts it
# again, to go on from there.
set -uo pipefail

if (($# < 2)); then
  echo "error: WORKDIR or COMMAND is missing; give both: worker.sh WORKDIR COMMAND ..." >&2
  exit 2
fi
workdir="$1"
shift
child=""
told=""
# Set before the child starts, which may be heard of before the next line here has run.
trap 'told=yes; [[ -z $child ]] || kill -TERM "$child"' TERM
"$@" &
child=$!
[[ -z $told ]] || kill -TERM "$child"
while true; do # a signal ends bash's wait, but not the child
  wait "$child"
  code=$?
  [[ -n $told ]] || break
  told=""
done
if ((code == 0)); then
  python3 "$(dirname "${BASH_SOURCE[0]}")/is_finished.py" "$workdir"
  code=$?
fi
exit "$code"
