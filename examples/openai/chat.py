"""Asks a model on the market with OpenAI's own client: pip install openai

Run `infernet proxy` first; then: python chat.py MODEL "PROMPT"
"""

import os
import pathlib
import sys

import openai


def main() -> None:
    model, prompt = sys.argv[1:3]
    key_file = pathlib.Path.home() / ".config/infernet/proxy.key"
    client = openai.OpenAI(
        base_url=os.environ.get("OPENAI_BASE_URL", "http://127.0.0.1:8434/v1"),
        api_key=os.environ.get("OPENAI_API_KEY") or key_file.read_text().strip(),
    )
    stream = client.chat.completions.create(
        model=model,
        messages=[{"role": "user", "content": prompt}],
        max_tokens=200,
        stream=True,
        stream_options={"include_usage": True},
    )
    for chunk in stream:
        if chunk.choices and chunk.choices[0].delta.content:
            print(chunk.choices[0].delta.content, end="", flush=True)
        if chunk.usage:
            print(f"\n({chunk.usage.completion_tokens} tokens)")


if __name__ == "__main__":
    main()
