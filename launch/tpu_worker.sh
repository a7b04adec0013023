#!/usr/bin/env bash
# One host of a TPU slice. launch/tpu_pod.sh copies this and calls it there.
#
#   tpu_worker.sh install          make .venv, with the tpu extra
#   tpu_worker.sh run ID WORDS...  start run ID of craft, or follow it if it
#                                  has started
#   tpu_worker.sh stop             let the run save and end
#
# The run is in a session of its own and writes to ~/craft-run/log, so it lives
# on when the connection breaks, and gcloud, which then repeats the command,
# finds it again. Its exit code is this script's, and stands in the last line.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh
# shellcheck source=launch/options.sh
source launch/options.sh

state=$HOME/craft-run
grace=${CRAFT_GRACE:-150} # seconds to save in

install() {
  local python
  if ! python=$(choose_python 2>/dev/null); then
    say 'no Python 3.11 here: getting one with uv'
    python3 -m pip install --quiet --user uv
    python3 -m uv python install --quiet 3.11
    python=$(choose_python)
  fi
  make_environment .venv "$python" '[remote,tpu]'
}

# Whether the run is there and alive.
running() {
  [ -s "$state/pid" ] && kill -0 "$(cat "$state/pid")" 2>/dev/null
}

stop() {
  local pid last=$((SECONDS + grace))
  running || return 0
  pid=$(cat "$state/pid")
  say "$(hostname): the run saves and ends"
  kill -TERM "$pid"
  while running; do
    [ $SECONDS -lt $last ] || kill -KILL -- "-$pid" || true
    sleep 0.2
  done
}

start() {
  rm -rf "$state"
  mkdir -p "$state"
  : >"$state/log"
  # setsid keeps the process id: nothing in the background leads a group here.
  (
    trap '' HUP INT
    setsid .venv/bin/python -m craft_jax.main "$@" >"$state/log" 2>&1 &
    echo $! >"$state/pid"
    code=0
    wait $! || code=$?
    echo $code >"$state/code.new"
    mv "$state/code.new" "$state/code"
  ) </dev/null >/dev/null 2>&1 &
  while [ ! -s "$state/pid" ]; do sleep 0.1; done
  printf '%s\n' "$id" >"$state/id"
}

run() {
  local id=$1 code
  shift
  if [ "$(cat "$state/id" 2>/dev/null)" = "$id" ]; then
    say "$(hostname): following the run"
  else
    stop
    start "$@"
  fi
  tail -n +1 -f --pid="$(cat "$state/pid")" "$state/log"
  while [ ! -e "$state/code" ]; do sleep 0.1; done
  code=$(cat "$state/code")
  say "host $(hostname) ended with $code"
  return "$code"
}

case ${1:-} in
  install) install ;;
  stop) stop ;;
  run)
    [ $# -gt 2 ] || mistake 'run needs an ID and the words of craft'
    run "${@:2}"
    ;;
  --help | -h) print_help "${BASH_SOURCE[0]}" ;;
  *) mistake "install, run or stop, not '${1:-}'; see --help" ;;
esac
