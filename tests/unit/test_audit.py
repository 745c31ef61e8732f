"""The audit: a real pip-audit, beside a vulnerability service of the test's own and the real one."""

from __future__ import annotations

import json
import threading
from collections.abc import Iterator
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest

from scripts import audit as command
from scripts.lib import audit
from scripts.lib.audit import NotAskedError, ignored
from scripts.lib.console import CommandError
from scripts.lib.locks import SOURCES, TORCH_LOCK, lock_of
from tests.support.machine.surroundings import outside

WEAK = "jinja2==2.4.1"
"""Has had known weaknesses since 2014, CVE-2014-1402 among them."""
WEAK_SHA256 = "a90b3f18ccbb50c0a0fb3eaff23d60b7664e3e447c676a2cd21459a257574b38"
ADVISORY = {
    "id": "GHSA-0000-0000-0000",
    "aliases": ["CVE-2014-1402"],
    "summary": "files in a temporary folder",
    "modified": "2014-05-19T00:00:00Z",
    "published": "2014-05-19T00:00:00Z",
    "affected": [
        {
            "package": {"name": "jinja2", "ecosystem": "PyPI"},
            "ranges": [{"type": "ECOSYSTEM", "events": [{"introduced": "0"}, {"fixed": "2.7.2"}]}],
        }
    ],
}


class Service(BaseHTTPRequestHandler):
    """Answers as https://google.github.io/osv.dev/post-v1-query does: about jinja2 one advisory, else none."""

    def do_POST(self) -> None:
        question = json.loads(self.rfile.read(int(self.headers["Content-Length"])))
        body = json.dumps({"vulns": [ADVISORY]} if question["package"]["name"] == "jinja2" else {}).encode()
        self.send_response(200)
        self.send_header("Content-Length", str(len(body)))
        self.end_headers()
        self.wfile.write(body)

    def log_message(self, format: str, *args: object) -> None:
        """Quiet."""


@pytest.fixture
def service(monkeypatch: pytest.MonkeyPatch) -> Iterator[None]:
    with ThreadingHTTPServer(("127.0.0.1", 0), Service) as server:
        thread = threading.Thread(target=server.serve_forever, kwargs={"poll_interval": 0.05})
        thread.start()
        use_osv(f"http://127.0.0.1:{server.server_port}/v1/query", monkeypatch)
        yield
        server.shutdown()
        thread.join()


def use_osv(url: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(audit, "SERVICE", ("--vulnerability-service", "osv", "--osv-url", url))


@pytest.fixture
def checkout(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """Locks with one package each."""
    for name in (*map(lock_of, SOURCES), TORCH_LOCK):
        (tmp_path / name).parent.mkdir(parents=True, exist_ok=True)
        pin(tmp_path / name, "six==1.17.0")
    (tmp_path / "ignore.txt").write_text("# nothing\n")
    monkeypatch.setattr(command, "ROOT", tmp_path)
    monkeypatch.setattr(command, "IGNORE", tmp_path / "ignore.txt")
    return tmp_path


def pin(lock: Path, requirement: str) -> None:
    lock.write_text(f"{requirement} \\\n    --hash=sha256:{'0' * 64}\n")


def run(*arguments: str) -> int:
    return command.main(command.build_parser().parse_args(arguments))


@pytest.mark.usefixtures("service")
def test_without_a_known_weakness_it_says_how_many_were_asked_about(
    checkout: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    assert run() == 0
    assert capsys.readouterr().out == "1 packages asked about, no known weakness; ignored by ignore.txt: 0\n"


@pytest.mark.usefixtures("service")
@pytest.mark.parametrize("lock", ["requirements.lock", "requirements-dev.lock", TORCH_LOCK])
def test_a_known_weakness_in_any_lock_fails(lock: str, checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pin(checkout / lock, WEAK)
    with pytest.raises(CommandError, match=r"1 known weaknesses; pin a version without them and run scripts/lock\.py"):
        run("--if-reachable")
    assert capsys.readouterr().out == "jinja2 2.4.1: CVE-2014-1402 (GHSA-0000-0000-0000), fixed in 2.7.2\n"


@pytest.mark.usefixtures("service")
def test_what_is_ignored_with_a_reason_does_not_count(checkout: Path, capsys: pytest.CaptureFixture[str]) -> None:
    pin(checkout / "requirements.lock", WEAK)
    (checkout / "ignore.txt").write_text("CVE-2014-1402: no template is compiled into a file here\n")
    assert run() == 0
    assert "ignored by ignore.txt: 1" in capsys.readouterr().out


def test_ignoring_takes_a_reason() -> None:
    assert ignored("# why\n\nCVE-1: not reached: see there\n") == {"CVE-1": "not reached: see there"}
    with pytest.raises(CommandError, match="CVE-2 is to be ignored without a reason; write it as CVE-2: REASON"):
        ignored("CVE-2\n")


def test_the_repositorys_own_list_has_reasons() -> None:
    ignored(command.IGNORE.read_text(encoding="utf-8"))


def test_a_service_that_is_not_there_is_no_clean_bill(
    checkout: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    use_osv("http://127.0.0.1:9/v1/query", monkeypatch)
    with pytest.raises(NotAskedError, match=r"pip-audit has no answer: .*refused"):
        run()
    assert run("--if-reachable") == 0
    out = capsys.readouterr().out
    assert out.startswith("known weaknesses: not asked (pip-audit has no answer: ")
    assert "no known weakness" not in out


def test_the_real_service_knows_a_known_weakness_or_is_not_asked(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """PyPI's stand-ins lack the advisories: pip-audit then skips every package, and succeeds."""
    for name, value in outside().items():
        monkeypatch.setenv(name, value)
    lock = tmp_path / "weak.lock"
    lock.write_text(f"{WEAK} --hash=sha256:{WEAK_SHA256}\n", encoding="utf-8")
    try:
        found = audit.audit([lock], [])
    except NotAskedError as error:
        pytest.skip(f"nobody could be asked: {error}")
    assert [line for line in found.weak if line.startswith("jinja2 2.4.1: ")]
