"""``kairos-p2p events``: what happened on this node lately?"""

from __future__ import annotations

import json
from pathlib import Path

import click

from p2p_bootstrap.api.service import EventDoc
from p2p_bootstrap.cli import output as out
from p2p_bootstrap.cli.client import AgentClient
from p2p_bootstrap.cli.options import output_option, socket_option


@click.command()
@click.option("-f", "--follow", is_flag=True, help="Go on with each new event as it happens, until Ctrl-C.")
@click.option(
    "--since", type=click.IntRange(min=0), default=0, metavar="SEQ", help="Only events numbered above this."
)
@output_option
@socket_option
def events(follow: bool, since: int, output: out.Output, socket: Path) -> None:
    """What happened on this node lately?

    One line per event, oldest first; times are UTC. The agent keeps the last 2000. -o json prints one
    object a line.
    """
    for event in AgentClient(socket).events(since, follow=follow):
        if since and event["seq"] > since + 1:
            out.note(f"({event['seq'] - since - 1} events before this one are no longer kept)")
        since = event["seq"]
        out.emit(_line(event, output))


def _line(event: EventDoc, output: out.Output) -> str:
    match output:
        case "json":
            return json.dumps(event)
        case "yaml":
            return "---\n" + out.to_yaml(event)
        case "name":
            return out.printable(event["name"])
        case "table":
            fields = "  ".join(f"{key}={value}" for key, value in event["fields"].items())
            time = event["time"].replace("T", " ")
            return out.printable(
                "  ".join(filter(None, (time, event["name"].ljust(28), event["reason"], fields)))
            )
