"""The agent: one per node; starts, watches, restarts and stops that node's instances.

Standard library only, for any Python >= 3.9. `fleet/archive.py` packs it into one file, which is copied to the run
directory and started on thousands of nodes at once. It knows no engine: commands, probes and the meaning of log lines
come as data (`fleet/order.py`). Its modules import each other relatively: in the file this package is `aegis_agent`.

    python agent.pyz FLEET_FILE --node NAME [--secrets FILE] [--parent PID]

Two processes. The guard outlives everything: it is the reaper of all descendants, so that whatever happens to the
worker, even kill -9, nothing stays behind. The worker has one thread per instance: a hung one delays nobody else.
"""
