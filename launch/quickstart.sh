#!/usr/bin/env bash
# From a fresh clone to a trained model: an environment in .venv, then the
# main job. Arguments are passed on, e.g. --config.train.steps=100. Run it
# again and it continues (or finds finished) the run in runs/first.
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

python=$(choose_python)
make_environment .venv "$python" ''

say "running: python -m craft_jax.main --config=configs/base.py" \
  "--workdir=runs/first $*"
exec .venv/bin/python -m craft_jax.main --config=configs/base.py \
  --workdir=runs/first "$@"
