"""The group of all verbs, and the program that runs one."""

from __future__ import annotations

import sys
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from importlib import import_module
from typing import Any, NoReturn

import click

from rustguard_py import __version__
from rustguard_py.cli import failures
from rustguard_py.cli.secret import wipe_arguments
from rustguard_py.cli.values import nearest
from rustguard_py.cli.verb import CONTEXT_SETTINGS, write_examples

EXAMPLES = (
    ("sudo rustguard serve --pool 10.77.0.0/24 --token-file token --open", "a server, open for a first peer"),
    ("sudo rustguard join home.example --token -", "a client; it asks for the token"),
    ("rustguard open 60", "let a new peer join during the next minute"),
    ("rustguard status", "the tunnel and its peers"),
)


@dataclass(frozen=True, slots=True)
class Entry:
    """A verb in the table.

    Attributes:
        target: Where its click command is, `module:attribute`.
        summary: One line for `--help`, which then needs no import.
        hidden: Whether `--help` leaves it out.
    """

    target: str
    summary: str
    hidden: bool = False


VERBS: Mapping[str, Entry] = {
    "serve": Entry("rustguard_py.cli.serve:command", "Run a server: own a pool of addresses, admit peers."),
    "join": Entry("rustguard_py.cli.join:command", "Join a server, or connect to one joined before."),
    "exec": Entry(
        "rustguard_py.cli.exec_inside:command", "Run a program inside the tunnel of a client without root."
    ),
    "open": Entry("rustguard_py.cli.open_window:command", "Open the server's window for new peers."),
    "close": Entry("rustguard_py.cli.close_window:command", "Close the server's window."),
    "status": Entry("rustguard_py.cli.status:command", "Show the tunnel, its window and its peers."),
    "stop": Entry("rustguard_py.cli.stop:command", "End what runs, in the background or as a service."),
    "logs": Entry("rustguard_py.cli.show_logs:command", "Show what a server or client has logged."),
    "service": Entry("rustguard_py.cli.service:command", "Run a server, client or tunnel as a service of systemd."),
    "leave": Entry("rustguard_py.cli.leave:command", "Leave a network: disconnect and forget its keys."),
    "peers": Entry("rustguard_py.cli.peers:command", "List, rename, revoke, restore and reset peers."),
    "audit": Entry("rustguard_py.cli.audit:command", "Show who joined, who was refused, and who changed what."),
    "up": Entry(
        "rustguard_py.cli.up:command", "Bring up the tunnel of a wg-quick file, or apply the file's changes."
    ),
    "down": Entry("rustguard_py.cli.down:command", "Bring down a tunnel that `up` brought up."),
    "export": Entry("rustguard_py.cli.export:command", "Write a wg-quick file for a stock WireGuard app."),
    "import": Entry(
        "rustguard_py.cli.import_file:command", "Turn the server of a wg-quick file into a RustGuard server."
    ),
    "backup": Entry("rustguard_py.cli.backup:command", "Save keys, peers, networks and settings in one file."),
    "restore": Entry("rustguard_py.cli.restore:command", "Put back what `backup` saved, here or on another machine."),
    "genkey": Entry("rustguard_py.cli.genkey:command", "Make a private key, as `wg genkey` does."),
    "pubkey": Entry(
        "rustguard_py.cli.pubkey:command", "Turn a private key into its public key, as `wg pubkey` does."
    ),
    "demo": Entry("rustguard_py.cli.demo:command", "Watch a server and a client find each other on this machine."),
    "bench": Entry("rustguard_py.cli.bench:command", "Compare the engines that run on this machine."),
    "completion": Entry("rustguard_py.cli.completion:command", "Print the completion script of a shell."),
    "man": Entry("rustguard_py.cli.man:command", "Print the manual page.", hidden=True),
}


class LazyGroup(click.Group):
    """A group that lists its verbs from the table and imports one only when it is called."""

    def list_commands(self, _: click.Context) -> list[str]:
        """Return the names of the verbs in the table's order."""
        return list(VERBS)

    def get_command(self, _: click.Context, cmd_name: str) -> click.Command | None:
        """Import a verb and return its command."""
        entry = VERBS.get(cmd_name)
        if entry is None:
            return None
        module, attribute = entry.target.split(":")
        command: click.Command = getattr(import_module(module), attribute)
        return command

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the verb that a command line begins with; of one that doesn't exist, name the nearest."""
        name = args[0]
        if name not in VERBS and not name.startswith("-") and not ctx.resilient_parsing:
            raise nearest(name, VERBS, ctx)
        return super().resolve_command(ctx, args)

    def format_commands(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """List the verbs without importing one."""
        with formatter.section("Commands"):
            formatter.write_dl([(name, entry.summary) for name, entry in VERBS.items() if not entry.hidden])

    def format_epilog(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the examples."""
        write_examples(formatter, EXAMPLES)
        with formatter.section("More"):
            formatter.write_text("rustguard COMMAND --help; the manual page: man rustguard, or rustguard man")

    def shell_complete(self, ctx: click.Context, incomplete: str) -> list[Any]:
        """Return the verbs that begin so, without importing one."""
        from click.shell_completion import CompletionItem

        verbs = [
            CompletionItem(name, help=entry.summary)
            for name, entry in VERBS.items()
            if name.startswith(incomplete) and not entry.hidden
        ]
        return [*verbs, *click.Command.shell_complete(self, ctx, incomplete)]


@click.group("rustguard", cls=LazyGroup, context_settings=CONTEXT_SETTINGS)
@click.version_option(__version__, "--version", prog_name="rustguard")
def group() -> None:
    """Admit machines to a WireGuard network with a shared token, during a window that you open."""


def new_context(command: click.Command, name: str, parent: click.Context | None = None) -> click.Context:
    """Return a context to describe a command in.

    It has the command's settings, because click keeps the help option that it makes in the first context.
    """
    return click.Context(command, info_name=name, parent=parent, **command.context_settings)


def visible_commands(root: click.Context) -> Iterator[tuple[click.Command, click.Context]]:
    """Yield every command that isn't hidden with its context; a group comes before its own commands."""
    for name, entry in VERBS.items():
        command = None if entry.hidden else group.get_command(root, name)
        if command is None:
            continue
        context = new_context(command, name, root)
        yield command, context
        if isinstance(command, click.Group):
            for below, each in command.commands.items():
                yield each, new_context(each, below, context)


def run(arguments: Sequence[str]) -> int:
    """Run one command line.

    Args:
        arguments: Without the program's name.

    Returns:
        The exit code: 0 done, 1 failed, 2 usage, 3 no daemon running, 4 refused, 5 timed out, 130 interrupted.
    """
    return failures.exit_code(lambda: group.main(list(arguments), prog_name="rustguard", standalone_mode=False))


def main() -> NoReturn:
    """Run the program."""
    failures.settle_streams()
    failures.install()
    arguments = sys.argv[1:]
    wipe_arguments()
    sys.exit(run(arguments))
