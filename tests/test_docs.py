"""The documentation is true: generated pages are fresh, links resolve, commands exist."""

import ast
import re
import subprocess
from pathlib import Path

import pytest

from config import PolicySettings
from router import docs
from router.cli import _parser
from router.errors import CODES
from router.serve import greeting

ROOT = Path(__file__).parents[1]
PAGES = [ROOT / "README.md", ROOT / "CHANGELOG.md", *sorted((ROOT / "docs").rglob("*.md"))]


@pytest.mark.parametrize("name", docs.pages())
def test_the_generated_page_is_fresh(name):
    written = (ROOT / "docs" / name).read_text(encoding="utf-8")

    assert written == docs.pages()[name], "run `make docs`"


def test_every_key_has_one_page():
    configuration, policy_keys = docs.configuration(), docs.policy_keys()

    for field in PolicySettings.__struct_fields__:
        assert f"| `{field}` |" in policy_keys
    assert "| `routing` | a policy |" in configuration
    assert "`routing." not in configuration
    for key in ("`fit.NAME.slope`", "`rules[].when.hours`", "`escalation.refusal`"):
        assert f"| {key} |" in policy_keys


def test_the_policy_on_the_page_is_a_sound_one(tmp_path):
    from config import read
    from policies import read_policy

    (example,) = re.findall(r"```yaml\n(.*?)```", docs.policy_keys(), re.DOTALL)
    path = tmp_path / "example.yaml"
    path.write_text(example, encoding="utf-8")
    models = [model.name for model in read(ROOT / "config" / "axion.yaml").models]

    assert read_policy(path, models).rules


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_link_leads_somewhere(page):
    for target in re.findall(r"\]\(([^)#]+)[^)]*\)", page.read_text(encoding="utf-8")):
        if not target.startswith("http"):
            assert (page.parent / target).exists(), target


@pytest.mark.parametrize("page", PAGES, ids=lambda page: page.relative_to(ROOT).as_posix())
def test_every_make_target_and_axion_command_it_names_exists(page):
    text = page.read_text(encoding="utf-8")
    targets = set(re.findall(r"^([a-z-]+):", (ROOT / "Makefile").read_text(), re.MULTILINE))
    commands = set(_parser()._subparsers._group_actions[0].choices)

    for line in re.findall(r"`(make [^`]*)`|^(make .*)$", text, re.MULTILINE):
        words = [word for word in "".join(line).split()[1:] if "=" not in word]
        assert set(words) <= targets, line
    assert set(re.findall(r"`axion ([a-z]+)", text)) <= commands


def test_every_file_that_a_page_names_in_code_exists():
    named = set()
    for page in PAGES:
        named |= set(
            re.findall(
                r"`((?:config|policies|engines|router|tests|docs)/[\w./-]+)`",
                page.read_text(encoding="utf-8"),
            )
        )

    assert named
    assert [name for name in sorted(named) if not (ROOT / name).exists()] == []


def test_the_readme_leads_to_every_page():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    for page in (ROOT / "docs").glob("*.md"):
        assert f"docs/{page.name}" in readme


def test_the_curl_line_in_the_readme_is_the_one_that_the_service_prints():
    from config import read

    settings = read(ROOT / "config" / "quickstart.yaml")
    printed = re.search(r"curl .*\\\n.*", greeting(settings, 8080))[0]
    readme = (ROOT / "README.md").read_text(encoding="utf-8")

    def folded(text):
        return " ".join(text.split())

    assert folded(printed) in folded(readme)


def test_every_endpoint_and_header_is_in_the_api_page(make_service):
    from router.app import create_app

    page = (ROOT / "docs" / "api.md").read_text(encoding="utf-8")

    for path in create_app(make_service()).openapi_schema.paths:
        assert f" {path}`" in page
    for header in ("x-axion-model", "x-axion-reason", "x-axion-decision", "x-request-id"):
        assert header in page


def test_every_error_code_in_the_code_is_in_the_table():
    """No part of the service raises a code that has no status and no meaning."""
    used = {
        node.value
        for package in ("router", "engines", "policies")
        for path in (ROOT / package).glob("*.py")
        for call in ast.walk(ast.parse(path.read_text(encoding="utf-8")))
        if isinstance(call, ast.Call)
        and getattr(call.func, "id", "") in ("ApiError", "Unavailable", "Undecidable", "Refused")
        for node in [*call.args[1:2], *(word.value for word in call.keywords if word.arg == "code")]
        if isinstance(node, ast.Constant)
    }

    assert len(used) > 10
    assert used <= set(CODES)


def test_no_path_of_this_machine_is_committed():
    tracked = subprocess.run(
        ["git", "ls-files"], cwd=ROOT, capture_output=True, text=True, check=True
    )

    for name in tracked.stdout.split():
        path = ROOT / name
        if path.is_file():
            assert str(Path.home()).encode() + b"/" not in path.read_bytes(), name
