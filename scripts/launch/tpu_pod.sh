#!/usr/bin/env bash
# A run on a Cloud TPU pod, from a machine that has gcloud.  docs/pods.md goes through it.
#
#   tpu_pod.sh create --name=NAME --zone=ZONE --accelerator=v5litepod-16 [--spot]
#   tpu_pod.sh setup  --name=NAME --zone=ZONE
#   tpu_pod.sh run    --name=NAME --zone=ZONE -- --config=FILE --workdir=FOLDER ...
#   tpu_pod.sh logs   --name=NAME --zone=ZONE [--worker=0] [--lines=50] [--follow]
#   tpu_pod.sh stop   --name=NAME --zone=ZONE
#   tpu_pod.sh delete --name=NAME --zone=ZONE
#
# create asks for the pod and waits for it; setup copies the tracked files of this repository to
# every worker and installs them; run starts main.py on every worker, with what follows --; stop has
# the run save and leave, and run goes on from there.
# Also: --project=PROJECT, --runtime=VERSION (follows from the accelerator), and --dry-run, which
# prints every command and runs none.
set -euo pipefail

ROOT="$(cd "$(dirname "${BASH_SOURCE[0]}")/../.." && pwd)"
readonly COMMANDS="create setup run logs stop delete"
readonly FOLDER=diffusion_jax # on the workers, in the home folder
readonly POLL_SECONDS="${POLL_SECONDS:-30}"

fail() {
  echo "error: $*" >&2
  exit 2
}

# Every command goes through here, so that a dry run shows all of them.
run() {
  if [[ -n $dry_run ]]; then
    quoted "$@"
  else
    "$@"
  fi
}

# Words as a shell reads them again.
quoted() {
  local word line=""
  for word in "$@"; do
    if [[ ! $word =~ ^[A-Za-z0-9_./:=@%+,-]+$ ]]; then word="${word@Q}"; fi
    line+=" $word"
  done
  echo "${line# }"
}

parse() {
  subcommand="${1:-}" name="" zone="" project="" accelerator="" runtime=""
  spot="" worker="0" lines="50" follow="" dry_run="" arguments=()
  [[ -n $subcommand && " $COMMANDS " == *" $subcommand "* ]] ||
    fail "subcommand '$subcommand' is unknown; choose one of ${COMMANDS// /, }"
  shift
  while (($#)); do
    case "$1" in
      --name=?*) name="${1#*=}" ;;
      --zone=?*) zone="${1#*=}" ;;
      --project=?*) project="${1#*=}" ;;
      --accelerator=?*) accelerator="${1#*=}" ;;
      --runtime=?*) runtime="${1#*=}" ;;
      --worker=?*) worker="${1#*=}" ;;
      --lines=?*) lines="${1#*=}" ;;
      --spot) spot=yes ;;
      --follow) follow=yes ;;
      --dry-run) dry_run=yes ;;
      --)
        shift
        arguments=("$@")
        break
        ;;
      *) fail "argument '$1' is not understood; options are --NAME=VALUE, main.py's follow --" ;;
    esac
    shift
  done
  [[ -n $name ]] || fail "--name is missing; name the pod, as in --name=my-pod"
  [[ -n $zone ]] || fail "--zone is missing; name the pod's zone, as in --zone=us-west4-a"
  [[ $subcommand == run || ${#arguments[@]} == 0 ]] ||
    fail "'${arguments[0]}' after -- is for run alone; leave it away"
  where=("--zone=$zone")
  if [[ -n $project ]]; then where+=("--project=$project"); fi
}

# Which system image an accelerator takes.
runtime_of() {
  case "$1" in
    v2-* | v3-* | v4-*) echo tpu-ubuntu2204-base ;;
    v5litepod-*) echo v2-alpha-tpuv5-lite ;;
    v5p-*) echo v2-alpha-tpuv5 ;;
    v6e-*) echo v2-alpha-tpuv6e ;;
    *) fail "--accelerator=$1 has no known runtime; add --runtime=VERSION" ;;
  esac
}

# on WORKER COMMAND: one of the workers, or "all".
on() {
  run gcloud compute tpus tpu-vm ssh "$name" "${where[@]}" "--worker=$1" "--command=$2"
}

create() {
  [[ -n $accelerator ]] || fail "--accelerator is missing; name one, as in v5litepod-16"
  if [[ -z $runtime ]]; then runtime="$(runtime_of "$accelerator")"; fi
  local price=()
  if [[ -n $spot ]]; then price=(--spot); fi
  run gcloud compute tpus queued-resources create "$name" "--node-id=$name" "${where[@]}" \
    "--accelerator-type=$accelerator" "--runtime-version=$runtime" "${price[@]}"
  wait_until_active
}

wait_until_active() {
  local state describe
  describe=(gcloud compute tpus queued-resources describe "$name" "${where[@]}"
    "--format=value(state.state)")
  if [[ -n $dry_run ]]; then
    run "${describe[@]}"
    return
  fi
  while true; do
    state="$("${describe[@]}")"
    echo "$name is $state"
    case "$state" in
      ACTIVE) return ;;
      FAILED | SUSPEND* | DELETING)
        fail "--name=$name is $state and will not become active; delete it, then create it again"
        ;;
    esac
    sleep "$POLL_SECONDS"
  done
}

setup() {
  local archive="${TMPDIR:-/tmp}/$name.tar.gz" commit=HEAD
  # A commit of the tracked files as they lie there; empty if they are those of HEAD.
  if [[ -z $dry_run ]]; then commit="$(git -C "$ROOT" stash create)"; fi
  run git -C "$ROOT" archive "--output=$archive" "${commit:-HEAD}"
  run gcloud compute tpus tpu-vm scp "$archive" "$name:$FOLDER.tar.gz" "${where[@]}" --worker=all
  # uv brings a Python that is new enough, which the system images have not.
  on all "mkdir -p $FOLDER && tar -xzf $FOLDER.tar.gz -C $FOLDER && cd $FOLDER && \
python3 -m pip install --quiet --user uv && \
python3 -m uv venv --quiet --allow-existing --python=3.13 .venv && \
python3 -m uv pip install --quiet --python=.venv -r requirements.txt 'jax[tpu]'"
}

start() {
  [[ " ${arguments[*]} " == *" --workdir="?* ]] ||
    fail "--workdir is missing; name a folder that all workers share: run ... -- --workdir=FOLDER"
  # A pid of its own, not that of a subshell: stop signals it.
  on all "cd $FOLDER || exit 1; \
if kill -0 \$(cat run.pid) 2>/dev/null; then echo 'a run is going on; stop it first' >&2; exit 1; fi; \
nohup .venv/bin/python main.py --distributed=auto $(quoted "${arguments[@]}") >> run.log 2>&1 < /dev/null & \
echo \$! > run.pid"
}

logs() {
  [[ $worker =~ ^([0-9]+|all)$ ]] || fail "--worker=$worker is no worker; give a number, or all"
  [[ $lines =~ ^[0-9]+$ ]] || fail "--lines=$lines is no number of lines; give one, as in 50"
  on "$worker" "tail --lines=$lines ${follow:+--follow }$FOLDER/run.log"
}

stop() {
  on all "pid=\$(cat $FOLDER/run.pid) && kill -TERM \$pid 2>/dev/null || exit 0; \
while kill -0 \$pid 2>/dev/null; do sleep 1; done; tail --lines=1 $FOLDER/run.log"
}

delete() {
  run gcloud compute tpus queued-resources delete "$name" "${where[@]}" --force --quiet
}

main() {
  if [[ "${1:-}" == --help ]]; then
    sed -n '2,/^set/{/^set/d;s/^# \{0,1\}//;p}' "${BASH_SOURCE[0]}"
    return
  fi
  parse "$@"
  if [[ -z $dry_run ]] && ! command -v gcloud > /dev/null; then
    fail "gcloud is not on the PATH; install the Google Cloud CLI, or add --dry-run"
  fi
  case "$subcommand" in
    run) start ;;
    *) "$subcommand" ;;
  esac
}

main "$@"
