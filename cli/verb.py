"""Parts that verbs share: examples in their help, and common options.

What only some verbs need is imported where it is used, because each start of a command waits for its imports.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import wraps
from pathlib import Path
from typing import TYPE_CHECKING, Any, TypeVar

import click

from rustguard_py.cli import complete, failures
from rustguard_py.cli.values import BadValueError, OneOf, nearest
from rustguard_py.model.errors import UsageError

if TYPE_CHECKING:
    from rustguard_py.model.memif import MemifOptions

Function = TypeVar("Function", bound=Callable[..., Any])
Examples = Sequence[tuple[str, str]]

LOG_LEVEL = "rustguard_py.log_level"

CONTEXT_SETTINGS = {"help_option_names": ["-h", "--help"], "max_content_width": 100}


class Verb(click.Command):
    """A command whose help ends with examples.

    Args:
        examples: Pairs of a command line and its purpose.
        more: Where to read on.
    """

    def __init__(self, *args: Any, examples: Examples = (), more: str = "man rustguard", **kwargs: Any) -> None:
        kwargs.setdefault("context_settings", CONTEXT_SETTINGS)
        super().__init__(*args, **kwargs)
        self.examples = tuple(examples)
        self.more = more

    def format_epilog(self, _: click.Context, formatter: click.HelpFormatter) -> None:
        """Show the examples, and where to read on."""
        write_examples(formatter, self.examples)
        with formatter.section("More"):
            formatter.write_text(self.more)

    def parse_args(self, ctx: click.Context, args: list[str]) -> list[str]:
        """Read the command line. Each error knows its command."""
        try:
            return super().parse_args(ctx, args)
        except click.UsageError as error:
            error.ctx = error.ctx or ctx
            raise

    def invoke(self, ctx: click.Context) -> Any:
        """Run the command. If it fails, its report goes to its state directory."""
        failures.Program.state = ctx.params.get("state")
        return super().invoke(ctx)


class VerbGroup(Verb, click.Group):
    """A `Verb` that has commands of its own."""

    command_class = Verb

    def resolve_command(
        self, ctx: click.Context, args: list[str]
    ) -> tuple[str | None, click.Command | None, list[str]]:
        """Find the command; of one that doesn't exist, name the nearest."""
        if args[0] not in self.commands and not args[0].startswith("-") and not ctx.resilient_parsing:
            raise nearest(args[0], self.commands, ctx)
        return super().resolve_command(ctx, args)


def write_examples(formatter: click.HelpFormatter, examples: Examples) -> None:
    """Write a section of command lines, each with its purpose on the next line."""
    if not examples:
        return
    with formatter.section("Examples"):
        for line, purpose in examples:
            formatter.write(f"{'':{formatter.current_indent}}{line}\n{'':{formatter.current_indent + 4}}{purpose}\n")


def state_option(function: Function) -> Function:
    """Add `--state DIR`; the parameter is `state: Path | None`."""
    return click.option(
        "--state",
        # A member of --group asks the daemon of a directory that only root can read.
        type=click.Path(file_okay=False, readable=False, path_type=Path),
        metavar="DIR",
        envvar="RUSTGUARD_STATE",
        show_envvar=True,
        callback=_check_state,
        shell_complete=complete.directories,
        help="State directory; selects the daemon when several run.",
    )(function)


def _check_state(_: click.Context, parameter: click.Parameter, value: Path | None) -> Path | None:
    # Files stand next to it, named after it.
    if value is not None and value.expanduser().resolve().name == "":
        raise BadValueError(
            f"{str(value)!r} can't be a state directory.", "Choose another: --state DIR", None, parameter
        )
    return value


def sandbox_option(function: Function) -> Function:
    """Add `--no-sandbox`; the parameter is `no_sandbox: bool`."""
    return click.option(
        "--no-sandbox",
        is_flag=True,
        envvar="RUSTGUARD_NO_SANDBOX",
        show_envvar=True,
        help="Keep all privileges, if giving them up is the cause of a fault; `status -v` shows what is given up.",
    )(function)


def json_option(function: Function) -> Function:
    """Add `--json`; the parameter is `as_json: bool`."""
    return click.option("--json", "as_json", is_flag=True, help="Print JSON with a schema number.")(function)


def log_level_option(default: str) -> Callable[[Function], Function]:
    """Return what adds `--log-level`, whose help names the default.

    There is no parameter: `rustguard_py.cli.logs` reads the choice from the context.
    """
    return click.option(
        "--log-level",
        type=OneOf(["debug", "info", "warning", "error"], case_sensitive=False),
        envvar="RUSTGUARD_LOG",
        show_envvar=True,
        expose_value=False,
        callback=_keep_log_level,
        help=f"Least severity that is logged.  [default: {default}]",
    )


def _keep_log_level(context: click.Context, _: click.Parameter, value: str | None) -> None:
    context.meta[LOG_LEVEL] = value


def token_options(function: Function) -> Function:
    """Add `--token` and `--token-file`; the parameters are `token: str | None`, `token_file: Path | None`.

    `rustguard_py.cli.secret.read_token` turns them into the token.
    """
    by_file = click.option(
        "--token-file",
        type=click.Path(dir_okay=False, path_type=Path),
        metavar="FILE",
        help="Read the token from a file.",
    )
    by_value = click.option(
        "--token",
        metavar="SECRET",
        help="The shared token; `-` reads standard input. Others can see a command line, so prefer --token-file, "
        "RUSTGUARD_TOKEN or standard input.",
    )
    return by_value(by_file(function))


def memif_option(function: Function) -> Function:
    """Add `--memif SOCKET`; the parameter is `memif: MemifOptions | None`."""
    return click.option(
        "--memif",
        metavar="SOCKET[,id=N,role=client|server,mode=ip|ethernet,…]",
        callback=_parse_memif,
        help="Exchange packets with another program, such as VPP, over shared memory, in place of an interface "
        "(native engine only).",
    )(function)


def _parse_memif(_: click.Context, parameter: click.Parameter, value: str | None) -> MemifOptions | None:
    if value is None:
        return None
    from rustguard_py.model.memif import parse

    if value == "none":
        raise BadValueError(
            "No memif is kept here, so `none` has no meaning.", "Leave out --memif.", parameter=parameter
        )
    try:
        return parse(value)
    except UsageError as error:
        raise BadValueError(error.message, error.fix, parameter=parameter) from None


def _check_memif(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    """Return the value that the start can keep. It is empty for `none`."""
    if value in (None, "none"):
        return None if value is None else ""
    from rustguard_py.model.memif import absolute

    try:
        return absolute(value)
    except UsageError as error:
        raise BadValueError(error.message, error.fix, parameter=parameter) from None


def offloads_option(function: Function) -> Function:
    """Add `--offloads LIST`; the parameter is `offloads: str | None`."""
    return click.option(
        "--offloads",
        metavar="LIST",
        callback=_check_offloads,
        envvar="RUSTGUARD_OFFLOADS",
        show_envvar=True,
        help="Offloads to use or to leave off, such as `no-udp-segmentation,no-tso` or `none` (not with the kernel's "
        "engine); auto: all but those that this kernel is known to get wrong, and `status -v` says which.",
    )(function)


def _check_offloads(_: click.Context, parameter: click.Parameter, value: str | None) -> str | None:
    if value is not None:
        from rustguard_py.model.offloads import ALL, choose_offloads

        try:
            choose_offloads(value, ALL)
        except UsageError as error:
            raise BadValueError(error.message, error.fix, parameter=parameter) from None
    return value


def data_path_options(function: Callable[..., Any]) -> Callable[..., Any]:
    """Add the options that choose the data path; the parameter is `data_path: DataPath`."""

    @wraps(function)
    def with_data_path(
        *others: Any,
        engine: str,
        queues: str,
        uring: bool,
        xdp: str | None,
        threaded_napi: bool,
        offloads: str | None,
        memif: str | None,
        **named: Any,
    ) -> Any:
        from rustguard_py.data_path import DataPath

        source = click.get_current_context().get_parameter_source("offloads")
        keep = source is click.core.ParameterSource.COMMANDLINE
        data_path = DataPath(engine, queues, uring, xdp, threaded_napi, offloads, keep, memif=memif)
        return function(*others, data_path=data_path, **named)

    by_memif = click.option(
        "--memif",
        metavar="SOCKET[,id=N,role=client|server,mode=ip|ethernet,…]|none",
        callback=_check_memif,
        help="Exchange packets with another program, such as VPP, over shared memory, in place of an interface "
        "(native engine only). That program has the addresses and routes, and the network of this machine stays as "
        "it is. `serve` and `join` keep it; none: an interface again.",
    )
    by_napi = click.option(
        "--threaded-napi",
        is_flag=True,
        help="Let the kernel's engine receive in one thread per peer (refused before Linux 6.16).",
    )
    by_xdp = click.option(
        "--xdp",
        metavar="IFACE",
        help="Let the native engine receive and send UDP with AF_XDP on this interface; where the kernel refuses, "
        "ordinary sockets are used, with a line that says so.",
    )
    by_uring = click.option(
        "--uring",
        is_flag=True,
        help="Let the native engine use io_uring; where the kernel refuses, system calls are used, with a line that "
        "says so.",
    )
    by_queues = click.option(
        "--queues",
        metavar="N|auto",
        callback=_check_queues,
        default="auto",
        show_default=True,
        help="Number of queues of the interface (not with the kernel's engine); auto: by the number of cores.",
    )
    by_engine = click.option(
        "--engine",
        type=OneOf(["auto", "kernel", "native", "portable"]),
        default="auto",
        show_default=True,
        envvar="RUSTGUARD_ENGINE",
        show_envvar=True,
        help="Engine that moves the packets; auto takes the fastest that runs here, and `status -v` says why.",
    )
    return by_engine(by_queues(by_uring(by_xdp(by_memif(by_napi(offloads_option(with_data_path)))))))


def _check_queues(_: click.Context, parameter: click.Parameter, value: str) -> str:
    from rustguard_py.data_path import QUEUES_LIMIT

    if value != "auto" and not (value.isascii() and value.isdigit() and 1 <= int(value[:9]) <= QUEUES_LIMIT):
        message = f"{value!r} is neither a number from 1 to {QUEUES_LIMIT} nor `auto`."
        raise BadValueError(message, "Write it like: --queues 4", parameter=parameter)
    return value
