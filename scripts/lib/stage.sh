# Stages of a run: each is timed, its output kept in a log, its tests counted.

stage_names=() stage_seconds=() stage_results=() failed_logs=() flaky=() untested=()
tests_passed=0 tests_failed=0
# One that passed only when it was tried again is told; so many together are a failure.
readonly flaky_limit=3
# So much of a failed stage's log is printed again at the end.
readonly failed_tail_lines=100

# run_stage NAME COUNTER FUNCTION: COUNTER reads the stage's log and prints
# "PASSED FAILED"; `check` stands for a stage that has no tests to count.
run_stage() {
  local name=$1 counter=$2 body=$3 log="$logs/$1.log" status=0 started passed failed untested
  started=$(date +%s.%N)
  printf '\n== %s\n' "$name"
  # A subshell with errexit of its own: a condition would turn errexit off.
  set +e
  (set -e; "$body") </dev/null 2>&1 | tee "$log"
  status=${PIPESTATUS[0]}
  set -e
  read -r passed failed < <("count_$counter" "$log")
  if [ "$status" -ne 0 ] && [ "$failed" -eq 0 ]; then
    failed=1
  fi
  if [ "$counter" != check ] && [ "$status" -eq 0 ] && [ "$passed" -eq 0 ]; then
    printf 'The stage %s ran no test, which counts as a failure.\n' "$name"
    status=1 failed=1
  fi
  note_flaky "$name" "$counter" "$log"
  tests_passed=$((tests_passed + passed))
  tests_failed=$((tests_failed + failed))
  stage_names+=("$name")
  stage_seconds+=("$(awk -v a="$started" -v b="$(date +%s.%N)" 'BEGIN { printf "%.1f", b - a }')")
  if [ "$status" -ne 0 ] || [ "$failed" -ne 0 ]; then
    stage_results+=("failed, see $log")
    failed_logs+=("$log")
  elif [ "$counter" = check ]; then
    stage_results+=("ok")
  else
    # What was tried and shows nothing is no failure, and must not be overlooked.
    untested=$(sed -n 's/^untested: //p' "$log")
    stage_results+=("$passed passed${untested:+, untested: $untested}")
  fi
}

# Keeps the log of a stage in which a test passed only when it was tried again, and
# notes the test; notes the rows of chaos that never met their fault.
note_flaky() {
  local name=$1 counter=$2 log=$3 kept test
  case "$counter" in
    nextest)
      kept="$logs/flaky/$(date -u +%Y%m%dT%H%M%SZ)-$name.log"
      while IFS= read -r test; do
        [ -n "$test" ] || continue
        mkdir -p "$logs/flaky"
        cp "$log" "$kept"
        flaky+=("$test, see $kept")
      done < <(flaky_of_nextest "$log")
      ;;
    chaos)
      while IFS= read -r test; do untested+=("$test"); done < <(
        sed -n 's/^untested: //p' "$log"
      )
      ;;
  esac
}

# nextest, below its summary: "   FLAKY 2/3 [   0.01s] package::binary test"
flaky_of_nextest() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    /^ *Summary \[/ { below = 1 }
    below && /^ *FLAKY / { sub(/^.*\] */, ""); sub(/^\([ 0-9\/]*\) /, ""); print }' | sort -u
}

count_check() { printf '0 0\n'; }

# nextest: "Summary [   1.2s] 40 tests run: 39 passed (1 slow), 1 failed, 0 skipped"
count_nextest() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    /^ *Summary \[/ {
      p = 0; f = 0
      for (i = 1; i < NF; i++) {
        if ($(i + 1) ~ /^passed/) p = $i
        if ($(i + 1) ~ /^(failed|timed|exec)/) f += $i
      }
    }
    END { print p + 0, f + 0 }'
}

# rustdoc: "test result: ok. 3 passed; 0 failed; 0 ignored; ..."
count_doctest() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" |
    awk '/^test result:/ { p += $4; f += $6 } END { print p + 0, f + 0 }'
}

# pg_prove: a line a test, "ok 3 - ..." or "not ok 4 - ..." (it is run verbosely).
count_pgtap() {
  awk '/^ok [0-9]+/ { p++ } /^not ok [0-9]+/ { f++ } END { print p + 0, f + 0 }' "$1"
}

# chaos: a row a fault, which ends in its verdict; one that hit too little is neither
# passed nor failed, and is named in a line of its own, "untested: NAME, NAME"
count_chaos() {
  awk '
    / verdict$/ { rows = 1; next }
    rows && $NF == "ok" { p++ }
    rows && $NF ~ /^(FAILED|BROKEN)$/ { f++ }
    END { print p + 0, f + 0 }' "$1"
}

# Deno: "ok | 12 passed | 0 failed (1s)"
count_deno() {
  sed 's/\x1b\[[0-9;]*m//g' "$1" | awk '
    / passed .* failed/ {
      for (i = 1; i < NF; i++) {
        if ($(i + 1) == "passed") p += $i
        if ($(i + 1) == "failed") f += $i
      }
    }
    END { print p + 0, f + 0 }'
}

# Prints the table of stages and, alone on the last line, the sum. Fails when
# anything failed; what failed is told once more before the table, because a
# service that runs this often keeps nothing but the end of it.
print_summary() {
  local index log test
  for log in ${failed_logs[@]+"${failed_logs[@]}"}; do
    printf '\n== the end of %s\n' "$log"
    tail -n "$failed_tail_lines" "$log"
  done
  printf '\n%-12s %9s  %s\n' stage seconds result
  for index in "${!stage_names[@]}"; do
    printf '%-12s %9s  %s\n' "${stage_names[$index]}" "${stage_seconds[$index]}" \
      "${stage_results[$index]}"
  done
  for test in ${untested[@]+"${untested[@]}"}; do printf 'untested: %s\n' "$test"; done
  for test in ${flaky[@]+"${flaky[@]}"}; do printf 'flaky: %s\n' "$test"; done
  if [ "${#flaky[@]}" -ge "$flaky_limit" ]; then
    printf '%d tests were flaky, which counts as a failure from %d on.\n' "${#flaky[@]}" "$flaky_limit"
    tests_failed=$((tests_failed + ${#flaky[@]}))
    tests_passed=$((tests_passed - ${#flaky[@]}))
  fi
  printf '\n%d passed, %d failed\n' "$tests_passed" "$tests_failed"
  [ "$tests_failed" -eq 0 ]
}
