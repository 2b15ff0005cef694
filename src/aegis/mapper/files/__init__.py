"""Files pushed through a fleet: a program of the user's for each, its result published exactly once.

```text
inputs ─▶ the biggest first ─▶ schedule (pure): the next free slot takes the next file
                                  │ one try
                                  ▼
          worker (here, or on the instance's node): runs the program, archives what it made
                                  │ what came of it
                                  ▼
          result renamed into place ─▶ ledger: one line per file
```

Workers only make parts; the driver alone gives a part its final name. So a worker that was believed to be lost, and
was not, publishes nothing.
"""
