"""All instances of a node, and the one message in which the registry is told of them."""

from __future__ import annotations

import http.client
import json
import random
import signal
import sys
import time
import urllib.parse
from typing import Any

from .instance import Instance
from .processes import STOPPING, Wake

OK = 200
PUSH_TIMEOUT = 5.0  # seconds


class Agent:
    """Runs the instances of one node, and tells the registry about them in one message."""

    def __init__(self, order: dict[str, Any], secrets: dict[str, Any]) -> None:
        self.order = order
        self.secrets = secrets
        self.changed = Wake()  # something to tell the registry
        self.stopping = False
        self._stop = Wake()
        self.instances = [Instance(each, secrets, self.changed) for each in order["instances"]]

    def run(self) -> int:
        """Work until told to stop; 0 when stopped, 1 when every instance was given up."""
        for number in STOPPING:
            signal.signal(number, lambda *_: self._ask_to_stop())
        for instance in self.instances:
            instance.start()
        self._report()
        for instance in self.instances:
            instance.stop()
        for instance in self.instances:
            instance.join(instance.policy.stop_grace + 20.0)
        failed = bool(self.instances) and all(instance.status == "failed" for instance in self.instances)
        self._push()
        return 1 if failed else 0

    def _report(self) -> None:
        """Tell the registry of every change, and now and then that we are there, until there is nothing left to do."""
        told = 0.0
        interval = float(self.order.get("push_interval", 10.0))
        patience = float(self.order.get("head_patience", 300.0))
        heard, retry = time.monotonic(), 0.5
        while True:
            if self.changed.wait(max(0.05, told + interval - time.monotonic())):
                self._stop.wait(0.05)  # changes come in groups: tell them together
                self.changed.clear()
            if self.stopping:
                return
            if self._push():
                heard, retry = time.monotonic(), 0.5
                told = heard - random.random() * interval / 10  # noqa: S311 - agents drift apart
            elif time.monotonic() - heard > patience:  # a job may outlive the node of its head
                print(f"aegis agent: no registry for {patience:.0f} s: stopping", file=sys.stderr)
                return
            else:
                self._stop.wait(retry)
                retry = min(retry * 2, interval)
                self.changed.set()
            if not any(instance.is_alive() for instance in self.instances):
                return

    def _ask_to_stop(self) -> None:
        self.stopping = True
        self._stop.set()
        self.changed.set()

    def _push(self) -> bool:
        """Tell the registry; True when it took the message."""
        services = [instance.report() for instance in self.instances]
        body = json.dumps({"node": self.order["node"], "services": services})
        url = urllib.parse.urlsplit(self.order["registry"])
        connection = http.client.HTTPConnection(
            url.hostname or "localhost", url.port or 80, timeout=PUSH_TIMEOUT
        )
        headers = {"Content-Type": "application/json"}
        if self.secrets.get("registry_token"):
            headers["Authorization"] = "Bearer " + self.secrets["registry_token"]
        try:
            path = "/nodes/" + urllib.parse.quote(self.order["node"], safe="")
            connection.request("PUT", path, body, headers)
            answer = connection.getresponse()
            text = answer.read()
            if answer.status != OK:
                said = text[:200].decode(errors="replace")
                print(f"aegis agent: the registry answers {answer.status}: {said}", file=sys.stderr)
                return False
            self._obey(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError):
            return False  # nothing there, or what answers is no registry
        finally:
            connection.close()
        return True

    def _obey(self, answer: dict[str, Any]) -> None:
        drained: set[str] = set(answer.get("drain") or ())
        for instance in self.instances:
            if instance.order["id"] in drained and not instance.draining:
                instance.draining = True
                self.changed.set()
            wanted = (answer.get("generations") or {}).get(instance.order["metadata"].get("instance"))
            if wanted:
                instance.reach_generation(int(wanted))
        if answer.get("stop"):
            self._ask_to_stop()
