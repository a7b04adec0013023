# Sourced by quickstart.sh and test.sh: find a Python, make an environment.
# shellcheck shell=bash

say() { printf '== %s\n' "$*"; }

fail() {
  printf 'error: %s\n' "$*" >&2
  exit 1
}

# Whether $1 runs and is Python 3.11 or later. A pyenv shim of a version that
# is not active exists, is executable and fails: hence running it.
is_python() {
  "$1" -c 'import sys; sys.exit(sys.version_info < (3, 11))' >/dev/null 2>&1
}

has_venv() {
  "$1" -c 'import ensurepip, venv' >/dev/null 2>&1
}

# Prints the paths of usable interpreters, one per line: 3.11 first, because
# CI runs it, then newer ones, then whatever python3 is.
list_pythons() {
  local name candidate
  for name in python3.11 python3.12 python3.13 python3.14 python3 python; do
    # All matches in PATH: a broken shim may hide a working interpreter.
    while IFS= read -r candidate; do
      is_python "$candidate" && printf '%s\n' "$candidate"
    done < <(type -aP "$name")
    for candidate in \
      "${PYENV_ROOT:-$HOME/.pyenv}"/versions/*/bin/"$name" \
      "$HOME"/.local/share/uv/python/*/bin/"$name"; do
      [ -x "$candidate" ] && is_python "$candidate" && printf '%s\n' "$candidate"
    done
  done
}

# Prints the interpreter to use: $PYTHON if set, else the first usable one.
choose_python() {
  local candidate first=''
  if [ -n "${PYTHON:-}" ]; then
    is_python "$PYTHON" || fail "PYTHON=$PYTHON is not Python 3.11 or later"
    has_venv "$PYTHON" || fail "PYTHON=$PYTHON has no venv module"
    printf '%s\n' "$PYTHON"
    return
  fi
  while IFS= read -r candidate; do
    first=${first:-$candidate}
    if has_venv "$candidate"; then
      printf '%s\n' "$candidate"
      return
    fi
  done < <(list_pythons)
  [ -n "$first" ] && fail "$first has no venv module; install it (Debian and \
Ubuntu: apt install $(basename "$first")-venv), or set PYTHON="
  fail 'no Python 3.11 or later found; install one, or set PYTHON=/path/to/it'
}

# make_environment DIR PYTHON EXTRAS [CONSTRAINTS]
# Leaves DIR with the checkout installed, editable. Quick if nothing changed
# since last time: DIR/craft-installed records what was installed from what.
make_environment() {
  local dir=$1 python=$2 extras=$3 constraints=${4:-constraints.txt} sum
  sum="$(cat pyproject.toml "$constraints" | cksum) $PWD"
  if [ -x "$dir/bin/python" ] && "$dir/bin/python" -c '' 2>/dev/null &&
    grep -qxF "$sum" "$dir/craft-installed$extras" 2>/dev/null; then
    say "environment $dir is up to date"
    return
  fi
  if ! "$dir/bin/python" -m pip --version >/dev/null 2>&1; then
    say "making $dir with $("$python" --version) ($python)"
    "$python" -m venv --clear "$dir"
  fi
  say "installing craft${extras:+ with $extras} into $dir (minutes, once)"
  rm -f "$dir"/craft-installed*
  "$dir/bin/python" -m pip install --quiet --disable-pip-version-check \
    --constraint "$constraints" --editable ".$extras" ||
    fail "installation failed; the lines above say why (network?)"
  printf '%s\n' "$sum" >"$dir/craft-installed"
  printf '%s\n' "$sum" >"$dir/craft-installed$extras"
}

# offer_clients PYTHON: what others have written to ask servers of OpenAI's API.
# Never fails.
offer_clients() {
  local folder=${XDG_CACHE_HOME:-$HOME/.cache}/craft-clients
  offer_node_clients "$folder"
  offer_python_clients "$folder/python" "$1"
}

# offer_node_clients DIR: and Debian's Node where there is none.
offer_node_clients() {
  local folder=$1
  local wanted=(
    ai@6.0.326 @ai-sdk/openai-compatible@2.0.92 openai@6.49.0 zod@4.6.7
  )
  [ "$(cat "$folder/craft-installed" 2>/dev/null)" = "${wanted[*]}" ] && return
  say "looking for ${wanted[*]} to test with (once)"
  if ! type -P npm >/dev/null && [ "$(id -u)" = 0 ] &&
    type -P apt-get >/dev/null; then
    timeout 60 apt-get -qq update </dev/null >/dev/null 2>&1 &&
      DEBIAN_FRONTEND=noninteractive timeout 180 apt-get -qq install -y \
        --no-install-recommends nodejs npm </dev/null >/dev/null 2>&1
  fi
  if type -P npm >/dev/null && mkdir -p "$folder" &&
    timeout 180 npm install --silent --no-audit --no-fund --save-exact \
      --prefix "$folder" "${wanted[@]}" </dev/null >/dev/null 2>&1; then
    printf '%s' "${wanted[*]}" >"$folder/craft-installed"
  else
    say 'they cannot be had: the tests that need them are skipped'
  fi
}

# offer_python_clients DIR PYTHON: an environment of their own, as they need
# other versions of what Craft needs too.
offer_python_clients() {
  local dir=$1
  local wanted=(
    instructor==1.17.0 langchain-openai==1.7.4 litellm==1.110.2 llm==0.36
  )
  [ "$(cat "$dir/craft-installed" 2>/dev/null)" = "${wanted[*]}" ] &&
    "$dir/bin/python" -c '' 2>/dev/null && return
  say "looking for ${wanted[*]} to test with (a minute, once)"
  # Not compiled: most of what they bring is never imported.
  if "$2" -m venv --clear "$dir" >/dev/null 2>&1 &&
    timeout 300 "$dir/bin/python" -m pip install --quiet --no-compile \
      --disable-pip-version-check "${wanted[@]}" </dev/null >/dev/null 2>&1; then
    printf '%s' "${wanted[*]}" >"$dir/craft-installed"
  else
    say 'they cannot be had: the tests that need them are skipped'
  fi
}

# offer_programs PYTHON: a Chromium, zsh, fish, proxies and SLURM for the tests
# that use them, where they can be had in a few minutes. Never fails.
offer_programs() {
  local name wanted=() browser=
  for name in chromium chromium-browser google-chrome; do
    type -P "$name" >/dev/null && browser=$name
  done
  [ -n "$browser" ] || wanted+=(chromium)
  for name in zsh fish; do
    type -P "$name" >/dev/null || wanted+=("$name")
  done
  # Debian's proxies are in /usr/sbin, which a user's PATH may lack.
  PATH=$PATH:/usr/sbin type -P nginx >/dev/null || wanted+=(nginx-light)
  PATH=$PATH:/usr/sbin type -P haproxy >/dev/null || wanted+=(haproxy)
  # SLURM runs jobs as root only.
  [ "$(id -u)" != 0 ] || type -P slurmctld >/dev/null ||
    wanted+=(slurm-wlm munge)
  [ ${#wanted[@]} = 0 ] && return
  say "looking for ${wanted[*]} to test with (minutes, once)"
  if [ "$(id -u)" = 0 ] && type -P apt-get >/dev/null; then
    timeout 60 apt-get -qq update </dev/null >/dev/null 2>&1 &&
      DEBIAN_FRONTEND=noninteractive timeout 180 apt-get -qq install -y \
        --no-install-recommends "${wanted[@]}" </dev/null >/dev/null 2>&1 &&
      return
  fi
  [ -n "$browser" ] || timeout 120 "$1" -m playwright install chromium \
    </dev/null >/dev/null 2>&1 || true
  say 'not all of them can be had: the tests that need them are skipped'
}
