#!/usr/bin/env bash
# Trains on a Cloud TPU slice: makes it or takes the one that is there, copies
# the checkout to all its hosts, runs craft on all, and shows what they print.
#
#   launch/tpu_pod.sh --name=A --zone=Z --type=T [options] -- [command] \
#     [flags of craft]
#
#   --name A      of the slice
#   --zone Z      such as us-west4-a
#   --type T      such as v5litepod-16; needed where the slice has to be made
#   --version V   of its software (default: by type)
#   --project P   (default: that of gcloud)
#   --spot        cheaper, and taken away at any time
#   --dry-run     print the commands and run nothing
#   --delete      delete the slice instead
#   --help        print this
#
# --workdir=gs://... is needed: all hosts share it, and it outlives the slice.
# What is committed is what is sent; each host installs it once, in ~/craft.
#
# INT and TERM are passed on to the hosts, which save and end. A run does not
# hang on the connection: if that breaks it goes on, and the same command lets
# it save, then goes on from there. The slice stays until --delete.
#
# Exit code, the first that fits:
#   2    a mistake in the options, or a host exited with 2
#   1    a host failed, or the slice could not be made
#   69   a host, the connection or the whole slice was lost
#   75   interrupted and saved
#   0    all finished
# After 69 and 75 the same command goes on; a slice that was taken away is made
# again.
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/environment.sh
source "$root/launch/environment.sh"
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"

name='' zone='' type='' version='' project='' spot=no dry_run=no delete=no
while [ $# -gt 0 ]; do
  case $1 in
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --spot) spot=yes ;;
    --dry-run) dry_run=yes ;;
    --delete) delete=yes ;;
    --help | -h) print_help "${BASH_SOURCE[0]}" && exit ;;
    --)
      shift
      break
      ;;
    --name | --zone | --type | --version | --project)
      [ $# -gt 1 ] || mistake "$1 needs a value"
      [[ $2 =~ ^[a-z0-9][a-z0-9.:-]*$ ]] ||
        mistake "$1 is made of a-z, 0-9, - and ., not '$2'"
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) mistake "unknown option $1; craft's flags come after --; see --help" ;;
  esac
  shift
done
for option in name zone; do
  [ -n "${!option}" ] || mistake "--$option is missing; see --help"
done
where=("--zone=$zone" ${project:+"--project=$project"})

# tpu VERB ARGS...: runs gcloud, or says what it would be.
tpu() {
  local line=(gcloud compute tpus tpu-vm "$1" "$name" "${where[@]}" "${@:2}")
  if [ $dry_run = yes ]; then print_command "${line[@]}"; else "${line[@]}"; fi
}

on_hosts() { tpu ssh --worker=all "--command=$1"; }

if [ $delete = yes ]; then
  tpu delete --quiet
  exit
fi

split_command "$@"
workdir=$(find_workdir ${flags[@]+"${flags[@]}"})
[[ $workdir == gs://?* ]] ||
  mistake "--workdir=gs://BUCKET/... is needed after --, not '$workdir'"
if [ -z "$version" ]; then
  case $type in
    v6e-*) version=v2-alpha-tpuv6e ;;
    v5p-*) version=v2-alpha-tpuv5 ;;
    v5litepod-*) version=v2-alpha-tpuv5-lite ;;
    '' | v[234]-*) version=tpu-ubuntu2204-base ;;
    *) mistake "--version is needed for the type $type; see gcloud compute \
tpus tpu-vm versions list" ;;
  esac
fi

make_slice() {
  [ -n "$type" ] || mistake "there is no slice $name yet; --type is needed"
  local options=("--accelerator-type=$type" "--version=$version")
  [ $spot = no ] || options+=(--spot)
  say "making $name"
  tpu create "${options[@]}" || fail "$name could not be made; see above"
}

scratch=$(mktemp -d "${TMPDIR:-/tmp}/craft-tpu.XXXXXX")
trap 'rm -rf "$scratch"' EXIT

# Prints the state of the slice; nothing if there is none.
state_of_slice() {
  if ! tpu describe '--format=value(state)' 2>"$scratch/why"; then
    grep -qiE 'NOT_FOUND|not found' "$scratch/why" || {
      cat "$scratch/why" >&2
      return 1
    }
  fi
}

if [ $dry_run = yes ]; then
  state_of_slice
  [ -z "$type" ] || make_slice
else
  command -v gcloud >/dev/null || mistake 'gcloud is not installed'
  state=$(state_of_slice) || fail "the state of $name is unknown; see above"
  case $state in
    READY) say "$name is there" ;;
    '') make_slice ;;
    PREEMPTED | TERMINATED)
      say "$name was taken away: deleting what is left of it"
      tpu delete --quiet
      make_slice
      ;;
    *)
      say "$name is $state; the same command can go on once it is READY" >&2
      exit 69
      ;;
  esac
fi

# The code, as committed.
if [ $dry_run = no ]; then
  changes=$(git -C "$root" status --porcelain) ||
    mistake "$root is not a git checkout, and only such a one can be sent"
  [ -z "$changes" ] || say 'what is not committed is not sent' >&2
  git -C "$root" archive --format=tar.gz --output="$scratch/craft.tar.gz" HEAD
fi
worker='bash craft/launch/tpu_worker.sh'
say "copying the checkout to all hosts"
# Not `tpu`: the name stands in another place here.
line=(gcloud compute tpus tpu-vm scp "$scratch/craft.tar.gz" "$name:"
  "${where[@]}" --worker=all)
if [ $dry_run = yes ]; then print_command "${line[@]}"; else "${line[@]}"; fi
on_hosts "if [ -e craft/launch/tpu_worker.sh ]; then $worker stop; fi && \
mkdir -p craft && \
find craft -mindepth 1 -maxdepth 1 ! -name '.venv*' -exec rm -rf {} + && \
tar -xzf craft.tar.gz -C craft && $worker install" ||
  fail "installation failed on a host; see above"

run="$(date +%s)-$$"
words=$(print_command "$command" --distributed "${flags[@]}")
on_run="$worker run $run $words"
say "running on all hosts"
if [ $dry_run = yes ]; then
  on_hosts "$on_run"
  exit
fi

# In the background, where Ctrl-C does not reach gcloud and the trap runs at
# once; what the hosts print until they have saved still arrives.
{
  on_hosts "$on_run" || echo $? >"$scratch/failed"
} </dev/null 2>&1 | tee "$scratch/log" &
stream=$!
# shellcheck disable=SC2329  # called by the trap
pass_on() {
  say 'the hosts save and end' >&2
  on_hosts "$worker stop" </dev/null >/dev/null 2>&1 &
}
trap pass_on INT TERM
while kill -0 $stream 2>/dev/null; do wait $stream || true; done

# gcloud gives the code of one host only; each host prints its own.
codes=()
while read -r code; do codes+=("$code"); done < <(
  sed -n 's/^== host .* ended with \([0-9]*\)$/\1/p' "$scratch/log"
)
code=$(combine_codes ${codes[@]+"${codes[@]}"})
if [ "$code" = 0 ] && { [ -e "$scratch/failed" ] || [ ${#codes[@]} = 0 ]; }
then
  code=69
  say "the connection to $name was lost (the slice:" \
    "$(state_of_slice || echo unknown)); the same command goes on" >&2
fi
exit "$code"
