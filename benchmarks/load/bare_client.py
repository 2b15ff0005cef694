"""The least that a client can be: a blocking socket, one request after the other, its TTFT printed in ms. What it sees more
than the server tells is the way there and back, and what the server does before its own clock begins.

    python bare_client.py PORT
"""

from __future__ import annotations

import json
import socket
import sys
import time

LAST = b"0\r\n\r\n"


def main() -> None:
    asked = {"model": "m", "prompt": "a " * 32, "max_tokens": 2, "stream": True}
    body = json.dumps(asked).encode()
    head = b"POST /v1/completions HTTP/1.1\r\nHost: h\r\nContent-Type: application/json\r\nContent-Length: %d\r\n\r\n"
    connection = socket.create_connection(("127.0.0.1", int(sys.argv[1])))
    while True:
        began, data = time.monotonic(), b""
        connection.sendall(head % len(body) + body)
        while b"data: " not in data:
            data += connection.recv(1 << 16)
        print(1000 * (time.monotonic() - began), flush=True)
        while not data.endswith(LAST):
            data += connection.recv(1 << 16)


if __name__ == "__main__":
    main()
