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
PART_SECONDS = 5.0  # for a thread whose engine has ended
ENDED = ("stopped", "failed")


class Agent:
    """Runs the instances of one node, and tells the registry about them in one message."""

    def __init__(self, order: dict[str, Any], secrets: dict[str, Any]) -> None:
        self.order = order
        self.version = int(order.get("version", 0))  # of the orders that are followed
        self.secrets = secrets
        self.changed = Wake()  # something to tell the registry
        self.stopping = False
        self._stop = Wake()
        self.instances = [Instance(each, secrets, self.changed) for each in order["instances"]]
        self._next: dict[str, dict[str, Any]] = {}  # what starts when the instance of that id has ended
        self._told_ended: set[str] = set()  # the registry knows of their end

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
        """Tell the registry of every change, and now and then that we are there, until there is nothing left to do.

        An agent that stays waits for further orders when it has no instance, or none is left.
        """
        told = 0.0
        patience = float(self.order.get("head_patience", 300.0))
        heard, retry = time.monotonic(), 0.5
        while True:
            interval = float(self.order.get("push_interval", 10.0))
            if self.changed.wait(max(0.05, told + interval - time.monotonic())):
                self._stop.wait(0.05)  # changes come in groups: tell them together
                self.changed.clear()
            if self.stopping:
                return
            if self._push():
                self._part()
                heard, retry = time.monotonic(), 0.5
                told = heard - random.random() * interval / 10  # noqa: S311 - agents drift apart
            elif time.monotonic() - heard > patience:  # a job may outlive the node of its head
                print(f"aegis agent: no registry for {patience:.0f} s: stopping", file=sys.stderr)
                return
            else:
                self._stop.wait(retry)
                retry = min(retry * 2, interval)
                self.changed.set()
            if not self.order.get("stays") and not any(each.is_alive() for each in self.instances):
                return

    def _ask_to_stop(self) -> None:
        self.stopping = True
        self._stop.set()
        self.changed.set()

    def _push(self) -> bool:
        """Tell the registry; True when it took the message."""
        services = [instance.report() for instance in self.instances]
        body = json.dumps({"node": self.order["node"], "services": services, "version": self.version})
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
            self._told_ended = {each["service_id"] for each in services if each["status"] in ENDED}
            self._obey(json.loads(text))
        except (OSError, http.client.HTTPException, ValueError, TypeError, AttributeError, LookupError):
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
        orders = answer.get("orders")
        if orders and int(orders["version"]) > self.version:
            self._follow(orders)
        if answer.get("stop"):
            self._ask_to_stop()

    def _follow(self, orders: dict[str, Any]) -> None:
        """Take new orders: start what is new, end what is gone or is to be otherwise, leave the rest alone."""
        wanted = {each["id"]: each for each in orders["instances"]}
        for instance in self.instances:
            name = instance.order["id"]
            new = wanted.pop(name, None)
            if new is None:
                self._next.pop(name, None)
                instance.leave(float((orders.get("leaving") or {}).get(name, 0.0)))
            elif new != instance.order:
                self._next[name] = new
                instance.make_way()
            elif instance.leaving:
                self._next[name] = new
        for each in wanted.values():
            self._start(each)
        self.order, self.version = orders, int(orders["version"])
        self.changed.set()

    def _start(self, order: dict[str, Any]) -> None:
        instance = Instance(order, self.secrets, self.changed)
        self.instances.append(instance)
        if not self.stopping:
            instance.start()

    def _part(self) -> None:
        """Forget those that left, once the registry knows of their end, and start what comes in their place."""
        for instance in list(self.instances):
            name = instance.order["id"]
            if instance.leaving and name in self._told_ended:
                instance.join(PART_SECONDS)
                self.instances.remove(instance)
                if name in self._next:
                    self._start(self._next.pop(name))
                self.changed.set()
