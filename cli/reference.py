"""`python -m rustguard_py.cli.reference`: docs/reference/commands.md, from the same text as `--help`."""

from __future__ import annotations

from collections.abc import Iterable, Iterator
from textwrap import TextWrapper

import click

from rustguard_py.cli import wg
from rustguard_py.cli.app import EXAMPLES, group, new_context, visible_commands
from rustguard_py.cli.verb import Examples

COLUMNS = 100


def page() -> str:
    """Return the page in Markdown, in lines of at most `COLUMNS` characters where the text has spaces."""
    root = new_context(group, "rustguard")
    return "\n".join(_page(root)) + "\n"


def _page(root: click.Context) -> Iterator[str]:
    yield "# Commands"
    yield ""
    yield from _paragraph(
        "For people who type a command or write a script: every command with its arguments, options and examples. "
        "`make reference` writes this page from the text of `--help`."
    )
    yield ""
    yield from _paragraph(
        "Exit codes, files and variables are on [a page of their own](files-and-exit-codes.md), the output of "
        "`--json` is on [another](json.md). Each command has `-h` and `--help`, and `rustguard --version` prints "
        "the version."
    )
    yield from _examples(EXAMPLES)
    for command, context in visible_commands(root):
        yield from _command(command, context)
    yield from _command(wg.command, new_context(wg.command, "rustguard-wg"))


def _command(command: click.Command, context: click.Context) -> Iterator[str]:
    level = "##" if context.parent is None or context.parent.parent is None else "###"
    yield from ("", f"{level} {context.command_path}", "", "```text")
    words = " ".join([context.command_path, *command.collect_usage_pieces(context)])
    yield from _wrap(words, "", "    ")
    yield "```"
    for paragraph in (command.help or "").split("\n\n"):
        yield ""
        yield from _paragraph(paragraph)
    arguments = [each for each in command.params if isinstance(each, click.Argument)]
    options = [each.get_help_record(context) for each in command.params if isinstance(each, click.Option)]
    yield from _list("Arguments", [(_name(each, context), _need(each)) for each in arguments])
    yield from _list("Options", [record for record in options if record is not None])
    yield from _examples(getattr(command, "examples", ()))


def _name(argument: click.Argument, context: click.Context) -> str:
    """Return an argument's name as usage has it, without the brackets that mark it as optional."""
    # A command line of its own may follow, behind dashes.
    name = argument.make_metavar(context).partition(" -- ")[0]
    return name[1:-1] if name.startswith("[") else name


def _need(argument: click.Argument) -> str:
    if argument.required:
        return "required"
    return f"optional, default {argument.default}" if isinstance(argument.default, int) else "optional"


def _list(title: str, entries: Iterable[tuple[str, str]]) -> Iterator[str]:
    lines = [line for name, text in entries for line in _item(name, text)]
    if lines:
        yield from ("", f"{title}:", "", *lines)


def _item(name: str, text: str) -> list[str]:
    # A name is one word to textwrap, so that no line ends within it.
    words = f"`{name.replace(' ', chr(0xA0))}`: {' '.join(text.split())}"
    return [line.replace(chr(0xA0), " ") for line in _wrap(words, "- ", "  ")]


def _examples(examples: Examples) -> Iterator[str]:
    if examples:
        yield from ("", "```sh")
        for line, purpose in examples:
            yield from _wrap(purpose, "# ", "# ")
            yield line
        yield "```"


def _paragraph(text: str) -> list[str]:
    return _wrap(" ".join(text.split()), "", "")


def _wrap(text: str, first: str, others: str) -> list[str]:
    """Break text between words, and begin its first line and the others as given."""
    wrapper = TextWrapper(
        COLUMNS, initial_indent=first, subsequent_indent=others, break_long_words=False, break_on_hyphens=False
    )
    return wrapper.wrap(text)


def main() -> None:
    """Print the page."""
    click.echo(page(), nl=False)


if __name__ == "__main__":
    main()
