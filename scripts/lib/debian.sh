# Packages of Debian and Ubuntu, installed when they are missing.

is_debian() { have apt-get && have dpkg-query; }

# Runs a command as root.
as_root() {
  if [ "$(id -u)" -eq 0 ]; then
    "$@"
  elif have sudo; then
    sudo -- "$@"
  else
    fail "Root is needed to run: $*" "Run the script as root, or install sudo."
  fi
}

package_installed() {
  [ "$(dpkg-query --show --showformat='${db:Status-Status}' "$1" 2>/dev/null)" = installed ]
}

# Installs the named packages that are not installed yet. PostgreSQL's own
# packaging would create and start a cluster that nobody here uses, so that is
# turned off for the installation when it has not been decided before.
install_packages() {
  local missing=() package
  for package in "$@"; do
    package_installed "$package" || missing+=("$package")
  done
  [ ${#missing[@]} -gt 0 ] || return 0
  is_debian || fail "These packages are missing: ${missing[*]}." \
    "This is not Debian or Ubuntu: install their equivalents by hand and run this again."
  say "Installing ${missing[*]}"
  if [ ! -e /etc/postgresql-common/createcluster.conf ]; then
    as_root mkdir -p /etc/postgresql-common
    printf 'create_main_cluster = false\n' |
      as_root tee /etc/postgresql-common/createcluster.conf >/dev/null
  fi
  as_root apt-get update -qq >&2
  # Services are not started by the installation: the tests and the try start
  # what they need themselves, and stop it.
  local policy=/usr/sbin/policy-rc.d made=no
  if [ ! -e "$policy" ]; then
    made=yes
    printf '#!/bin/sh\nexit 101\n' | as_root tee "$policy" >/dev/null
    as_root chmod 755 "$policy"
  fi
  local status=0 log
  log=$(mktemp)
  as_root env DEBIAN_FRONTEND=noninteractive \
    apt-get install -qq -y --no-install-recommends -o Dpkg::Options::=--force-confold \
    "${missing[@]}" </dev/null >"$log" 2>&1 || status=$?
  [ "$made" = no ] || as_root rm -f "$policy"
  [ "$status" -eq 0 ] || tail -n 20 "$log" >&2
  rm -f "$log"
  [ "$status" -eq 0 ] || fail "apt-get could not install ${missing[*]}." \
    "Its own words are above."
}

# Prints the newest server package of PostgreSQL, 15 to 18, that is there.
postgres_package() {
  local version
  for version in 18 17 16 15; do
    if package_installed "postgresql-$version" ||
      apt-cache show "postgresql-$version" >/dev/null 2>&1; then
      printf 'postgresql-%s\n' "$version"
      return
    fi
  done
  printf 'postgresql-15\n'
}
