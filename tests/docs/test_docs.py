"""The pages are true: commands run and print what is shown, examples hold, links and names resolve."""

import doctest
import importlib
import re
import sys
from pathlib import Path

import pytest

sys.path.append(str(Path(__file__).parent))

import console

ROOT = console.ROOT
MODEL = ROOT / "docs" / "model.md"
OWN_PAGES = ("model", "profiles", "glossary", "cli", "limits")

_LINK = re.compile(r"(?<!!)\[[^\]]*\]\(([^)\s]+)\)")
_HEADING = re.compile(r"^#+ +(.+?)\s*$", re.MULTILINE)
_FENCE = re.compile(r"^```.*?^```$", re.DOTALL | re.MULTILINE)
_DOTTED = re.compile(r"`(tpplanner(?:\.\w+)+)`")
_PATH = re.compile(r"tpplanner/[\w/]+\.py")

by_page = pytest.mark.parametrize("page", console.PAGES, ids=lambda page: page.stem)


def prose(page):
    return _FENCE.sub("", page.read_text(encoding="utf-8"))


def anchors(page):
    """Anchors as GitHub makes them: lower case, punctuation dropped, blanks to hyphens."""
    plain = (re.sub(r"[^\w\- ]", "", heading.lower()) for heading in _HEADING.findall(prose(page)))
    return {heading.replace(" ", "-") for heading in plain}


@by_page
def test_every_command_ends_as_stated_and_prints_what_is_shown(page):
    with console.folder_of(page):
        for shown in filter(lambda shown: shown.is_run, console.commands(page)):
            printed = console.run(shown)
            told = f"{shown.command}\n" + "\n".join(printed.both)
            assert printed.code == shown.exit_code, told
            assert console.agrees(shown.output, printed.both) or console.agrees(shown.output, printed.out), (
                f"{told}\nis not what the page shows; look at it, then renew the page: "
                f"python tests/docs/console.py {page.relative_to(ROOT)}")


@pytest.mark.parametrize("name", OWN_PAGES)
def test_pages_exist_and_cli_pages_show_commands(name):
    page = ROOT / "docs" / f"{name}.md"
    assert page.is_file()
    if name in ("model", "profiles", "cli"):
        assert any(shown.is_run for shown in console.commands(page))


@by_page
def test_python_examples_hold(page):
    result = doctest.testfile(str(page), module_relative=False, encoding="utf-8",
                              optionflags=doctest.NORMALIZE_WHITESPACE)
    assert result.failed == 0


@by_page
def test_internal_links_resolve(page):
    for target in _LINK.findall(prose(page)):
        if re.match(r"\w+:", target):
            continue
        path, _, anchor = target.partition("#")
        other = (page.parent / path).resolve() if path else page
        assert other.exists(), f"{page.name} links to {target}"
        if anchor and other.suffix == ".md":
            assert anchor in anchors(other), f"{page.name} links to {target}; {other.name} has {sorted(anchors(other))}"


@by_page
def test_paths_of_modules_exist(page):
    for path in _PATH.findall(page.read_text(encoding="utf-8")):
        assert (ROOT / path).is_file(), f"{page.name} names {path}"


@by_page
def test_dotted_names_exist(page):
    for dotted in _DOTTED.findall(prose(page)):
        parts = dotted.split(".")
        for cut in range(len(parts), 0, -1):
            try:
                found = importlib.import_module(".".join(parts[:cut]))
            except ModuleNotFoundError:
                continue
            for part in parts[cut:]:
                assert hasattr(found, part), f"{page.name} names {dotted}, which has no {part}"
                found = getattr(found, part)
            break


def test_every_term_module_is_in_the_model_page():
    text = MODEL.read_text(encoding="utf-8")
    for path in sorted((ROOT / "tpplanner" / "cost").glob("*.py")):
        if path.stem != "__init__":
            assert f"tpplanner.cost.{path.stem}." in text, f"docs/model.md does not name {path.name}"


def test_every_flag_is_in_the_cli_page():
    from tpplanner.cli.main import cli

    def flags(command):
        for option in command.params:
            yield from (name for name in option.opts if name.startswith("--"))
        for inner in getattr(command, "commands", {}).values():
            yield from flags(inner)

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    missing = sorted({flag for flag in flags(cli) if f"`{flag}" not in text and f" {flag}`" not in text})
    assert not missing


def test_every_prediction_column_is_in_the_cli_page():
    from tpplanner.io.cases import LOADS, OPTIONAL, PREDICTION_COLUMNS, REQUIRED

    text = (ROOT / "docs" / "cli.md").read_text(encoding="utf-8")
    assert [c for c in (*REQUIRED, *LOADS, *OPTIONAL, *PREDICTION_COLUMNS) if f"`{c}`" not in text] == []


def test_every_profile_field_is_in_the_profiles_page():
    from tpplanner.io.profile_engine import SCHEMA as ENGINE
    from tpplanner.io.profile_hardware import SCHEMA as MACHINE

    text = (ROOT / "docs" / "profiles.md").read_text(encoding="utf-8")
    last = {name.split(".")[-1] for schema in (MACHINE, ENGINE) for name in schema.names()}
    assert sorted(name for name in last if not re.search(rf"\b{re.escape(name)}\b", text)) == []


@pytest.mark.parametrize(("shown", "printed", "good"), [
    (("a", "b"), ["a", "b"], True),
    (("a", "c"), ["a", "b"], False),
    (("a", "...", "d"), ["a", "b", "c", "d"], True),
    (("a", "...", "d"), ["a", "b", "c"], False),
    ((), ["a"], True),
])
def test_comparison_of_output(shown, printed, good):
    assert console.agrees(shown, printed) is good


def test_parsing_of_a_block():
    text = "$ tpplanner models \\\n    x  # exit 2\nout\n$ make demo\n$ tpplanner profiles list # not run\n"
    first, other, skipped = console.parse_block(text)
    assert (first.command, first.exit_code, first.output) == ("tpplanner models x  # exit 2", 2, ("out",))
    assert first.is_run
    assert not other.is_run
    assert not skipped.is_run
