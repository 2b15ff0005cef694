"""What the servers of a job do at present: throughput, queues, caches and latencies, over all of its instances."""
