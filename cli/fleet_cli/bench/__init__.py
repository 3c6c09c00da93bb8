"""The benchmarks of `fleet-twin bench`: what a record, a twin and an alert cost, each beside the bound it is judged by.

They measure the worker's own code, through its ports or its process, and never a copy of it.
"""

from fleet_cli.bench.commands import command

__all__ = ["command"]
