#!/usr/bin/env bash
# Makes the environment, then: ruff, the tables of pages, mypy, pytest.
#
#   --fast          no slow tests (default)
#   --all           slow tests too (default where the variable CI is set);
#                   installs programs and clients to test with where it can
#   --interpreters  fast tests also on every other Python >= 3.11 found
#   --lowest        fast tests also with the lowest versions that
#                   pyproject.toml allows
#
# What follows `--` goes to pytest: launch/test.sh --fast -- tests/data/text
set -euo pipefail
cd "$(dirname "${BASH_SOURCE[0]}")/.."
# shellcheck source=launch/environment.sh
source launch/environment.sh

scope=fast
[ -n "${CI:-}" ] && scope=all
interpreters=no
lowest=no
while [ $# -gt 0 ]; do
  case $1 in
    --fast) scope=fast ;;
    --all) scope=all ;;
    --interpreters) interpreters=yes ;;
    --lowest) lowest=yes ;;
    --)
      shift
      break
      ;;
    *) fail "unknown option $1; see the head of launch/test.sh" ;;
  esac
  shift
done
paths=("$@")

# run_pytest PYTHON SCOPE: one process per core, at most four, and one more for
# the slow tests, many of which wait for programs that they start. Each takes its
# share of all tests in their order, which keeps most files whole, and whoever is
# done takes from another.
run_pytest() {
  local select=() processes
  processes=$(getconf _NPROCESSORS_ONLN)
  [ "$processes" -gt 4 ] && processes=4
  [ "$2" = all ] && processes=$((processes + 1))
  [ "$2" = fast ] && select=(-m 'not slow')
  say "pytest ($2) on $("$1" --version), JAX" \
    "$("$1" -c 'import importlib.metadata as m; print(m.version("jax"))')"
  "$1" -m pytest -n "$processes" --dist=worksteal \
    ${select[@]+"${select[@]}"} ${paths[@]+"${paths[@]}"}
}

python=$(choose_python)
make_environment .venv "$python" '[dev]'
bin=.venv/bin

say 'ruff check'
"$bin/ruff" check .
say 'ruff format'
"$bin/ruff" format --check .
say 'tables'
"$bin/python" benchmarks/tables.py --check docs/benchmarks.md
"$bin/python" benchmarks/scaling_tables.py --check docs/scaling.md
say 'mypy'
"$bin/mypy"

if [ $lowest = yes ]; then
  "$bin/python" launch/lowest.py >.venv/lowest.txt
  make_environment .venv-lowest "$python" '[tests]' .venv/lowest.txt
  run_pytest .venv-lowest/bin/python fast
fi

if [ $interpreters = yes ]; then
  version='import sys; print("%d.%d" % sys.version_info[:2])'
  seen=" $("$bin/python" -c "$version") "
  while IFS= read -r other; do
    number=$("$other" -c "$version")
    [[ $seen == *" $number "* ]] && continue
    has_venv "$other" || continue
    seen+="$number "
    make_environment ".venv-$number" "$other" '[tests]'
    run_pytest ".venv-$number/bin/python" fast
  done < <(list_pythons)
fi

if [ $scope = all ]; then
  offer_programs "$bin/python"
  offer_clients "$bin/python"
fi

# Last, so that pytest's closing line closes the whole.
run_pytest "$bin/python" $scope
