#!/usr/bin/env bash
# A sweep on a Kubernetes cluster (1.29 or later): fills in
# launch/sweep_pods.yaml, an Indexed Job whose pod I trains run I, and applies
# it.
#
#   launch/sweep_pods.sh --image=IMAGE --runs=N --gpus=G --claim=PVC [options] \
#     -- [flags of craft sweep]
#
#   --image I       an image of launch/Dockerfile, target cuda12
#   --runs N        of the sweep: lines of craft sweep ... --print-commands;
#                   at most 100000
#   --gpus G        GPUs of each run; 0 for none
#   --claim C       a PersistentVolumeClaim, ReadWriteMany, mounted at /work
#   --at-a-time P   pods (default: all)
#   --name A        of the Job (default: craft-sweep)
#   --namespace S   (default: that of kubectl's context)
#   --restarts N    of each run, before it counts as failed (default: 20)
#   --dry-run       print the YAML and call nothing
#   --delete        delete the Job --name instead; the pods save first
#   --help          print this
#
# The workdir is /work/NAME unless --workdir says otherwise; it must be below
# /work, gs://BUCKET or s3://BUCKET, since all pods share it. A failed run ends
# no other. Grids and random searches only. Needs kubectl and any Python 3
# ($PYTHON, or python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"

image='' runs='' gpus='' claim='' at_a_time='' name=craft-sweep namespace=''
restarts=20
dry_run=no delete=no
while [ $# -gt 0 ]; do
  case $1 in
    --*=*) set -- "${1%%=*}" "${1#*=}" "${@:2}" ;;
  esac
  case $1 in
    --dry-run) dry_run=yes ;;
    --delete) delete=yes ;;
    --help | -h) print_help "${BASH_SOURCE[0]}" && exit ;;
    --)
      shift
      break
      ;;
    --image | --runs | --gpus | --claim | --at-a-time | --name | --namespace | \
      --restarts)
      [ $# -gt 1 ] || mistake "$1 needs a value"
      case $1 in
        --runs | --at-a-time) need_number "$1" "$2" ;;
        --gpus | --restarts) need_number "$1" "$2" 0 ;;
      esac
      variable=${1#--}
      printf -v "${variable//-/_}" %s "$2"
      shift
      ;;
    *) mistake "unknown option $1; craft's flags come after --; see --help" ;;
  esac
  shift
done

# Pod names, which may have 63 characters, are longer: NAME-9999-xxxxx.
need_label --name "$name" 50
use_namespace "$namespace"

if [ $delete = yes ]; then
  line=(kubectl delete job "$name" ${where[@]+"${where[@]}"})
  [ $dry_run = no ] || exec echo "${line[@]}"
  exec "${line[@]}"
fi

need_options image runs gpus claim
# What the API server takes of an Indexed Job with backoffLimitPerIndex.
[ "$runs" -le 100000 ] ||
  mistake "--runs is at most 100000, the most pods of one Job, not $runs;" \
    'split the sweep over several'
need_image "$image"
need_claim "$claim"
flags=("$@")
workdir=$(find_workdir ${flags[@]+"${flags[@]}"})
case $workdir in
  '') flags+=("--workdir=/work/$name") ;;
  /work/* | gs://?* | s3://?*) ;;
  *) mistake "--workdir is below /work, gs://BUCKET or s3://BUCKET, not '$workdir'" ;;
esac

# Fills in JSON, which is YAML, so that no value can break out. Each $ of a
# flag is doubled: Kubernetes puts variables in for $(...), and $ for $$.
# shellcheck disable=SC2016
fill='import json, pathlib, re, sys
template, name, image, runs, parallel, gpus, claim, restarts = sys.argv[1:9]
flags = [flag.replace("$", "$$") for flag in sys.argv[9:]]
values = dict(
  name=name, image=image, claim=claim, runs=int(runs), parallel=int(parallel),
  restarts=int(restarts),
  limits={"nvidia.com/gpu": int(gpus)} if int(gpus) else {},
  args=["sweep", "--index=$(RUN)", *flags])
text = pathlib.Path(template).read_text(encoding="utf-8")
text = re.sub(r"\{\{(\w+)\}\}", lambda m: json.dumps(values[m[1]]), text)
sys.stdout.write(text)'
yaml=$("${PYTHON:-python3}" -c "$fill" "$root/launch/sweep_pods.yaml" "$name" \
  "$image" "$runs" "${at_a_time:-$runs}" "$gpus" "$claim" "$restarts" \
  "${flags[@]}")

if [ $dry_run = yes ]; then
  printf '%s\n' "$yaml"
  exit
fi
printf '%s\n' "$yaml" | kubectl apply ${where[@]+"${where[@]}"} -f -
label=batch.kubernetes.io/job-name=$name
label+=,batch.kubernetes.io/job-completion-index=0
printf '== %s\n' \
  "log of run 0: kubectl logs -f ${where[*]-} -l $label" \
  "state:        kubectl get job $name ${where[*]-}"
