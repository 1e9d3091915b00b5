"""Who may import whom (docs/design.md): an arrow that points back fails here."""

import ast
from collections.abc import Iterator
from pathlib import Path

import pytest

ROOT = Path(__file__).parents[1]
PACKAGE = ROOT / "p2p_mesh"

# Each part and what it may import of ours. `errors` and `core` stand below all others.
BASE = {"errors", "core"}
MAY = {
    "errors": set(),
    "groups": set(),
    "core": {"errors"},
    "journal": BASE,
    "settings": BASE,
    "state": BASE,
    "http": BASE | {"journal"},
    "net": BASE | {"groups", "journal"},
    "serve": BASE | {"journal"},
    "front": BASE | {"journal", "http"},
    "console": BASE | {"journal", "http"},
    "hookspecs": BASE | {"serve.backend", "settings"},
    "plugins": BASE | {"hookspecs", "serve.backend", "settings"},
    "node": BASE
    | {"groups", "journal", "settings", "state", "http", "net", "serve", "front", "console",
       "hookspecs", "plugins"},
    "cli": BASE
    | {"groups", "journal", "settings", "state", "serve", "hookspecs", "plugins", "node"},
}  # fmt: skip
PLUGIN_MAY = {"errors", "groups", "core", "hookspecs", "settings", "serve.backend", "testing"}
COMMANDS_MAY = PLUGIN_MAY | {"cli", "serve"}
"""Commands of a plugin look like all others, and find models as these do."""
CORE_LIBRARIES = {"msgspec", "cryptography"}
STANDARD_BUT_IMPURE = {"asyncio", "logging", "os", "pathlib", "random.SystemRandom", "secrets",
                       "socket", "subprocess", "sys", "threading", "time", "trio"}  # fmt: skip


def modules(folder: Path) -> list[Path]:
    return sorted(path for path in folder.rglob("*.py"))


def imports(path: Path) -> Iterator[str]:
    for node in ast.walk(ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            assert node.level == 0, f"{path}: a relative import"
            module = node.module or ""
            yield from (f"{module}.{alias.name}" for alias in node.names)


def part_of(path: Path) -> str:
    return path.relative_to(PACKAGE).with_suffix("").parts[0]


def ours(path: Path) -> Iterator[str]:
    for name in imports(path):
        if name.startswith("p2p_mesh.") and name != "p2p_mesh.__version__":
            yield name.removeprefix("p2p_mesh.")


def is_in(name: str, allowed: set[str]) -> bool:
    return any(name == one or name.startswith(one + ".") for one in allowed)


@pytest.mark.parametrize("path", modules(PACKAGE), ids=lambda path: str(path.relative_to(ROOT)))
def test_imports_follow_the_layers(path: Path) -> None:
    part = part_of(path)
    if part in (
        "testing",
        "__init__",
        "__main__",
    ):  # testing may import anything; nobody imports it
        return
    assert part in MAY, f"{part} is new: say in this test what it may import"
    wrong = [name for name in ours(path) if not is_in(name, MAY[part] | {part})]
    assert not wrong


@pytest.mark.parametrize("path", modules(ROOT / "plugins"), ids=lambda path: path.name)
def test_plugins_import_their_narrow_part(path: Path) -> None:
    may = COMMANDS_MAY if path.parent.name == "commands" else PLUGIN_MAY
    assert [name for name in ours(path) if not is_in(name, may)] == []


@pytest.mark.parametrize("path", modules(PACKAGE / "core"), ids=lambda path: path.name)
def test_core_is_pure(path: Path) -> None:
    tree = ast.parse(path.read_text())
    assert not any(isinstance(node, ast.AsyncFunctionDef | ast.Await) for node in ast.walk(tree))
    for name in imports(path):
        top = name.split(".")[0]
        assert top not in STANDARD_BUT_IMPURE, f"{name} is impure"
        assert top == "p2p_mesh" or top in CORE_LIBRARIES or top in STANDARD, name


def test_only_net_imports_libp2p() -> None:
    for path in modules(PACKAGE):
        if part_of(path) not in ("net", "testing"):
            assert not any(name.startswith("libp2p") for name in imports(path)), path


def test_every_module_has_its_test() -> None:
    missing = []
    plugins = [(ROOT / f"plugins/{name}/meshnode_{name}", ROOT / f"tests/plugins/{name}")
               for name in ("expert_shards", "flash_moe", "llama_cpp", "openai_endpoint",
                            "skippy")]  # fmt: skip
    for folder, tests in ((PACKAGE, ROOT / "tests"), *plugins):
        for path in modules(folder):
            if path.name in ("__init__.py", "__main__.py"):
                continue
            test = tests / path.relative_to(folder).with_name(f"test_{path.name}")
            if not test.exists():
                missing.append(str(test.relative_to(ROOT)))
    assert missing == []


STANDARD = set(__import__("sys").stdlib_module_names)
