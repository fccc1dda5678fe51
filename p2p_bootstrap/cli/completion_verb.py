"""``kairos-p2p completion``: how does the shell learn our verbs and options?"""

from __future__ import annotations

from typing import Final

import click

from p2p_bootstrap.cli import output as out

VARIABLE: Final = "_KAIROS_P2P_COMPLETE"  # click's name for it, derived from the program's


@click.command()
@click.argument("shell", type=click.Choice(("bash", "zsh", "fish")))
def completion(shell: str) -> None:
    """Print a shell's completion script.

    \b
    bash:  kairos-p2p completion bash > /etc/bash_completion.d/kairos-p2p
    zsh:   kairos-p2p completion zsh > "${fpath[1]}/_kairos-p2p"
    fish:  kairos-p2p completion fish > ~/.config/fish/completions/kairos-p2p.fish
    """
    from click.shell_completion import get_completion_class

    from p2p_bootstrap.cli.main import PROGRAM, cli

    kind = get_completion_class(shell)
    assert kind is not None, f"click knows {shell}"
    script = kind(cli, {}, PROGRAM, VARIABLE)
    # not .source(): that of bash first runs a bash to ask for its version
    out.emit(kind.source_template % script.source_vars())
