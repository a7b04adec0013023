#!/usr/bin/env bash
# Trains on the GPU nodes of a Kubernetes cluster (1.29 or later) that has
# JobSet (0.6 or later): fills in launch/gpu_pod.yaml and applies it.
#
#   launch/gpu_pod.sh --image=IMAGE --nodes=N --gpus=G --claim=PVC [options] \
#     -- [command] [flags of craft]
#
#   --image I       an image of launch/Dockerfile, target cuda12
#   --nodes N       pods, one per node
#   --gpus G        GPUs of each
#   --claim C       a PersistentVolumeClaim, ReadWriteMany, mounted at /work
#   --name A        of the JobSet (default: craft)
#   --namespace S   (default: that of kubectl's context)
#   --restarts N    of all pods, before the JobSet fails (default: 20)
#   --dry-run       print the YAML and call nothing
#   --delete        delete the JobSet --name instead; the pods save first
#   --help          print this
#
# The workdir is /work/NAME unless --workdir says otherwise; it must be below
# /work or of gs://, since all pods share it. Needs kubectl and
# any Python 3 ($PYTHON, or python3).
set -euo pipefail
root=$(cd "$(dirname "${BASH_SOURCE[0]}")/.." && pwd)
# shellcheck source=launch/options.sh
source "$root/launch/options.sh"

image='' nodes='' gpus='' claim='' name=craft namespace='' restarts=20
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
    --image | --nodes | --gpus | --claim | --name | --namespace | --restarts)
      [ $# -gt 1 ] || mistake "$1 needs a value"
      case $1 in
        --nodes | --gpus) need_number "$1" "$2" ;;
        --restarts) need_number "$1" "$2" 0 ;;
      esac
      printf -v "${1#--}" %s "$2"
      shift
      ;;
    *) mistake "unknown option $1; craft's flags come after --; see --help" ;;
  esac
  shift
done

# Pod names, which may have 63 characters, are longer: NAME-workers-0-99-xxxxx.
need_label --name "$name" 40
use_namespace "$namespace"

if [ $delete = yes ]; then
  line=(kubectl delete jobset "$name" ${where[@]+"${where[@]}"})
  [ $dry_run = no ] || exec echo "${line[@]}"
  exec "${line[@]}"
fi

need_options image nodes gpus claim
need_image "$image"
need_claim "$claim"
split_command "$@"
workdir=$(find_workdir ${flags[@]+"${flags[@]}"})
case $workdir in
  '') flags+=("--workdir=/work/$name") ;;
  /work/* | gs://?*) ;;
  *) mistake "--workdir is below /work or gs://BUCKET/..., not '$workdir'" ;;
esac

# Fills in JSON, which is YAML, so that no value can break out. Each $ of a
# flag is doubled: Kubernetes puts variables in for $(...), and $ for $$.
# shellcheck disable=SC2016
fill='import json, pathlib, re, sys
template, name, image, nodes, gpus, claim, restarts, command = sys.argv[1:9]
flags = [flag.replace("$", "$$") for flag in sys.argv[9:]]
join = [f"--coordinator={name}-workers-0-0.{name}:8476",
        f"--num-processes={nodes}", "--process-id=$(PROCESS_ID)"]
values = dict(
  name=name, image=image, claim=claim, nodes=int(nodes), gpus=int(gpus),
  restarts=int(restarts), device_ids=",".join(map(str, range(int(gpus)))),
  args=[command, *join, *flags])
text = pathlib.Path(template).read_text(encoding="utf-8")
text = re.sub(r"\{\{(\w+)\}\}", lambda m: json.dumps(values[m[1]]), text)
sys.stdout.write(text)'
yaml=$("${PYTHON:-python3}" -c "$fill" "$root/launch/gpu_pod.yaml" "$name" \
  "$image" "$nodes" "$gpus" "$claim" "$restarts" "$command" "${flags[@]}")

if [ $dry_run = yes ]; then
  printf '%s\n' "$yaml"
  exit
fi
printf '%s\n' "$yaml" | kubectl apply ${where[@]+"${where[@]}"} -f -
selector=jobset.sigs.k8s.io/jobset-name=$name
selector+=,batch.kubernetes.io/job-completion-index=0
printf '== %s\n' \
  "log of process 0: kubectl logs -f ${where[*]-} -l $selector" \
  "state:            kubectl get jobset $name ${where[*]-}"
