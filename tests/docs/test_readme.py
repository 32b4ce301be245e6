"""The README shows what the commands print, to the letter."""

import re
import shlex
from pathlib import Path

import pytest

from tpplanner.cli.main import main

README = Path(__file__).parents[2] / "README.md"
EXAMPLES = re.findall(r"^\$ tpplanner (.*)\n((?:.*\n)*?)```", README.read_text(), flags=re.M) if README.exists() else []


@pytest.mark.parametrize(("command", "shown"), EXAMPLES, ids=[c[:40] for c, _ in EXAMPLES])
def test_readme_shows_the_real_output(capsys, command, shown):
    with pytest.raises(SystemExit) as stop:
        main(shlex.split(command))
    assert not stop.value.code
    assert [line.rstrip() for line in capsys.readouterr().out.splitlines()] == [line.rstrip() for line in shown.splitlines()]


def test_readme_shows_the_real_notes(capsys):
    with pytest.raises(SystemExit):
        main(shlex.split(EXAMPLES[0][0]))
    for note in capsys.readouterr().err.splitlines():
        assert note in README.read_text()
