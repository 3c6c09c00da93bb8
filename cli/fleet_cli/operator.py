"""`fleet-twin operator`: the operator for Kubernetes. What it does is `fleet_operator.main`'s business."""

from __future__ import annotations

import asyncio

import click

from fleet_cli import console

LEASE_NAME = "fleet-twin-operator"


@click.command(name="operator", epilog=console.EXIT_CODES)
@click.option(
    "--namespace",
    "namespaces",
    multiple=True,
    envvar="FLEET_TWIN_NAMESPACES",
    metavar="NS",
    help="Look after the fleets of this namespace; may be given more than once. A Role in each is enough.",
)
@click.option(
    "--all-namespaces",
    is_flag=True,
    envvar="FLEET_TWIN_ALL_NAMESPACES",
    help="Look after all fleets of the cluster. Needs a ClusterRole.",
)
@click.option(
    "--image",
    required=True,
    envvar="FLEET_TWIN_IMAGE",
    metavar="IMAGE",
    help="Of workers, for fleets that name none in spec.image: best the operator's own.",
)
@click.option(
    "--image-pull-policy",
    type=click.Choice(["Always", "IfNotPresent", "Never"]),
    default="IfNotPresent",
    show_default=True,
    envvar="FLEET_TWIN_IMAGE_PULL_POLICY",
    help="Of the workers' image.",
)
@click.option(
    "--priority-class", default="", envvar="FLEET_TWIN_PRIORITY_CLASS", metavar="NAME", help="Of the workers' pods."
)
@click.option(
    "--host", default="0.0.0.0", show_default=True, envvar="FLEET_TWIN_HOST", help="Address of the port below."
)
@click.option(
    "--port",
    type=click.IntRange(0, 65535),
    default=8081,
    show_default=True,
    envvar="FLEET_TWIN_PORT",
    help="Of /healthz, /readyz and /metrics. 0 = a free one.",
)
@click.option(
    "--lease-namespace",
    envvar=["FLEET_TWIN_LEASE_NAMESPACE", "POD_NAMESPACE"],
    metavar="NS",
    help="Where the Lease is that one operator holds at a time. By default the operator's own namespace.",
)
@click.option(
    "--lease-name",
    default=LEASE_NAME,
    show_default=True,
    envvar="FLEET_TWIN_LEASE_NAME",
    metavar="NAME",
    help="Its name.",
)
@click.option(
    "--log-level",
    type=click.Choice(["debug", "info", "warning", "error"]),
    default="info",
    show_default=True,
    envvar="FLEET_TWIN_LOG_LEVEL",
    help="What is logged to standard error.",
)
@click.option(
    "--log-format",
    type=click.Choice(["auto", "json"]),
    default="auto",
    show_default=True,
    envvar="FLEET_TWIN_LOG_FORMAT",
    help="auto = for people on a terminal, key=value elsewhere.",
)
@click.option("--pod-name", envvar="POD_NAME", default="", hidden=True, help="Of this pod: who holds the Lease.")
def command(
    namespaces: tuple[str, ...],
    all_namespaces: bool,
    image: str,
    image_pull_policy: str,
    priority_class: str,
    host: str,
    port: int,
    lease_namespace: str | None,
    lease_name: str,
    log_level: str,
    log_format: str,
    pod_name: str,
) -> None:
    """Run the operator: it makes the workers, partitions and rules of each DeviceFleet, and keeps them so.

    It speaks to the API server by the service account of its pod, elsewhere by $KUBECONFIG. Fleets' streams are listed with
    its own AWS credentials (environment, profile, role), or with those of the Secret that spec.aws.credentialsSecretRef
    names. Several may run: the one with the Lease acts, the others are ready to. Every option can be set in the
    environment, as FLEET_TWIN_IMAGE and so on. The Helm chart charts/fleet-twin runs it with all that it needs.

    \b
    Examples:
      fleet-twin operator --all-namespaces --image ghcr.io/me/fleet-twin:0.1.0
      fleet-twin operator --namespace depot --namespace harbour --image fleet-twin:dev
      KUBECONFIG=~/.kube/config fleet-twin operator --namespace depot --image fleet-twin:dev --port 0
    """
    from fleet_cli import logs, loop

    loop.end_by_sigterm()
    from fleet_operator import errors, main, pod_template

    if all_namespaces == bool(namespaces):
        raise click.UsageError("say which fleets: --namespace NS (once or more), or --all-namespaces.")
    if lease_namespace is None:
        if len(namespaces) != 1:
            raise click.UsageError(
                "--lease-namespace NS is needed here: outside a pod nobody knows where the Lease goes."
            )
        lease_namespace = namespaces[0]
    options = main.Options(
        namespaces=tuple(dict.fromkeys(namespaces)),
        defaults=pod_template.Defaults(image, image_pull_policy, priority_class),
        lease=(lease_namespace, lease_name),
        host=host,
        port=port,
        pod=pod_name,
    )
    logs.configure(log_level, log_format)

    async def until_stopped() -> None:
        stop = asyncio.Event()
        with loop.stopped_by_signals(stop):
            await main.run(options, stop)

    try:
        loop.run(until_stopped())
    except errors.OperatorError as failed:
        console.fail(str(failed))
