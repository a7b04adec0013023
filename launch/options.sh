# Sourced by the launchers: help, mistakes, and one exit code for many.
# shellcheck shell=bash

# print_help SCRIPT: the comment at its head, without the marks.
print_help() {
  awk 'NR > 1 && (!/^#/ || /^#SBATCH/) { exit }
    NR > 1 { sub(/^# ?/, ""); print }' "$1"
}

# A mistake in the options: one line, exit code 2.
mistake() {
  printf 'error: %s\n' "$*" >&2
  exit 2
}

# need_number OPTION VALUE [LOWEST]: VALUE is a whole number, 1 or more.
need_number() {
  [[ $2 =~ ^(0|[1-9][0-9]{0,8})$ ]] && [ "$2" -ge "${3:-1}" ] ||
    mistake "$1 is a whole number from ${3:-1} up, not '$2'"
}

# need_options NAME...: each has a value, in the variable of its name.
need_options() {
  local option
  for option in "$@"; do
    [ -n "${!option}" ] || mistake "--$option is missing; see --help"
  done
}

# need_label OPTION VALUE LENGTH: a DNS label.
need_label() {
  [[ $2 =~ ^[a-z]([a-z0-9-]*[a-z0-9])?$ ]] && [ ${#2} -le "$3" ] ||
    mistake "$1 is at most $3 of a-z, 0-9 and -, from a letter on, not '$2'"
}

# use_namespace NAME: of Kubernetes; '' is that of kubectl's context. Sets
# `where`, kubectl's flag for it.
use_namespace() {
  where=()
  if [ -n "$1" ]; then
    need_label --namespace "$1" 63
    # shellcheck disable=SC2034
    where=("--namespace=$1")
  fi
}

# need_image VALUE: the name of a container image.
need_image() {
  [[ $1 =~ ^[A-Za-z0-9][A-Za-z0-9._/:@-]*$ ]] ||
    mistake "--image is a name such as registry/craft:cuda12, not '$1'"
}

# need_claim VALUE: the name of a Kubernetes object.
need_claim() {
  [[ $1 =~ ^[a-z0-9]([a-z0-9.-]*[a-z0-9])?$ ]] ||
    mistake "--claim is the name of a PersistentVolumeClaim, not '$1'"
}

# split_command ARGS...: a first word that is no flag is craft's command. Sets
# `command` and `flags`.
split_command() {
  # shellcheck disable=SC2034  # for the script that sources this
  command=train
  if [ $# -gt 0 ] && [ -n "$1" ] && [ "${1#-}" = "$1" ]; then
    # shellcheck disable=SC2034
    command=$1
    shift
  fi
  # shellcheck disable=SC2034
  flags=("$@")
}

# find_workdir ARGS...: prints the value of --workdir, nothing if not there.
find_workdir() {
  local found=''
  while [ $# -gt 0 ]; do
    case $1 in
      --workdir=*) found=${1#*=} ;;
      --workdir) found=${2:-} ;;
    esac
    shift
  done
  printf '%s' "$found"
}

# print_command ARGS...: on one line, as a shell would read it.
print_command() {
  local word line='' quote="'"
  for word in "$@"; do
    case $word in
      '' | *[!A-Za-z0-9_./:=,@%+-]*)
        word="'${word//$quote/$quote\\$quote$quote}'"
        ;;
    esac
    line+=" $word"
  done
  printf '%s\n' "${line# }"
}

# combine_codes CODE...: prints the exit code of a run from its processes': the
# first of these that one of them has.
#   2   a mistake in the input
#   1   failed (and any code that is not named here)
#   69  another process was lost, or this one was: killed by a signal
#   75  interrupted and saved
#   0   finished
combine_codes() {
  local code mistaken='' failed='' lost='' saved=''
  for code in "$@"; do
    case $code in
      0) ;;
      2) mistaken=2 ;;
      69) lost=69 ;;
      75) saved=75 ;;
      *) if [ "$code" -gt 128 ]; then lost=69; else failed=1; fi ;;
    esac
  done
  printf '%s' "${mistaken:-${failed:-${lost:-${saved:-0}}}}"
}
