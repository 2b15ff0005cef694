#!/usr/bin/env python3
"""Serve a deployment, ask each of its servers for its models, end the job: serve.py DEPLOYMENT."""

import sys
import urllib.request

from aegis import Client


def main(deployment: str) -> None:
    """Submit the file as a job and stay with it until its servers have answered."""
    client = Client()
    handle = client.submit(deployment, endpoints_file="{run_dir}/endpoints.txt")
    print(handle, file=sys.stderr)
    try:
        client.wait_until_ready(handle)
        for endpoint in client.endpoints(handle):
            with urllib.request.urlopen(f"http://{endpoint}/v1/models", timeout=30) as answer:
                print(endpoint, answer.read().decode())
    finally:
        client.shutdown_model(handle)


if __name__ == "__main__":
    main(sys.argv[1])
