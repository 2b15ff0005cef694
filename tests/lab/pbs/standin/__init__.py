"""A stand-in for PBS on one machine: qsub, qstat, qdel and others as real processes, a server, and jobs that really run.

It answers with the codes, texts and JSON of OpenPBS 23.06.06, quirks included; the recordings in tests/fixtures/pbs say
how. The standard library is all it needs.

commands  what stands on PATH: reads its arguments, asks the server, prints as PBS does
options   the arguments of qsub, from the command line and from the script
server    knows jobs, queues and nodes; killed or not there means that PBS is down
jobs      one job, and its attributes as PBS shows them
placing   from `select` to nodes
mom       one process per running job: starts its script, and ends it at the walltime
wire      how commands and server find and understand each other
"""
