#!/usr/bin/env bash
# Several real processes on this machine, joined over loopback: a run on many
# hosts in small. On the CPU, unless JAX_PLATFORMS says otherwise.
#
#   launch/local.sh --processes N [options] [command] [flags of craft]
#
#   --processes N     how many
#   --port P          where they meet; a free port if not given
#   --cpu-devices K   CPU devices of each process (default: 1)
#   --grace S         seconds for the others to end once one has ended, and
#                     again after SIGTERM, before SIGKILL (default: 150)
#   --dry-run         print the commands and run nothing
#   --help            print this
#
# The options come first. The command is train unless a word stands there:
#   launch/local.sh --processes 2 eval --workdir=runs/first
# Runs $PYTHON if set, else .venv, made and kept as by launch/quickstart.sh.
#
# Process 0 writes to the terminal; what the others write goes to standard
# error with their number in front. INT, TERM, USR1 and HUP are passed on to
# all processes, which save and end; QUIT (Ctrl-\) kills them at once. However
# this script ends, killed too, no process stays behind.
#
# Exit code, the first that fits:
#   2    a mistake in the options, or a process exited with 2
#   1    a process failed
#   69   a process was lost: killed, or still there after the grace
#   75   interrupted and saved
#   0    all finished
# After 69 and 75 the same command goes on where the run stopped.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"

processes='' port='' cpu_devices='' grace=150 dry_run=no
while [ $# -gt 0 ]; do
  case $1 in
    --processes=* | --port=* | --cpu-devices=* | --grace=*)
      set -- "${1%%=*}" "${1#*=}" "${@:2}"
      ;;
  esac
  case $1 in
    --processes | --port | --cpu-devices | --grace)
      [ $# -gt 1 ] || mistake "$1 needs a value"
      need_number "$1" "$2"
      ;;
  esac
  case $1 in
    --processes) processes=$2 && shift ;;
    --port) port=$2 && shift ;;
    --cpu-devices) cpu_devices=$2 && shift ;;
    --grace) grace=$2 && shift ;;
    --dry-run) dry_run=yes ;;
    --help | -h) print_help "${BASH_SOURCE[0]}" && exit ;;
    --)
      shift
      break
      ;;
    *) break ;;
  esac
  shift
done
[ -n "$processes" ] || mistake '--processes N is missing; see --help'
[ "${port:-1}" -le 65535 ] || mistake "--port is at most 65535, not $port"
split_command "$@"
[ -z "$cpu_devices" ] || flags+=("--config.mesh.cpu_devices=$cpu_devices")

# The command of process $1.
set_line() {
  line=("$python" -m craft_jax.main "$command" "--coordinator=127.0.0.1:$port"
    "--num-processes=$processes" "--process-id=$1" ${flags[@]+"${flags[@]}"})
}

if [ $dry_run = yes ]; then
  python=${PYTHON:-$root/.venv/bin/python}
  port=${port:-PORT}
  for ((i = 0; i < processes; i++)); do
    set_line "$i"
    print_command "${line[@]}"
  done
  exit
fi

if [ -n "${PYTHON:-}" ]; then
  python=$PYTHON
  is_python "$python" || mistake "PYTHON=$python is not Python 3.11 or later"
else
  base=$(choose_python)
  (cd "$root" && make_environment .venv "$base" '') >&2
  python=$root/.venv/bin/python
fi
port=${port:-$("$python" -c 'import socket
s = socket.socket()
s.bind(("127.0.0.1", 0))
print(s.getsockname()[1])')}
export JAX_PLATFORMS=${JAX_PLATFORMS:-cpu}
export JAX_COORDINATOR_BIND_ADDRESS=127.0.0.1:$port
export PYTHONPATH=$root${PYTHONPATH:+:$PYTHONPATH}

# Gives a process a session of its own, so that Ctrl-C reaches this script
# only, and the process can be killed with all that it started. Background
# processes of a shell ignore SIGINT; this undoes it.
own_session='import os, signal, sys
os.setsid()
signal.signal(signal.SIGINT, signal.SIG_DFL)
signal.signal(signal.SIGQUIT, signal.SIG_DFL)
os.execvp(sys.argv[1], sys.argv[1:])'

scratch=$(mktemp -d "${TMPDIR:-/tmp}/craft-local.XXXXXX")
mkfifo "$scratch/alive"

ignore_signals() { trap '' INT TERM USR1 HUP QUIT; }

# Reads the process ids from a pipe whose other end only this script holds, so
# it wakes when the script has ended in whatever way; then it ends what is
# left.
guard() {
  local leaders=() pid last
  ignore_signals
  while read -r pid; do leaders+=("$pid"); done <"$scratch/alive"
  last=$((SECONDS + grace))
  for pid in ${leaders[@]+"${leaders[@]}"}; do
    kill -TERM "$pid" 2>/dev/null || true
  done
  for pid in ${leaders[@]+"${leaders[@]}"}; do
    while kill -0 "$pid" 2>/dev/null && [ $SECONDS -lt $last ]; do
      sleep 0.1
    done
    kill -KILL -- "-$pid" 2>/dev/null || true
  done
  rm -rf "$scratch"
}

# Passes lines on with a number in front.
prefix() {
  local text
  ignore_signals
  while IFS= read -r text || [ -n "$text" ]; do
    printf '[%s] %s\n' "$1" "$text" >&2
  done
}

pids=() readers=() codes=()

forward() {
  local i
  for i in "${!pids[@]}"; do
    [ -n "${codes[i]:-}" ] || kill "-$1" "${pids[i]}" 2>/dev/null || true
  done
}

finish() {
  trap - EXIT
  ignore_signals
  exec 9>&-
  wait "$guardian" ${readers[@]+"${readers[@]}"} || true
}

for name in INT TERM USR1 HUP; do
  # shellcheck disable=SC2064  # the name as it is now
  trap "forward $name" $name
done
guard &
guardian=$!
trap finish EXIT
trap 'for pid in ${pids[@]+"${pids[@]}"}; do kill -KILL -- "-$pid" || true
done 2>/dev/null; exit 69' QUIT
exec 9>"$scratch/alive"

for ((i = 0; i < processes; i++)); do
  set_line "$i"
  if [ "$i" = 0 ]; then
    "$python" -c "$own_session" "${line[@]}" 9>&- &
    pids[0]=$!
  else
    mkfifo "$scratch/$i"
    prefix "$i" <"$scratch/$i" 9>&- &
    readers+=($!)
    "$python" -c "$own_session" "${line[@]}" >"$scratch/$i" 2>&1 9>&- &
    pids[i]=$!
  fi
  printf '%s\n' "${pids[i]}" >&9
done

# Nothing here blocks for long, so that signals are passed on at once. The
# shell's own notices of killed processes are left out.
exec 3>&2
deadline='' stage='wait'
while [ "${#codes[@]}" -lt "$processes" ]; do
  sleep 0.2 9>&- || true
  for i in "${!pids[@]}"; do
    [ -z "${codes[i]:-}" ] || continue
    ! kill -0 "${pids[i]}" 2>/dev/null || continue
    codes[i]=0
    wait "${pids[i]}" 2>/dev/null || codes[i]=$?
    deadline=${deadline:-$((SECONDS + grace))}
    case ${codes[i]} in
      0 | 75) ;;
      *) say "process $i ended with ${codes[i]}" >&3 ;;
    esac
  done
  [ "${#codes[@]}" -lt "$processes" ] || break
  [ -n "$deadline" ] && [ $SECONDS -ge "$deadline" ] || continue
  if [ $stage = wait ]; then
    say "$grace s after the first end: SIGTERM to the others" >&3
    forward TERM
    stage='term'
    deadline=$((SECONDS + grace))
  elif [ $stage = term ]; then
    say "$grace s later: SIGKILL" >&3
    forward KILL
    stage='kill'
  fi
done 2>/dev/null
finish
exit "$(combine_codes "${codes[@]}")"
