"""The ``console`` blocks of the pages: find the commands, run them, compare or renew what they print.

``python tests/docs/console.py [PAGE ...]`` runs the commands of the pages (all where none is named) and
writes their real output back. In a block:

- a command starts with ``$ tpplanner`` (or ``$ VAR=value tpplanner``, or ``$ cat FILE``); others are not run;
- a trailing ``# exit 1`` states an exit code other than 0, ``# not run`` skips the command,
  ``2>/dev/null`` leaves stderr out;
- the lines below are its output, with stderr or without; ``...`` on a line of its own stands for any lines left
  out. README.md shows stderr only where a command fails.

A fenced block right after ``<!-- file: NAME -->`` is written to NAME before the page's commands run, in an
empty folder of the page's own.
"""

import contextlib
import io
import os
import re
import shlex
import sys
import tempfile
from collections.abc import Iterator
from dataclasses import dataclass, replace
from pathlib import Path
from unittest import mock

ROOT = Path(__file__).resolve().parents[2]
PAGES = (ROOT / "README.md", *sorted((ROOT / "docs").glob("*.md")))

_BLOCK = re.compile(r"^```console\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_FILE = re.compile(r"^<!-- file: (\S+) -->\n+```\w*\n(.*?)^```$", re.DOTALL | re.MULTILINE)
_EXIT = re.compile(r"#\s*exit (\d+)\s*$")
_NOT_RUN = re.compile(r"#\s*not run\b")
_RUNS = re.compile(r"\$ ((\w+=\S+ )*tpplanner|cat)( |$)")
ELISION = "..."


@dataclass(frozen=True, slots=True, kw_only=True)
class Shown:
    """A command as a page shows it: its line(s), and the lines printed below."""

    typed: tuple[str, ...]
    output: tuple[str, ...]

    @property
    def command(self) -> str:
        """The command on one line, without the prompt."""
        return " ".join(line.removesuffix("\\").strip() for line in self.typed).removeprefix("$ ")

    @property
    def is_run(self) -> bool:
        return bool(_RUNS.match(self.typed[0])) and not _NOT_RUN.search(self.command)

    @property
    def exit_code(self) -> int:
        stated = _EXIT.search(self.command)
        return int(stated.group(1)) if stated else 0


def parse_block(text: str) -> list[Shown]:
    """Split the text of one block into its commands."""
    shown: list[Shown] = []
    lines = iter(text.splitlines())
    for line in lines:
        if line.startswith("$ "):
            typed = [line]
            while typed[-1].endswith("\\"):
                typed.append(next(lines))
            shown.append(Shown(typed=tuple(typed), output=()))
        elif shown:
            shown[-1] = replace(shown[-1], output=(*shown[-1].output, line))
    return shown


def commands(page: Path) -> list[Shown]:
    """Return every command of a page's ``console`` blocks."""
    return [shown for block in _BLOCK.findall(page.read_text(encoding="utf-8")) for shown in parse_block(block)]


@contextlib.contextmanager
def folder_of(page: Path) -> Iterator[None]:
    """Work in an empty folder that holds the files that the page shows."""
    with tempfile.TemporaryDirectory() as folder, contextlib.chdir(folder):
        for name, text in _FILE.findall(page.read_text(encoding="utf-8")):
            Path(name).parent.mkdir(parents=True, exist_ok=True)
            Path(name).write_text(text, encoding="utf-8")
        yield


@dataclass(frozen=True, slots=True, kw_only=True)
class Printed:
    """How a command ended, the lines on stdout, and those of both streams in order."""

    code: int
    out: list[str]
    both: list[str]


class _Tee(io.StringIO):
    """Standard output that also goes into ``both``."""

    def __init__(self, both: io.StringIO) -> None:
        super().__init__()
        self._both = both

    def write(self, text: str) -> int:
        self._both.write(text)
        return super().write(text)


def run(shown: Shown) -> Printed:
    """Run a command in this process."""
    words = shlex.split(shown.command, comments=True)
    quiet = "2>/dev/null" in words
    words = [word for word in words if word != "2>/dev/null"]
    if words[0] == "cat":
        text = Path(words[1]).read_text(encoding="utf-8").splitlines()
        return Printed(code=0, out=text, both=text)
    settings = {}
    while "=" in words[0]:
        name, _, value = words.pop(0).partition("=")
        settings[name] = value
    from tpplanner.cli.main import main

    both, code = io.StringIO(), 0
    out = _Tee(both)
    errors = io.StringIO() if quiet else both
    with (
        mock.patch.dict(os.environ, settings),
        contextlib.redirect_stdout(out),
        contextlib.redirect_stderr(errors),
    ):
        try:
            main(words[1:])
        except SystemExit as end:
            code = end.code if isinstance(end.code, int) else 1

    def lines(stream: io.StringIO) -> list[str]:
        return [line.rstrip() for line in stream.getvalue().splitlines()]

    return Printed(code=code, out=lines(out), both=lines(both))


def agrees(shown: tuple[str, ...], printed: list[str]) -> bool:
    """Whether the shown lines are the printed ones; an empty output shows nothing and always agrees."""
    if not any(shown):
        return True
    parts = [re.escape(line.rstrip()) + "\n" if line != ELISION else r"(?:.*\n)*?" for line in shown]
    return re.fullmatch("".join(parts), "".join(line + "\n" for line in printed)) is not None


def renewed(shown: tuple[str, ...], printed: list[str]) -> list[str]:
    """Return the output to show: all of it, or as many lines at either end as the page had around ``...``."""
    if ELISION not in shown:
        return printed
    head = shown.index(ELISION)
    tail = len(shown) - head - 1
    return [*printed[:head], ELISION, *printed[len(printed) - tail :]]


def renew(page: Path) -> None:
    """Write the real output of its commands into a page."""
    def block(match: re.Match[str]) -> str:
        lines = []
        for shown in parse_block(match.group(1)):
            lines += shown.typed
            if shown.is_run:
                printed = run(shown)
                if printed.code != shown.exit_code:
                    raise SystemExit(f"{page.name}: {shown.command}\nexit {printed.code}, stated {shown.exit_code}\n"
                                     + "\n".join(printed.both))
                only_out = page.name == "README.md" and printed.code == 0
                lines += renewed(shown.output, printed.out if only_out else printed.both)
            else:
                lines += shown.output
        return "```console\n" + "\n".join(lines) + "\n```"

    with folder_of(page):
        text = _BLOCK.sub(block, page.read_text(encoding="utf-8"))
    page.write_text(text, encoding="utf-8")


if __name__ == "__main__":
    for chosen in map(Path.resolve, map(Path, sys.argv[1:])) if sys.argv[1:] else PAGES:
        renew(chosen)
