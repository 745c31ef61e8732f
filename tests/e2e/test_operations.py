"""The operations guide: its commands run, every alert has its section, its sizes follow from what was measured."""

from __future__ import annotations

import json
import math
import re
import shutil
import subprocess
from pathlib import Path

import kubernetes_validate
import pytest
import yaml

from scripts.lib.paths import CONFIG, ROOT
from tests.support.deployment.manifests import find, kubectl, pod_spec, render
from tests.support.documents import BLOCK, NUMBER, Step, check, pattern, steps
from tests.support.pictures.golden import DOG

DOCUMENTS = ["operations.md", "kubernetes.md"]
OPERATIONS = (ROOT / "docs" / "operations.md").read_text(encoding="utf-8")


def blocks(document: str) -> list[tuple[str | None, list[Step]]]:
    """The command blocks of a document, each with the reason why it isn't run."""
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    return [(match["why"], steps(match["text"])) for match in BLOCK.finditer(text)]


@pytest.mark.parametrize("document", DOCUMENTS)
def test_a_block_that_is_not_run_says_why(document: str) -> None:
    text = (ROOT / "docs" / document).read_text(encoding="utf-8")
    assert len(blocks(document)) == text.count("```console")
    assert all(re.match(r"it needs a |tests/", why) for why, _ in blocks(document) if why)
    for test in re.findall(r"tests/\w+/\w+\.py", text):
        assert (ROOT / test).is_file(), f"{document} names {test}"


@pytest.mark.skipif(not DOG.is_file(), reason="the guide's picture is the README's")
def test_the_commands_of_the_operations_guide(shell: dict[str, str]) -> None:
    commands = [step for why, block in blocks("operations.md") if not why for step in block]
    start = next(step for step in commands if "serve.py" in step.command)
    # The guide asks a server that runs already; this test's is started first.
    commands.remove(start)
    commands.insert(0, start)
    assert len(commands) >= 6
    for step in commands:
        check(step, shell)


def test_the_commands_of_the_kubernetes_guide() -> None:
    commands = [step for why, block in blocks("kubernetes.md") if not why for step in block]
    for step in commands:
        line = step.command.replace("kubectl", kubectl(), 1)
        result = subprocess.run(["bash", "-c", line], cwd=ROOT, capture_output=True, text=True, check=True)
        assert pattern(step.output).fullmatch(NUMBER.sub("0", result.stdout.strip()))
    assert len(commands) == 1


def test_the_kubernetes_guides_own_folder_works(tmp_path: Path) -> None:
    """The example beside a copy of config/, and the component that it may take as well."""
    shutil.copytree(CONFIG, tmp_path / "config")
    text = (ROOT / "docs" / "kubernetes.md").read_text(encoding="utf-8")
    example, component = re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-cluster").mkdir()
    own = yaml.safe_load(example) | yaml.safe_load(component)
    (tmp_path / "my-cluster" / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    (proxies,) = re.findall(r"```nginx\n(.*?)```", text, re.DOTALL)
    (tmp_path / "my-cluster" / "proxies.conf").write_text(proxies, encoding="utf-8")
    manifests = render(tmp_path / "my-cluster")
    for manifest in manifests:
        kubernetes_validate.validate(manifest, kubernetes_validate.latest_version(), strict=True)
    assert pod_spec(manifests, "densenet")["containers"][0]["image"] == "registry.example.com/densenet:0.1.0"
    ingress = find(manifests, "Ingress", "front-door")["spec"]
    assert ingress["rules"][0]["host"] == "densenet.example.com"
    assert ingress["tls"] == [{"secretName": "densenet-tls"}]
    assert find(manifests, "ConfigMap", "front-door")["data"]["proxies.conf"] == proxies
    metrics = find(manifests, "HorizontalPodAutoscaler", "densenet")["spec"]["metrics"]
    assert [metric["type"] for metric in metrics] == ["Resource", "Pods"]


def test_every_alert_has_its_section() -> None:
    groups = yaml.safe_load((CONFIG / "prometheus" / "alerts.yml").read_text(encoding="utf-8"))["groups"]
    rules = [rule for group in groups for rule in group["rules"]]
    alerts = {rule["alert"]: rule["labels"]["severity"] for rule in rules if "alert" in rule}
    assert len(alerts) >= 4
    sections = dict(re.findall(r"^### (Densenet\w+)\n\n\*(\w+)\*\. .*\n", OPERATIONS, re.MULTILINE))
    assert sections == alerts
    for name in alerts:
        section = OPERATIONS.split(f"### {name}\n")[1].split("\n### ")[0]
        assert "**Check**" in section, f"{name}: what to look at"
        assert "\n* " in section or "\n1. " in section, f"{name}: what to do then"


def test_the_dashboard_has_the_panels_that_the_guide_reads() -> None:
    dashboard = json.loads((CONFIG / "grafana" / "dashboards" / "densenet.json").read_text(encoding="utf-8"))
    titles = {panel["title"] for panel in dashboard["panels"]}
    section = OPERATIONS.split("## Read the dashboard")[1].split("\n## ")[0]
    named = set(re.findall(r"\*\*([^*]+)\*\*|(?<!\*)\*([^*]+)\*(?!\*)|\"([^\"]+)\"", section))
    assert len(named) >= 12
    assert {name for names in named for name in names if name} <= titles
    rows = [panel["title"] for panel in dashboard["panels"]]
    first = rows[rows.index("Is it well?") + 1 : rows.index("Requests")]
    assert re.findall(r"^\| \*\*([^*]+)\*\* \|", section, re.MULTILINE)[: len(first)] == first


def test_every_link_inside_the_guide_leads_to_a_heading() -> None:
    for document in DOCUMENTS:
        links = re.findall(r"\]\(([\w./-]*)#([\w-]+)\)", (ROOT / "docs" / document).read_text("utf-8"))
        assert links, document
        for target, anchor in links:
            text = (ROOT / "docs" / (target or document)).read_text(encoding="utf-8")
            headings = {title.lower().replace(" ", "-") for title in re.findall(r"^#+ (.+)$", text, re.MULTILINE)}
            assert anchor in headings, f"{document} → {target}#{anchor}"


def test_the_sizes_follow_from_what_was_measured() -> None:
    costs = json.loads((ROOT / "docs/benchmarks/costs/costs.json").read_text(encoding="utf-8"))
    measured = {machine["name"]: machine["throughput"] for machine in costs["machines"] if not machine["estimated"]}
    float32 = Path(ROOT / "docs/benchmarks/float32/benchmark.md").read_text(encoding="utf-8")
    best = max(
        float(rate) for rate in re.findall(r"^\| requests/s at concurrency \d+ \| ([\d.]+)", float32, re.MULTILINE)
    )
    capacities = (measured["densenet-pets"], measured["densenet121"], best)
    assert [round(capacity) for capacity in capacities] == [94, 70, 32], "the text above the table names them"
    rows = re.findall(
        r"^\| (\d+) \| ([\d,]+) \| ([\d.]+) MB/s \| (\d+) \| (\d+) \| (\d+) \|$", OPERATIONS, re.MULTILINE
    )
    assert [int(rate) for rate, *_ in rows] == [1, 10, 50, 100, 278]
    for rate, hour, network, *servers in rows:
        assert int(hour.replace(",", "")) == int(rate) * 3600
        assert float(network) == pytest.approx(int(rate) * 0.386, rel=0.05)
        assert [int(n) for n in servers] == [math.ceil(int(rate) / (0.6 * c)) + 1 for c in capacities]
