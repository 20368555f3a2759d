"""`python -m testcluster`: the test cluster by hand."""

import argparse
import os
import shlex
import signal
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from types import FrameType

from testcluster import build
from testcluster.build import BuildError
from testcluster.handle import Cluster, CommandError
from testcluster.native import layout
from testcluster.native.images import BuildahImages
from testcluster.native.network import NetworkError
from testcluster.packages import PackagesError
from testcluster.process import ProcessError
from testcluster.providers import Provider, UnavailableError, select
from testcluster.providers.native import Native
from testcluster.switches import switched_on
from testcluster.waiting import TimedOutError

EXPECTED = (
    BuildError,
    CommandError,
    NetworkError,
    PackagesError,
    ProcessError,
    TimedOutError,
    UnavailableError,
)
"""What tells a person what is wrong by its message alone."""


Action = Callable[[argparse.Namespace], int]


def _with_provider(action: Callable[[Provider, argparse.Namespace], int]) -> Action:
    return lambda options: action(select(), options)


def _up(provider: Provider, options: argparse.Namespace) -> int:
    cluster = provider.up(keep=True)
    sys.stdout.write(_summary(cluster))
    return 0


def _down(provider: Provider, options: argparse.Namespace) -> int:
    provider.down()
    return 0


def _status(provider: Provider, options: argparse.Namespace) -> int:
    cluster = provider.running()
    if cluster is None:
        sys.stdout.write(f"{provider.name}: not running\n")
        return 1
    sys.stdout.write(_summary(cluster))
    sys.stdout.write(cluster.kubectl("get", "nodes,pods", "-A", check=False))
    return 0


def _build(options: argparse.Namespace) -> int:
    if options.programs:  # wherever Go is: these need no cluster
        for name, path in build.ensure(*options.programs).items():
            sys.stdout.write(f"{name}\t{path}\n")
        return 0
    try:
        provider = select()
    except UnavailableError as error:
        if switched_on("CI"):
            raise
        # Not a failure: tests that need a cluster are going to be left out, and say so.
        sys.stderr.write(f"testcluster: nothing is built: {error}\n")
        return 0
    provider.build()
    return 0


def _clean(options: argparse.Namespace) -> int:
    for folder in build.remove_outdated():
        sys.stdout.write(f"removed {folder}\n")
    if options.images:
        BuildahImages(layout.run_dir()).clean()
        sys.stdout.write("removed all images and layers\n")
    return 0


def _env(provider: Provider, options: argparse.Namespace) -> int:
    cluster = provider.running()
    if cluster is None:
        sys.stderr.write("the cluster is not running: python -m testcluster up\n")
        return 1
    folders = {str(path.parent) for path in (build.tool("kubectl"), build.tool("helm"))}
    variables = {
        "KUBECONFIG": str(cluster.kubeconfig),
        "MOORAGE_TEST_EDGE_URL": cluster.edge_url,
        "MOORAGE_TEST_NODE_ADDRESS": cluster.node_address,
        "MOORAGE_TEST_POSTGRES_DSN": cluster.postgres_admin_dsn,
    }
    for name, value in variables.items():
        sys.stdout.write(f"export {name}={shlex.quote(value)}\n")
    sys.stdout.write(f'export PATH={shlex.quote(":".join(sorted(folders)))}:"$PATH"\n')
    return 0


def _logs(provider: Provider, options: argparse.Namespace) -> int:
    if options.namespace:
        cluster = provider.running()
        sys.stdout.write(cluster.diagnostics(options.namespace) if cluster else "not running\n")
        return 0
    for path in map(Path, provider.log_files()):
        if not options.part or path.stem == options.part:
            lines = path.read_text(errors="replace").splitlines()[-options.lines :]
            sys.stdout.write("\n".join([f"=== {path}", *lines, ""]))
    return 0


def _load(provider: Provider, options: argparse.Namespace) -> int:
    cluster = provider.running()
    if cluster is None:
        sys.stderr.write("the cluster is not running: python -m testcluster up\n")
        return 1
    for image in options.images:
        sys.stdout.write(f"{cluster.load_image(image)}\n")
    return 0


def _reap(options: argparse.Namespace) -> int:
    # Only the native cluster leaves its ending to a process of its own.
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)
    Native().reap(options.id)
    return 0


def _summary(cluster: Cluster) -> str:
    return (
        f"provider    {cluster.provider}\n"
        f"kubeconfig  {cluster.kubeconfig}\n"
        f"edge        {cluster.edge_url}  (Gateway {'/'.join(cluster.gateway)}, "
        f"Ingress class {cluster.ingress_class})\n"
        f"for pods    {cluster.node_address}\n"
        "PostgreSQL  its DSN with password: python -m testcluster env\n"
    )


def _parser() -> argparse.ArgumentParser:
    parser = argparse.ArgumentParser(prog="python -m testcluster", description=__doc__)
    commands = parser.add_subparsers(required=True, metavar="COMMAND")

    def add(name: str, action: Action, help: str) -> argparse.ArgumentParser:
        command = commands.add_parser(name, help=help)
        command.set_defaults(action=action)
        return command

    add("up", _with_provider(_up), "start the cluster, and keep it until `down`")
    add("down", _with_provider(_down), "end the cluster and remove all it made")
    add("status", _with_provider(_status), "say whether it runs, and where; exit status 1 if not")
    command = add("build", _build, "build programs and base image into the cache, and nothing else")
    command.add_argument("programs", nargs="*", metavar="PROGRAM", help="only these; prints where they lie")
    command = add("clean", _clean, "remove programs of former pins from the cache")
    command.add_argument("--images", action="store_true", help="and every image, layer and the base")
    add("env", _with_provider(_env), 'print shell variables: eval "$(python -m testcluster env)"')
    command = add(
        "logs", _with_provider(_logs), "print logs of the cluster's parts, or what happens in a namespace"
    )
    command.add_argument("part", nargs="?", help="only this part, such as kubelet")
    command.add_argument(
        "-n", "--namespace", help="pods, events and container logs of this namespace instead"
    )
    command.add_argument("--lines", type=int, default=100, help="how many of the last lines (default: 100)")
    command = add("load", _with_provider(_load), "make built images available to pods")
    command.add_argument("images", nargs="+", metavar="IMAGE")
    command = commands.add_parser("reap")  # internal, hence without help
    command.add_argument("id")
    command.set_defaults(action=_reap)
    return parser


def _interrupt(number: int, frame: FrameType | None) -> None:
    raise KeyboardInterrupt


def main(arguments: Sequence[str] | None = None) -> int:
    """Run one command; returns the exit status."""
    options = _parser().parse_args(arguments)
    # Ended like by Ctrl-C: what was started halfway is ended again.
    signal.signal(signal.SIGTERM, _interrupt)
    try:
        status: int = options.action(options)
        sys.stdout.flush()
    except EXPECTED as error:
        sys.stderr.write(f"testcluster: {error}\n")
        return 1
    except BrokenPipeError:
        # The reader (`| head`) has seen enough; without this, Python complains once more at its exit.
        os.dup2(os.open(os.devnull, os.O_WRONLY), sys.stdout.fileno())
        return 0
    except KeyboardInterrupt:
        sys.stderr.write("testcluster: interrupted; what was started has been ended\n")
        return 130
    return status
