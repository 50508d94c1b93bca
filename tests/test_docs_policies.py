"""The tutorial on policies is true: its files, its commands, and what they print."""

import asyncio
import re
import shlex
import subprocess

import httpx
import pytest

from router.app import create_app
from router.cli import main
from router.serve import build, read_configuration
from tests.conftest import ROOT

PAGE = (ROOT / "docs" / "policies.md").read_text(encoding="utf-8").partition("## What a reload")[0]
BLOCKS = re.findall(r"^```(\w*)\n(.*?)^```$", PAGE, re.MULTILINE | re.DOTALL)


def matches(printed, shown):
    """Tell whether a page shows what was printed: `…` is anything, and numbers may differ."""
    parts = re.split(r"(…|(?<=version )[0-9a-f]{12}|(?<=line )\d+|\d[\d.,]*|\s+)", shown.strip())
    pattern = ""
    for part in parts:
        if part == "…":
            pattern += ".*"
        elif re.fullmatch(r"[0-9a-f]{12}", part):
            pattern += "[0-9a-f]{12}"
        elif re.fullmatch(r"\d[\d.,]*", part):
            pattern += re.escape(part) if pattern.endswith("line\\s+") else r"\d[\d.,]*"
        else:
            pattern += r"\s+" if part.isspace() else re.escape(part)
    return re.fullmatch(pattern + r"\s*", printed, re.DOTALL)


class NoLoader:
    def check(self, model, endpoint, body):
        pass


class Reader:
    """Somebody who does what the page says, in a directory of their own."""

    def __init__(self, directory, capsys):
        self.directory = directory
        self._capsys = capsys
        self._service = self._client = None

    async def file(self, text):
        if text.startswith("# my-policy.yaml\n"):
            (self.directory / "my-policy.yaml").write_text(text, encoding="utf-8")
        else:  # a section of my.yaml, which is replaced only in another copy
            assert text.startswith("# my.yaml\nrouting:\n")
            whole = (self.directory / "my.yaml").read_text(encoding="utf-8")
            other = re.sub(r"^routing:\n.*?(?=^pool:)", text, whole, flags=re.DOTALL | re.MULTILINE)
            (self.directory / "other.yaml").write_text(other, encoding="utf-8")
            assert await self.do("axion check other.yaml")

    async def do(self, command):
        """Return what a command prints."""
        words = shlex.split(command)
        if words[:2] == ["axion", "serve"]:
            path = self.directory / words[3]
            self._service = build(read_configuration(path), path, NoLoader())
            app = httpx.ASGITransport(create_app(self._service), raise_app_exceptions=False)
            self._client = httpx.AsyncClient(transport=app)
            return ""
        if words[0] == "axion":
            port = ["--port", "1"] if words[1] == "route" else []
            status = await asyncio.to_thread(main, [*words[1:], *port])
            said = self._capsys.readouterr()
            return said.err if status else said.out
        if words[0] == "curl":
            return await self._curl(words[1:])
        subprocess.run(command, shell=True, check=True, cwd=self.directory)  # noqa: S602
        if self._service:  # it notices by itself; this does not wait for it
            await self._service.chooser.policies.try_reload()
        return ""

    async def _curl(self, words):
        method, body = "GET", None
        while words:
            word = words.pop(0)
            if word == "-X":
                method = words.pop(0)
            elif word == "-d":
                method, body = "POST", words.pop(0)
            else:
                url = word
        return (await self._client.request(method, url, content=body)).text + "\n"


async def test_the_tutorial_does_what_it_says(tmp_path, capsys, monkeypatch):
    (tmp_path / "config").symlink_to(ROOT / "config")
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AXION_CACHE", str(tmp_path / "cache"))
    reader = Reader(tmp_path, capsys)
    printed, compared = "", 0

    for language, text in BLOCKS:
        if language == "yaml":
            await reader.file(text)
        elif language == "sh":
            printed = "".join([await reader.do(command) for command in text.splitlines()])
        else:
            assert matches(printed, text), f"the page shows\n{text}\nand it prints\n{printed}"
            compared += 1

    assert compared == 9
    assert {language for language, _ in BLOCKS} == {"", "sh", "yaml"}


@pytest.mark.parametrize(
    ("printed", "shown", "same"),
    [
        ("a 12 b\n", "a 3.5 b", True),
        ("a 12 c\n", "a 3.5 b", False),
        ("version 0123456789ab;", "version ffffffffffff;", True),
        ("line 3: x", "line 3: x", True),
        ("line 4: x", "line 3: x", False),
        ("a\nmore\nb", "a\n…", True),
        ("a more", "a", False),
    ],
)
def test_what_a_page_shows_is_compared(printed, shown, same):
    assert bool(matches(printed, shown)) is same
