"""A real Kubernetes cluster on one machine without Docker: Kubernetes' own programs, containerd, and a namespace of the kernel per node.

    python -m tests.e2e.cluster check | install | up | kubectl … | down

It needs Linux, root and the packages of tests/e2e/packages.sh; `needs.check` says plainly what is missing. It ends only what it began.
"""
