"""Asks the proxy with OpenAI's client from PyPI and says what came back, as JSON.

Environment: OPENAI_BASE_URL, OPENAI_API_KEY, MODEL; TOOLS=1 and RESPONSE_FORMAT=1
where the model can do that, EMBEDDINGS the name of a model that makes vectors.
"""

import json
import os

import openai

MODEL = os.environ["MODEL"]
ASK = [{"role": "user", "content": "Say something."}]
TOOLS = [
    {
        "type": "function",
        "function": {
            "name": "note",
            "parameters": {"type": "object", "properties": {"words": {"type": "string", "maxLength": 8}}},
        },
    }
]
client = openai.OpenAI(max_retries=0, timeout=120)
seen = {}


def failure(ask):
    try:
        ask()
    except openai.APIStatusError as error:
        return {"class": type(error).__name__, "status": error.status_code, "code": error.code}
    except openai.APIError as error:
        return {"class": type(error).__name__, "code": error.code}
    return None


seen["models"] = [model.id for model in client.models.list()]
seen["model"] = client.models.retrieve(MODEL).id

whole = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=5, temperature=0, seed=1, stop=["never written"])
seen["chat"] = {
    "text": whole.choices[0].message.content,
    "finish": whole.choices[0].finish_reason,
    "usage": whole.usage.model_dump(include={"prompt_tokens", "completion_tokens", "total_tokens"}),
    "request": bool(whole._request_id) and whole.id.endswith(whole._request_id),
}

text, finish, usage, pieces = "", None, None, 0
with client.chat.completions.create(
    model=MODEL, messages=ASK, max_completion_tokens=5, temperature=0, seed=1, stream=True,
    stream_options={"include_usage": True},
) as stream:
    for chunk in stream:
        if chunk.usage:
            usage = chunk.usage.completion_tokens
        for choice in chunk.choices:
            if choice.delta.content:
                text += choice.delta.content
                pieces += 1
            finish = choice.finish_reason or finish
seen["stream"] = {"text": text, "finish": finish, "tokens": usage, "pieces": pieces}

several = client.chat.completions.create(model=MODEL, messages=ASK, max_tokens=4, n=3)
seen["n"] = [[choice.index, bool(choice.message.content)] for choice in several.choices]

texts = ["", ""]
for chunk in client.completions.create(model=MODEL, prompt=["one", "two"], max_tokens=4, stream=True):
    for choice in chunk.choices:
        texts[choice.index] += choice.text
seen["completions"] = texts
seen["completion"] = client.completions.create(model=MODEL, prompt="one", max_tokens=4).choices[0].text

if os.environ.get("TOOLS"):
    called = client.chat.completions.create(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=64
    )
    calls = called.choices[0].message.tool_calls or []
    seen["tools"] = {
        "finish": called.choices[0].finish_reason,
        "names": [call.function.name for call in calls],
        "arguments": [json.loads(call.function.arguments) for call in calls],
    }
    with client.chat.completions.stream(
        model=MODEL, messages=ASK, tools=TOOLS, tool_choice="required", max_tokens=64
    ) as stream:
        final = stream.get_final_completion()
    seen["streamed_tools"] = [call.function.name for call in final.choices[0].message.tool_calls or []]
    answered = client.chat.completions.create(
        model=MODEL,
        max_tokens=4,
        messages=ASK
        + [final.choices[0].message.model_dump(include={"role", "content", "tool_calls"}, exclude_none=True)]
        + [{"role": "tool", "tool_call_id": call.id, "content": "noted"} for call in final.choices[0].message.tool_calls or []],
    )
    seen["after_tools"] = bool(answered.choices[0].message.content)

if os.environ.get("RESPONSE_FORMAT"):
    schema = {"type": "object", "properties": {"n": {"type": "integer"}}, "required": ["n"], "additionalProperties": False}
    formatted = client.chat.completions.create(
        model=MODEL, messages=ASK, max_tokens=32, temperature=0,
        response_format={"type": "json_schema", "json_schema": {"name": "n", "schema": schema, "strict": True}},
    )
    seen["format"] = json.loads(formatted.choices[0].message.content)

def vectors(**options):
    made = client.embeddings.create(model=os.environ["EMBEDDINGS"], **options)
    return [one.embedding for one in made.data]


if os.environ.get("EMBEDDINGS"):
    seen["embeddings_float"] = vectors(input=["a", "b"], encoding_format="float")
    # Without a format the client asks for base64 and decodes it.
    seen["embeddings_base64"] = vectors(input=["a", "b"])
    seen["embeddings"] = vectors(input="a")

seen["wrong_key"] = failure(lambda: openai.OpenAI(api_key="sk-wrong", max_retries=0).models.list())
seen["wrong_model"] = failure(lambda: client.chat.completions.create(model="no-such", messages=ASK))
seen["wrong_key_of_request"] = failure(
    lambda: client.chat.completions.create(model=MODEL, messages=ASK, extra_body={"tomperature": 1})
)
seen["logprobs"] = failure(lambda: client.chat.completions.create(model=MODEL, messages=ASK, logprobs=True))
print(json.dumps(seen))
