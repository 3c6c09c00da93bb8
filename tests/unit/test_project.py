"""Guards the project's own files: what no reviewer would notice and every user would trip over."""

from __future__ import annotations

import ast
import pathlib
import re
import subprocess
import tomllib

import pytest

ROOT = pathlib.Path(__file__).parents[2]
LINES_MAX = 400
REQUIREMENTS = ("requirements.txt", "requirements-dev.txt", "requirements-build.txt", "requirements-awscli.txt")

# Spelled in pieces, or this file would find itself.
FOREIGN_ADDRESSES = [
    "://".join(("https?", rest))
    for rest in (
        r"[^\s\"']*\bpypi\.",
        r"[^\s\"']*pythonhosted\.",
        r"registry\.npmjs\.",
        r"registry\.yarnpkg\.",
        r"[^\s\"']*\.crates\.io",
        r"proxy\.golang\.",
        r"repo1?\.maven\.",
        r"deb\.debian\.",
        r"[^\s\"'/@]+:[^\s\"'/@]+@(?!localhost\b|127\.)",  # a name and a password in an address of elsewhere
    )
]
MACHINE_PATHS = [
    r"(?<![\w.])/" + rest for rest in (r"root/", r"home/\w+/", r"Users/\w+/", r"work/(main|shared)\b", r"tmp/probe\b")
]


def tracked_files() -> list[pathlib.Path]:
    """What git tracks, and what it would once it is added."""
    answer = subprocess.run(
        ["git", "ls-files", "--cached", "--others", "--exclude-standard", "-z"],
        cwd=ROOT,
        capture_output=True,
        check=True,
        text=True,
    )
    return [path for name in answer.stdout.split("\0") if name and (path := ROOT / name).is_file()]


def own_modules() -> list[pathlib.Path]:
    """The project's Python modules: neither tests nor generated code."""
    rooms = ("model", "worker", "operator", "cli", "bench")
    return [path for room in rooms for path in sorted((ROOT / room).rglob("*.py"))]


def text_of(path: pathlib.Path) -> str:
    """A file's text; "" for one that isn't text."""
    try:
        return path.read_text(encoding="utf-8")
    except UnicodeDecodeError:
        return ""


def test_operator_folder_does_not_shadow_the_standard_library() -> None:
    assert (ROOT / "operator").is_dir()
    assert not (ROOT / "operator" / "__init__.py").exists()


@pytest.mark.parametrize("pattern", FOREIGN_ADDRESSES + MACHINE_PATHS)
def test_no_file_names_a_package_registry_or_a_path_of_one_machine(pattern: str) -> None:
    files = tracked_files()
    assert len(files) > 30
    found = [
        f"{path.relative_to(ROOT)}:{number}: {line.strip()[:100]}"
        for path in files
        for number, line in enumerate(text_of(path).splitlines(), start=1)
        if re.search(pattern, line)
    ]
    assert found == []


@pytest.mark.parametrize(
    "line",
    [
        "--index-url " + "https" + "://pypi" + ".org/simple",
        "https" + "://files.pythonhosted" + ".org/packages/x",
        '"resolved": "' + "https" + "://registry.npmjs" + '.org/x"',
        "see " + "/ro" + "ot/.cache",
        "cd /wo" + "rk/main && make",
        "http" + "://user:secret@mirror",
    ],
)
def test_the_patterns_find_what_they_are_for(line: str) -> None:
    assert any(re.search(pattern, line) for pattern in FOREIGN_ADDRESSES + MACHINE_PATHS)


@pytest.mark.parametrize("name", REQUIREMENTS)
def test_requirements_are_pinned_by_hash_and_name_no_address(name: str) -> None:
    text = (ROOT / name).read_text()
    entries = re.split(r"^(?=\S)", text, flags=re.MULTILINE)[1:]
    assert entries
    for entry in entries:
        assert re.match(r"[a-z0-9][a-z0-9.\-]*==\S+ ", entry), entry
        assert "--hash=sha256:" in entry, entry
    assert "://" not in text
    assert not re.search(r"^\s*--(?!hash=)", text, flags=re.MULTILINE)


@pytest.mark.parametrize("name", REQUIREMENTS[:2])
def test_requirements_pin_every_dependency_of_the_project(name: str) -> None:
    project = tomllib.loads((ROOT / "pyproject.toml").read_text())
    wanted = list(project["project"]["dependencies"])
    if name == "requirements-dev.txt":
        wanted += project["project"]["optional-dependencies"]["demo"] + project["dependency-groups"]["dev"]
    pinned = set(re.findall(r"^([a-z0-9.\-]+)==", (ROOT / name).read_text(), flags=re.MULTILINE))
    names = {re.split(r"[\[<>=!~ ;]", entry)[0].lower().replace("_", "-") for entry in wanted}
    assert names - pinned == set(), "run make requirements"


@pytest.mark.parametrize("path", own_modules(), ids=lambda path: str(path.relative_to(ROOT)))
def test_every_module_says_why_it_exists_and_stays_readable(path: pathlib.Path) -> None:
    text = path.read_text()
    assert ast.get_docstring(ast.parse(text)), "a module's docstring says why it exists"
    assert len(text.splitlines()) <= LINES_MAX, f"over {LINES_MAX} lines: is this one room or two?"


def test_make_lists_every_target() -> None:
    text = (ROOT / "Makefile").read_text()
    phony = set(re.findall(r"^\.PHONY: (.*)$", text, flags=re.MULTILINE)[0].split())
    shown = set(
        re.findall(
            r"^  make ([\w-]+)",
            subprocess.run(["make"], cwd=ROOT, capture_output=True, check=True, text=True).stdout,
            re.M,
        )
    )
    assert shown == phony
