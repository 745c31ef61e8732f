"""Every command block of the README, run in order as it stands, and its output compared.

The pictures' folder starts with a copy of the Samoyed where there is one, since there may be no internet.
"""

from __future__ import annotations

import re

import pytest

from scripts.lib.paths import ROOT
from tests.support.documents import BLOCK, check, steps
from tests.support.pictures.golden import DOG

README = (ROOT / "README.md").read_text(encoding="utf-8")
BLOCKS = [(match["why"], steps(match["text"])) for match in BLOCK.finditer(README)]


def test_the_readme_says_why_a_block_is_not_run() -> None:
    assert [why.split(";")[0] for why, _ in BLOCKS if why] == [
        "it needs the reader's own pictures",
        "it uses fixed ports",
        "it needs a Docker engine",
    ]
    assert sum(len(block) for why, block in BLOCKS if not why) >= 10


@pytest.mark.skipif(not DOG.is_file(), reason="the README's picture is neither in ../shared nor fetched by a test")
def test_the_readme_does_what_it_says(shell: dict[str, str]) -> None:
    for step in (step for why, block in BLOCKS if not why for step in block):
        check(step, shell)


def test_every_link_in_the_documents_leads_somewhere() -> None:
    documents = [*ROOT.glob("*.md"), *(ROOT / "docs").glob("*.md")]
    assert len(documents) >= 20
    for document in documents:
        for target in re.findall(r"\]\(([^)#]+)[^)]*\)", document.read_text(encoding="utf-8")):
            if not target.startswith("http"):
                assert (document.parent / target).exists(), f"{document.name} links to {target}"
