"""Types of options' values. What they refuse, they refuse with what to type instead."""

from __future__ import annotations

from typing import Any

import click

from rustguard_py.model.address import LAST_PORT
from rustguard_py.model.defaults import DEFAULT_PORT
from rustguard_py.model.duration import EXAMPLES, parse_duration
from rustguard_py.model.errors import UsageError


class BadValueError(click.BadParameter):
    """A value that is refused.

    Args:
        message: What is wrong, beginning with the value.
        fix: What to type instead.
    """

    def __init__(
        self, message: str, fix: str, context: click.Context | None = None, parameter: click.Parameter | None = None
    ) -> None:
        super().__init__(message, context, parameter)
        self.fix = fix


class Number(click.IntRange):
    """A whole number from `min` to `max`."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the number."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            upper = "" if self.max is None else f" to {self.max}"
            message = f"{value!r} isn't a whole number from {self.min}{upper}."
            raise BadValueError(message, f"Write it like: {_name(param)} {self._example()}", ctx, param) from None

    def _example(self) -> int:
        return DEFAULT_PORT if self.max == LAST_PORT else max(3, int(self.min or 0))


class Duration(click.ParamType[float]):
    """A duration in seconds.

    Args:
        least: The least one, seconds.
        most: The greatest one, or None.
        whole: Whether it has no fraction of a second.
    """

    name = "time"

    def __init__(self, least: float, most: float | None = None, *, whole: bool = False) -> None:
        self._least = least
        self._most = most
        self._whole = whole

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> float:
        """Return the seconds."""
        if isinstance(value, int | float):
            return value
        try:
            seconds = parse_duration(str(value))
        except UsageError as error:
            raise BadValueError(error.message, error.fix, ctx, param) from None
        if self._whole and not float(seconds).is_integer():
            raise BadValueError(
                f"{value!r} isn't a duration in whole seconds.", f"Write it like {EXAMPLES}.", ctx, param
            )
        if seconds < self._least or (self._most is not None and seconds > self._most):
            upper = "" if self._most is None else f" to {self._most:g} s"
            message = f"{value!r} isn't a duration from {self._least:g} s{upper}."
            raise BadValueError(message, f"Write it like {EXAMPLES}.", ctx, param)
        return int(seconds) if self._whole else seconds


class OneOf(click.Choice[str]):
    """One of a few words."""

    def convert(self, value: Any, param: click.Parameter | None, ctx: click.Context | None) -> Any:
        """Return the word."""
        try:
            return super().convert(value, param, ctx)
        except click.BadParameter:
            from difflib import get_close_matches

            words = [str(each) for each in self.choices]
            near = get_close_matches(str(value).lower(), words, n=1)
            fix = f"Did you mean {near[0]}? " if near else ""
            message = f"{value!r} isn't one of the choices."
            raise BadValueError(message, f"{fix}Choose from: {', '.join(words)}.", ctx, param) from None


def _name(parameter: click.Parameter | None) -> str:
    return max(parameter.opts, key=len) if parameter is not None else ""


def nearest(name: str, names: Any, ctx: click.Context) -> click.UsageError:
    """Return the error for a command that doesn't exist; it names the nearest one."""
    from difflib import get_close_matches

    near = get_close_matches(name, list(names), n=1)
    hint = f" Did you mean `{near[0]}`?" if near else f" See: {ctx.command_path} --help"
    return click.UsageError(f"There is no command {name!r}.{hint}", ctx)
