"""`rustguard man`: print the manual page in roff, from the text of `--help`."""

from __future__ import annotations

import shutil
import subprocess
import sys
from collections.abc import Iterable, Iterator

import click

from rustguard_py import __version__
from rustguard_py.cli.app import EXAMPLES, group, visible_commands
from rustguard_py.cli.values import OneOf
from rustguard_py.cli.verb import Examples, Verb

EXIT_CODES = (
    (0, "done, or there was nothing to do"),
    (1, "failed"),
    (2, "usage"),
    (3, "no daemon running"),
    (4, "refused (token, pool, permission, interface, port, engine)"),
    (5, "timed out: nobody answered (a closed window too)"),
    (129, "ended by SIGHUP before it was running (1 if up had changes to undo)"),
    (130, "interrupted by Ctrl-C before it was running"),
    (143, "ended by SIGTERM before it was running (1 if up had changes to undo)"),
)
ENVIRONMENT = (
    ("RUSTGUARD_STATE", "the state directory, as --state"),
    ("RUSTGUARD_RUNTIME", "the directory of the control sockets"),
    ("RUSTGUARD_TOKEN", "the token; removed from the environment once read"),
    ("RUSTGUARD_ENGINE", "the engine, as --engine"),
    ("RUSTGUARD_OFFLOADS", "offloads to use or to leave off, as --offloads"),
    ("RUSTGUARD_NO_SANDBOX", "with 1, keep all privileges, as --no-sandbox"),
    ("RUSTGUARD_LOG", "what the daemons log, as --log-level"),
    (
        "RUSTGUARD_AEAD",
        "how the native engine seals and opens packets: ring (one by one), lanes8 (no AVX-512), auto (the default)",
    ),
    ("RUSTGUARD_WG_SOCKETS", "the directory of the sockets where wg(8) asks; with an empty value there are none"),
)


@click.command("man", cls=Verb, examples=[("rustguard man > /usr/local/share/man/man8/rustguard.8", "install it")])
@click.argument("program", type=OneOf(["rustguard", "rustguard-wg"]), default="rustguard")
def command(program: str) -> None:
    """Print the manual page of a command; on a terminal, show it with man(1) if that is there."""
    if program == "rustguard-wg":
        from rustguard_py.cli.wg import command as wg

        text = "\n".join(wg_page(wg))
    else:
        text = "\n".join(page(click.get_current_context().find_root()))
    reader = shutil.which("man") if sys.stdout.isatty() else None
    if reader is None:
        click.echo(text)
    else:
        subprocess.run([reader, "--local-file", "-"], input=text.encode(), check=False)  # noqa: S603 - found above


def page(root: click.Context) -> Iterator[str]:
    """Yield the manual page, line by line, in roff (man-pages(7))."""
    yield f'.TH RUSTGUARD 8 "" "rustguard {__version__}" ""'
    yield from (".SH NAME", r"rustguard \- zero-config enrollment VPN, WireGuard on the wire")
    yield from (".SH SYNOPSIS", r"\fBrustguard\fR \fICOMMAND\fR [\fIARGS\fR]")
    yield from (".SH DESCRIPTION", _text(group.help or ""))
    yield ".SH COMMANDS"
    for verb, context in visible_commands(root):
        yield from _verb(verb, context)
    yield ".SH EXAMPLES"
    yield from _examples(EXAMPLES)
    yield ".SH ENVIRONMENT"
    yield from _terms(ENVIRONMENT)
    yield ".SH EXIT STATUS"
    yield from _terms((str(code), meaning) for code, meaning in EXIT_CODES)
    yield from (".SH SEE ALSO", ".BR rustguard-wg (8),", ".BR wg (8),", ".BR ip (8)")


def wg_page(command: click.Command) -> Iterator[str]:
    """Yield the manual page of `rustguard-wg`, line by line, in roff."""
    context = click.Context(command, info_name="rustguard-wg")
    about = (command.help or "").split("\n\n")
    yield f'.TH RUSTGUARD-WG 8 "" "rustguard {__version__}" ""'
    yield from (".SH NAME", r"rustguard\-wg \- a WireGuard interface in user space, for wg(8) and wg\-quick(8)")
    yield from (".SH SYNOPSIS", rf"\fBrustguard\-wg\fR {_text(' '.join(command.collect_usage_pieces(context)))}")
    yield ".SH DESCRIPTION"
    for paragraph in about:
        yield from (".PP", _text(paragraph))
    yield ".SH OPTIONS"
    records = [parameter.get_help_record(context) for parameter in command.params]
    yield from _terms(record for record in records if record is not None and record[1])
    yield from (".SH SEE ALSO", ".BR rustguard (8),", ".BR wg (8),", ".BR wg\\-quick (8)")


def _verb(verb: click.Command, context: click.Context) -> Iterator[str]:
    usage = " ".join(verb.collect_usage_pieces(context))
    yield f'.SS "{_text(context.command_path)} {_text(usage)}"'
    yield _text(verb.help or "")
    records = [parameter.get_help_record(context) for parameter in verb.params]
    yield from _terms(record for record in records if record is not None and record[1])
    yield from _examples(getattr(verb, "examples", ()))


def _terms(pairs: Iterable[tuple[str, str]]) -> Iterator[str]:
    for term, meaning in pairs:
        yield from (".TP", rf"\fB{_text(term)}\fR", _text(meaning))


def _examples(examples: Examples) -> Iterator[str]:
    for line, purpose in examples:
        yield from (".PP", f"{_text(purpose)}:", ".RS 4", ".nf", rf"\fB{_text(line)}\fR", ".fi", ".RE")


def _text(text: str) -> str:
    """Escape what roff would take for a request, line by line."""
    lines = (line.strip().replace("\\", r"\e").replace("-", r"\-") for line in text.splitlines())
    return "\n".join(rf"\&{line}" if line.startswith((".", "'")) else line for line in lines if line)
