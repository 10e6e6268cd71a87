"""`rustguard completion`: print the script with which a shell completes our command lines."""

from __future__ import annotations

import click

from rustguard_py.cli.values import OneOf
from rustguard_py.cli.verb import Verb
from rustguard_py.model.errors import UsageError


@click.command(
    "completion",
    cls=Verb,
    examples=[
        ("rustguard completion bash > /etc/bash_completion.d/rustguard", "bash, for every user"),
        ("rustguard completion zsh > ~/.zfunc/_rustguard", "zsh, with ~/.zfunc in fpath"),
        ("rustguard completion fish > ~/.config/fish/completions/rustguard.fish", "fish"),
    ],
)
@click.argument("shell", type=OneOf(["bash", "zsh", "fish"]))
def command(shell: str) -> None:
    """Print the completion script of a shell."""
    from click.shell_completion import get_completion_class

    completion = get_completion_class(shell)
    if completion is None:
        raise UsageError(f"There is no completion for {shell}.", "Choose bash, zsh or fish.")
    root = click.get_current_context().find_root().command
    click.echo(completion(root, {}, "rustguard", "_RUSTGUARD_COMPLETE").source())
