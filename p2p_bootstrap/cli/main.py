"""Which verbs are there, where does each live, and what does the shell see when one fails?

`VERBS` is the map. A verb's module is imported when that verb is called and not before, so that every other
one starts fast; the one-line helps stand here for the same reason. Errors end here: a `P2PError` becomes
``error: ...`` and ``hint: ...`` on stderr and its exit code; stdout carries data and nothing else.
"""

from __future__ import annotations

import os
import sys
from collections.abc import Sequence
from importlib import import_module
from typing import TYPE_CHECKING, Any, Final

import click

from p2p_bootstrap import __version__
from p2p_network.core.errors import P2PError, UsageError, nearest
from p2p_network.lean import late_methods

if TYPE_CHECKING:
    from click.shell_completion import CompletionItem

PROGRAM: Final = "kairos-p2p"
EXIT_INTERRUPTED: Final = 130  # 128 + SIGINT, as shells have it
EXIT_PIPE_CLOSED: Final = 141  # 128 + SIGPIPE

# verb -> ("module:attribute", one line of help); the order is that of --help
VERBS: Final[dict[str, tuple[str, str]]] = {
    "join": ("p2p_bootstrap.cli.join_verb:join", "Make this machine a node of a mesh."),
    "status": ("p2p_bootstrap.cli.status_verb:status", "What is this node, and why?"),
    "wait": ("p2p_bootstrap.cli.wait_verb:wait", "Wait until this node has come that far."),
    "peers": ("p2p_bootstrap.cli.peers_verb:peers", "Who else is here, and how are they reached?"),
    "routes": ("p2p_bootstrap.cli.routes_verbs:group", "Which networks are behind which node?"),
    "access": ("p2p_bootstrap.cli.access_verbs:group", "Who may reach whom?"),
    "service": ("p2p_bootstrap.cli.service_verbs:group", "Offer programs by name, reach those of others."),
    "socks": ("p2p_bootstrap.cli.proxy_verbs:socks", "A SOCKS5 proxy into the mesh, without a VPN."),
    "forward": ("p2p_bootstrap.cli.proxy_verbs:forward", "Forward a local port into the mesh."),
    "file": ("p2p_bootstrap.cli.file_verbs:group", "Hand a file from node to node."),
    "roles": ("p2p_bootstrap.cli.roles_verbs:group", "Who does what in the cluster, and why?"),
    "regions": ("p2p_bootstrap.cli.regions_verbs:group", "Which node stands where, and how far apart?"),
    "plan": ("p2p_bootstrap.cli.plan_verbs:plan", "What has to happen until the cluster is as declared?"),
    "apply": ("p2p_bootstrap.cli.plan_verbs:apply", "Change what the cluster shall be."),
    "events": ("p2p_bootstrap.cli.events_verb:events", "What happened on this node lately?"),
    "kubeconfig": ("p2p_bootstrap.cli.kubeconfig_verb:kubeconfig", "Print the cluster's kubeconfig."),
    "cluster": (
        "p2p_bootstrap.cli.cluster_verbs:group",
        "Bring the cluster back, keep one of two, snapshots.",
    ),
    "backup": ("p2p_bootstrap.cli.cluster_verbs:backup", "Write the whole cluster into one encrypted file."),
    "restore": ("p2p_bootstrap.cli.cluster_verbs:restore", "Begin the cluster of a backup on this mesh."),
    "leave": ("p2p_bootstrap.cli.leave_verb:leave", "Take this machine out of its mesh."),
    "token": ("p2p_bootstrap.cli.token_verbs:group", "Make, look at, withdraw and rotate tokens."),
    "rendezvous": (
        "p2p_bootstrap.cli.rendezvous_verbs:group",
        "A machine where nodes find each other, and its key.",
    ),
    "peer": ("p2p_bootstrap.cli.admission_verbs:peer", "Drain nodes for a while, or put them out."),
    "config": ("p2p_bootstrap.cli.config_verbs:group", "Check cloud-config files, see which line set what."),
    "stage": (
        "p2p_bootstrap.cli.stage_verbs:group",
        "Run the cloud-config's stages, or see what they would do.",
    ),
    "k3s": (
        "p2p_bootstrap.cli.k3s_verbs:group",
        "Install, upgrade and watch the k3s program.",
    ),
    "boot": ("p2p_bootstrap.cli.boot_verbs:group", "How does this machine boot, and why that way?"),
    "agent": ("p2p_bootstrap.cli.agent_verb:agent", "Run the agent in the foreground (for service units)."),
    "lab": ("p2p_simulations.lab.cli:group", "Run whole clusters on this machine, and break them."),
    "sim": ("p2p_simulations.sim_cli:group", "Run whole clusters in virtual time, and break them."),
    "completion": ("p2p_bootstrap.cli.completion_verb:completion", "Print a shell's completion script."),
    "version": ("p2p_bootstrap.cli.version_verb:version", "Versions of this command and of the agent."),
}


class LazyGroup(click.Group):
    """A group that knows its verbs by name and imports one only to run it."""

    def list_commands(self, ctx: click.Context) -> list[str]:
        """The names, in the order of `VERBS`."""
        return list(VERBS)

    def get_command(self, ctx: click.Context, cmd_name: str) -> click.Command | None:
        """Import and return one verb; None if there is none of that name."""
        if cmd_name not in VERBS:
            return None
        module, attribute = VERBS[cmd_name][0].split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """As click does, but an unknown verb gets the nearest one as its hint."""
        if args[0] not in VERBS and not args[0].startswith("-") and not ctx.resilient_parsing:
            near = nearest(args[0], VERBS)
            raise UsageError(
                f"there is no verb {args[0]!r}",
                hint=f"did you mean {near!r}?" if near else f"see all verbs with: {PROGRAM} --help",
            )
        return super().resolve_command(ctx, args)

    def format_commands(self, ctx: click.Context, formatter: click.HelpFormatter) -> None:
        """The verbs for --help, without importing them."""
        with formatter.section("Verbs"):
            formatter.write_dl([(name, text) for name, (_, text) in VERBS.items()])

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[CompletionItem]:
        """The verbs that begin with `incomplete`, without importing them."""
        from click.shell_completion import CompletionItem

        found = [CompletionItem(name, help=VERBS[name][1]) for name in VERBS if name.startswith(incomplete)]
        return found + click.Command.shell_complete(self, ctx, incomplete)

    def invoke(self, ctx: click.Context) -> Any:
        """Run the verb. A closed pipe must not end as click ends it, with the code of a failure."""
        try:
            result = super().invoke(ctx)
            sys.stdout.flush()
            return result
        except BrokenPipeError:
            _abandon(sys.stdout)
            raise click.exceptions.Exit(EXIT_PIPE_CLOSED) from None


@click.group(
    cls=LazyGroup,
    context_settings={"help_option_names": ["-h", "--help"], "max_content_width": 100},
    subcommand_metavar="VERB [ARGS]...",
    epilog="Exit codes: 0 ok, 1 failed, 2 usage, 3 agent not running, 4 timed out, 5 not permitted, "
    "6 changes pending.",
)
@click.version_option(__version__, prog_name=PROGRAM, message="%(prog)s %(version)s")
def cli() -> None:
    """A network token in a cloud-config becomes a Kubernetes cluster.

    \b
    kairos-p2p token generate > token        once, anywhere
    kairos-p2p join --token-file token       on each machine
    kairos-p2p status                        what am I, and why?
    """


def main(argv: Sequence[str] | None = None) -> int:
    """Run the command line; returns the exit code."""
    try:
        with late_methods():
            code = cli.main(
                args=None if argv is None else list(argv), prog_name=PROGRAM, standalone_mode=False
            )
        return code if isinstance(code, int) else 0
    except P2PError as exc:
        return _fail(exc.message, exc.hint, exc.exit_code)
    except click.exceptions.NoArgsIsHelpError as exc:
        _say(exc.format_message())
        return exc.exit_code
    except click.ClickException as exc:
        context = getattr(exc, "ctx", None)
        hint = f"{context.command_path} --help" if context else ""
        return _fail(exc.format_message().rstrip("."), hint, exc.exit_code)
    except (click.Abort, KeyboardInterrupt):
        return EXIT_INTERRUPTED
    except OSError as exc:  # what a verb did not foresee, e.g. /dev/full: its words, not a traceback
        _abandon(sys.stdout)
        where = f"{exc.filename}: " if exc.filename else ""
        return _fail(f"{where}{exc.strerror or exc}", "", 1)


def _fail(message: str, hint: str, code: int) -> int:
    _say(f"error: {message}" + (f"\n hint: {hint}" if hint else ""))
    return code


def _say(text: str) -> None:
    try:
        print(text, file=sys.stderr, flush=True)
    except OSError:
        _abandon(sys.stderr)


def _abandon(stream: Any) -> None:
    """Point a stream that nobody reads at nothing, so that the interpreter's last flush can't fail."""
    devnull = os.open(os.devnull, os.O_WRONLY)
    os.dup2(devnull, stream.fileno())
    os.close(devnull)


if __name__ == "__main__":
    sys.exit(main())
