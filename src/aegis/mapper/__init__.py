"""Rows pushed through a fleet, each into the output exactly once.

```text
input ─▶ rows: checked as a whole, then streamed ─▶ dispatch ─▶ instances
                                                      │ a line of the output per row
                                                      ▼
                                  journal: appended, checksummed ─▶ output, in input order
```
"""
