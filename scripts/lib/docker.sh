# A Docker daemon: the one that runs, or one of our own for as long as we run.

docker_socket=${DOCKER_HOST:-unix:///var/run/docker.sock}
own_dockerd_pid=

docker_answers() {
  local path=${docker_socket#unix://}
  [ -S "$path" ] && timeout 10 curl --silent --fail --output /dev/null \
    --unix-socket "$path" http://localhost/_ping
}

# start_dockerd_if_none DIRECTORY [OPTION…]: starts a daemon when none answers, with
# these options and its log in the directory. `own_dockerd_pid` is set when it is
# ours to stop.
start_dockerd_if_none() {
  local log="$1/dockerd.log" waited=0
  shift
  docker_answers && return 0
  [ "$(id -u)" -eq 0 ] || fail "No Docker daemon answers at $docker_socket." \
    "Start it (systemctl start docker), or run this as root."
  have dockerd || fail "dockerd is not installed." "Install the package docker.io."
  say "Starting a Docker daemon"
  setsid dockerd "$@" >"$log" 2>&1 </dev/null &
  own_dockerd_pid=$!
  until docker_answers; do
    waited=$((waited + 1))
    if [ "$waited" -gt 120 ] || ! kill -0 "$own_dockerd_pid" 2>/dev/null; then
      tail -n 20 "$log" >&2
      own_dockerd_pid=
      fail "The Docker daemon did not start." "Its last words are above."
    fi
    sleep 0.5
  done
}

# Stops the daemon that start_dockerd_if_none started, if it did.
stop_own_dockerd() {
  [ -n "$own_dockerd_pid" ] || return 0
  local waited=0
  kill -TERM "$own_dockerd_pid" 2>/dev/null || true
  while kill -0 "$own_dockerd_pid" 2>/dev/null; do
    waited=$((waited + 1))
    [ "$waited" -le 150 ] || { kill -KILL "$own_dockerd_pid" 2>/dev/null || true; break; }
    sleep 0.2
  done
  wait "$own_dockerd_pid" 2>/dev/null || true
  own_dockerd_pid=
}
