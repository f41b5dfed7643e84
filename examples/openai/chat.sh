#!/usr/bin/env bash
# Asks a model on the market with curl. Run `infernet proxy` first; then:
#   ./chat.sh MODEL "PROMPT"
set -euo pipefail
model=$1 prompt=$2
key=${OPENAI_API_KEY:-$(cat "$HOME/.config/infernet/proxy.key")}
body=$(python3 -c 'import json, sys
print(json.dumps({"model": sys.argv[1], "stream": True, "max_tokens": 200,
                  "messages": [{"role": "user", "content": sys.argv[2]}]}))' "$model" "$prompt")
# The key goes through a file descriptor: arguments are seen by everybody on the machine.
curl --silent --show-error --fail-with-body --no-buffer \
  --header @<(printf 'Authorization: Bearer %s\n' "$key") \
  --header 'Content-Type: application/json' --data "$body" \
  "${OPENAI_BASE_URL:-http://127.0.0.1:8434/v1}/chat/completions"
