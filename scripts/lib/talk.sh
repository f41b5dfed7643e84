# How the scripts talk: to stderr, in sentences.

say() { printf '%s\n' "$*" >&2; }

# Ends the script with a sentence and, when given, what to do next.
fail() {
  printf 'Error: %s\n' "$1" >&2
  [ $# -lt 2 ] || printf 'Hint: %s\n' "$2" >&2
  exit 1
}

have() { command -v "$1" >/dev/null 2>&1; }
