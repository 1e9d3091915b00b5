"""The pages say what the program has: settings, commands, events, error codes, and links."""

import ast
import re
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from p2p_mesh.cli import run
from p2p_mesh.cli.main import _COMMANDS
from p2p_mesh.errors import MeshError
from p2p_mesh.settings import ENVIRONMENT, Settings

ROOT = Path(__file__).parents[1]
PAGES = sorted(
    [*ROOT.glob("*.md"), *(ROOT / "docs").rglob("*.md"), *(ROOT / "specs").rglob("*.md")]
)
SETTINGS = [field.name for field in msgspec.structs.fields(Settings)]
LEVELS = ("debug", "info", "warning", "error")

_LINK = re.compile(r"\]\(([^()\s]+)\)")
_FENCED = re.compile(r"^```.*?^```", re.DOTALL | re.MULTILINE)


def page(name: str) -> str:
    return (ROOT / name).read_text()


def events(tree: ast.AST) -> Iterator[str]:
    """The names that a module gives to what it writes to a journal."""
    for node in ast.walk(tree):
        if isinstance(node, ast.Call) and isinstance(node.func, ast.Attribute):
            if not ast.unparse(node.func.value).endswith("journal"):
                continue
            place = {**dict.fromkeys(LEVELS, 0), "write": 1}.get(node.func.attr)
            if place is not None and isinstance(name := node.args[place], ast.Constant):
                yield str(name.value)


def error_codes(kind: type[MeshError]) -> Iterator[str]:
    yield kind.code
    for below in kind.__subclasses__():
        yield from error_codes(below)


def anchors(text: str) -> set[str]:
    titles = re.findall(r"^#+ (.+)$", _FENCED.sub("", text), re.MULTILINE)
    return {re.sub(r"[^\w\- ]", "", title.lower()).replace(" ", "-") for title in titles}


def test_every_setting_is_an_option_of_run() -> None:
    assert [option.name for option in run.command.params] == SETTINGS


@pytest.mark.parametrize("name", SETTINGS)
def test_setting_stands_in_the_docs(name: str) -> None:
    flag = f"| `--{name.replace('_', '-')}"
    (row,) = [line for line in page("docs/settings.md").splitlines() if line.startswith(flag)]
    assert f"| `{ENVIRONMENT}{name.upper()}` | `{name}` |" in row


@pytest.mark.parametrize("name", sorted(_COMMANDS))
def test_command_stands_in_the_docs(name: str) -> None:
    assert f"`meshnode {name}" in page("docs/operating.md")


def test_every_event_stands_in_the_docs() -> None:
    sources = [path.read_text() for path in (ROOT / "p2p_mesh").rglob("*.py")]
    found = {event for source in sources for event in events(ast.parse(source))}
    listed = set(re.findall(r"^\| `(\w+)` \| (?:debug|info|warning|error)\b",
                            page("docs/operating.md"), re.MULTILINE))  # fmt: skip
    assert "ready" in found
    assert found - listed == set()
    sources += [path.read_text() for path in (ROOT / "plugins").rglob("meshnode_*/*.py")]
    assert {name for name in listed if not any(f'"{name}"' in one for one in sources)} == set()


def test_every_error_code_stands_in_the_spec() -> None:
    text = page("specs/inference/README.md")
    assert [code for code in error_codes(MeshError) if f"| `{code}` |" not in text] == []


@pytest.mark.parametrize("path", PAGES, ids=lambda path: str(path.relative_to(ROOT)))
def test_links_lead_somewhere(path: Path) -> None:
    text = path.read_text()
    for link in _LINK.findall(_FENCED.sub("", text)):
        target, _, anchor = link.partition("#")
        if target.startswith(("http://", "https://", "mailto:")):
            continue
        other = path.parent / target if target else path
        assert other.exists(), link
        assert not anchor or anchor in anchors(other.read_text()), link
