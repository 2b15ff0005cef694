"""What a plan is written down as: files that engines, Kubernetes and Aegis itself take.

`save` writes them; `tree` says which there are. `servers` is what every engine is told; `trtllm` and `flags` say it in
each engine's words, `shell` and `kubernetes` start it, `deployment` and `rehearsal` are for Aegis.
"""

from aegis.planner.emit.save import save

__all__ = ["save"]
