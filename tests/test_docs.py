"""What the documentation lists is what there is."""

from __future__ import annotations

import re
from pathlib import Path

import pytest

from fairwater.settings import KEYS, Key

CHECKOUT = Path(__file__).parent.parent


@pytest.mark.parametrize("key", KEYS, ids=lambda key: key.name)
def test_each_setting_is_documented_with_its_default(key: Key) -> None:
    shown = key.show(key.default)
    default = shown if shown.startswith("(") else f"`{shown}`"
    assert f"| `{key.name}` | {default} | {key.about} |" in (CHECKOUT / "docs/configuration.md").read_text()


def test_no_setting_is_documented_that_does_not_exist() -> None:
    documented = re.findall(r"^\| `([a-z_.]+)`", (CHECKOUT / "docs/configuration.md").read_text(), re.MULTILINE)
    assert set(documented) == {key.name for key in KEYS}


@pytest.mark.parametrize(
    "document",
    ["README.md", "CONTRIBUTING.md", *sorted(f"docs/{path.name}" for path in (CHECKOUT / "docs").glob("*.md"))],
)
def test_each_link_between_documents_leads_somewhere(document: str) -> None:
    file = CHECKOUT / document
    links = [link for link in re.findall(r"\]\(([^)]+)\)", file.read_text()) if "://" not in link]
    assert [link for link in links if not (file.parent / link.partition("#")[0]).exists()] == []


@pytest.mark.parametrize("document", ["README.md", "CONTRIBUTING.md"])
def test_each_make_target_that_is_named_exists(document: str) -> None:
    targets = set(re.findall(r"^([a-z-]+)%?:", (CHECKOUT / "Makefile").read_text(), re.MULTILINE))
    named = set(re.findall(r"(?:^|`)make ([a-z-]+)", (CHECKOUT / document).read_text(), re.MULTILINE))
    assert named
    assert named <= targets | {f"bench-{path.stem}" for path in (CHECKOUT / "bench").glob("*.py")}


def test_the_rows_of_the_agents_api_are_those_of_the_port() -> None:
    rows = re.compile(r"/v1/[a-z]+[^ `|]*")
    port = (CHECKOUT / "src/fairwater/ports/agent.py").read_text().partition('"""\n\nfrom')[0]
    assert set(rows.findall((CHECKOUT / "docs/agent-api.md").read_text())) == set(rows.findall(port))
