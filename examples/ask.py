#!/usr/bin/env python3
"""Ask a served model one question: ask.py HOST:PORT QUESTION (standard library only)."""

import json
import sys
import urllib.request


def ask(endpoint: str, question: str) -> str:
    """Return the answer of the first model that the endpoint serves."""
    with urllib.request.urlopen(f"http://{endpoint}/v1/models", timeout=30) as answer:
        model = json.load(answer)["data"][0]["id"]
    body = {
        "model": model,
        "messages": [{"role": "user", "content": question}],
        "max_tokens": 48,
        "temperature": 0,
    }
    request = urllib.request.Request(
        f"http://{endpoint}/v1/chat/completions",
        json.dumps(body).encode(),
        {"Content-Type": "application/json"},
    )
    with urllib.request.urlopen(request, timeout=600) as answer:
        text: str = json.load(answer)["choices"][0]["message"]["content"]
    return text.strip()


if __name__ == "__main__":
    print(ask(sys.argv[1], " ".join(sys.argv[2:])))
