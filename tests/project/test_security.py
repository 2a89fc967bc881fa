"""Every claim of docs/security.md names a test that is there."""

import re

import pytest
from documented import ROOT

PAGE = ROOT / "docs" / "security.md"
NAMED = sorted(set(re.findall(r"`(tests/[\w/]+\.py)(?:::(\w+))?`", PAGE.read_text(encoding="utf-8"))))


@pytest.mark.parametrize(("file", "test"), NAMED)
def test_a_claim_s_test_is_there(file, test):
    text = (ROOT / file).read_text(encoding="utf-8")
    assert not test or re.search(rf"^def {test}\(", text, re.MULTILINE)


def test_every_claim_names_one():
    """Each paragraph and each point between "Files" and "What is not defended"."""
    claims = PAGE.read_text(encoding="utf-8").split("\n## Files\n")[1].split("\n## What is not defended")[0]
    parts = re.split(r"\n(?=- )|\n\n", claims)
    untested = [part for part in parts if part.strip() and not part.startswith(("#", "\n#")) and "`tests/" not in part]
    allowed = ("`--trust` is for all",)
    assert [part for part in untested if not part.strip().startswith(allowed)] == []


def test_the_policy_leads_to_the_page():
    assert "docs/security.md" in (ROOT / "SECURITY.md").read_text(encoding="utf-8")
