"""``python -m moorage_gateway gateway|sidecar``: the commands without the rest of ``moorage``."""

import click

from moorage_gateway.commands import gateway, sidecar

main = click.Group("moorage_gateway", commands=[gateway, sidecar], help=__doc__)

if __name__ == "__main__":
    main(prog_name="python -m moorage_gateway")
