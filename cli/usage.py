"""Errors of command lines, in our own words: what is wrong, and what to type."""

from __future__ import annotations

import re

import click
from click.core import ParameterSource

from rustguard_py.cli.values import BadValueError
from rustguard_py.model.errors import UsageError

# How click ends what it says of a path, and what to do about it.
_PATHS = {
    " is a directory.": "Name a file.",
    " is a file.": "Name a directory.",
    " does not exist.": "Check the path: a file has to be there.",
    " is not readable.": "Run it as a user who can read it, or name another one.",
    " is not writable.": "Run it as a user who can write it, or name another one.",
}
_TOO_MANY = re.compile(r"Got unexpected extra arguments? \((.*)\)")


def explain(error: click.UsageError) -> UsageError:
    """Return a command line's error with its fix and the usage of the command."""
    context = error.ctx
    message, fix = _words(error, context)
    lines = [fix] if fix else []
    if context is not None:
        lines += [context.get_usage(), f"See: {context.command_path} --help"]
    return UsageError(message, "\n".join(lines))


def asks_for_help(error: click.UsageError) -> str | None:
    """Return the help of a group that was called without a command, or None for an error.

    click prints it by itself before version 8.2, and raises it as an error since.
    """
    kind = getattr(click.exceptions, "NoArgsIsHelpError", None)
    return error.ctx.get_help() if kind is not None and isinstance(error, kind) and error.ctx is not None else None


def _words(error: click.UsageError, context: click.Context | None) -> tuple[str, str]:
    if isinstance(error, click.NoSuchOption):
        near = error.possibilities or ()
        return f"There is no option {error.option_name}.", f"Did you mean {' or '.join(near)}?" if near else ""
    if isinstance(error, click.MissingParameter):
        return f"{_name(error.param, context)} is missing.", ""
    if isinstance(error, click.BadOptionUsage):
        option = _option(error.option_name, context)
        if option is not None and option.is_flag:
            return f"{error.option_name} takes no value.", f"Leave the value out: {error.option_name}"
        metavar = option.metavar if option is not None and option.metavar else "VALUE"
        return f"{error.option_name} needs a value.", f"Write it like: {error.option_name} {metavar}"
    if isinstance(error, click.BadParameter):
        name = _name(error.param, context)
        fix = error.fix if isinstance(error, BadValueError) else _fix_of_a_path(error)
        return f"{name}: {error.message}" if name else error.message, fix
    if extra := _TOO_MANY.fullmatch(error.message):
        return f"The command takes no further word, and there is: {extra[1]}", ""
    return error.message, ""


def _fix_of_a_path(error: click.BadParameter) -> str:
    if not isinstance(error.param, click.Parameter) or not isinstance(error.param.type, click.Path):
        return ""
    return next((fix for end, fix in _PATHS.items() if error.message.endswith(end)), "")


def _name(parameter: click.Parameter | None, context: click.Context | None) -> str:
    """Return what the user gave a value by: an option, a variable of the environment, or the name of an argument."""
    if parameter is None:
        return ""
    if context is not None and context.get_parameter_source(parameter.name or "") is ParameterSource.ENVIRONMENT:
        return str(parameter.envvar)
    if isinstance(parameter, click.Argument):
        return (parameter.metavar or parameter.human_readable_name).strip("[]")
    return max(parameter.opts, key=len)


def _option(name: str, context: click.Context | None) -> click.Option | None:
    found = [] if context is None else [each for each in context.command.params if name in each.opts]
    return next((each for each in found if isinstance(each, click.Option)), None)
