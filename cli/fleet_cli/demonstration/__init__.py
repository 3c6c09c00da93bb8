"""The demo: an embedded Kinesis and S3, a worker and a simulated fleet, each a process of its own, and a view of them.

    stage (folder, fleet file, streams) → processes (children, started and ended) → watch (figures) → view (what is shown)

It uses what users use: the same commands, the same fleet file, the same HTTP API and streams. It knows nothing of the inside of a
worker.
"""

WORKERS_MAX = 16
"""Of one demo, by whatever way more of them are asked for."""
