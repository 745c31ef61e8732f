"""The manifests in ``config/kubernetes``: valid for the cluster, at one with the image, closed where they should be."""

from __future__ import annotations

import copy
import json
import os
import re
import shlex
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import jsonschema
import kubernetes_validate
import pytest
import requests
import yaml

from scripts import serve
from scripts.lib.paths import CONFIG, ROOT
from scripts.lib.server import START_TIMEOUT, STOP_TIMEOUT, read_properties
from tests.support.deployment.images import Engine
from tests.support.deployment.manifests import (
    KUBERNETES,
    Manifest,
    Pod,
    find,
    kserve_schema,
    pod_spec,
    reaches,
    render,
)
from tests.support.machine.ports import free_ports
from tests.support.machine.surroundings import outside
from tests.support.machine.waiting import wait_until
from tests.support.pictures.golden import CHELSEA

OVERLAYS = ["cpu", "gpu"]
KSERVE = ["base", "scale-to-zero", "canary"]
VERSIONS = ["1.32", "1.37"]
"""Of Kubernetes: the oldest with everything that the manifests use, and the newest whose schemas are published."""
KSERVE_PACKAGE = "kserve==0.21.0"


@pytest.fixture(scope="module", params=OVERLAYS)
def overlay(request: pytest.FixtureRequest) -> list[Manifest]:
    return render(KUBERNETES / "overlays" / request.param)


@pytest.fixture(scope="module")
def cpu() -> list[Manifest]:
    return render(KUBERNETES / "overlays" / "cpu")


@pytest.fixture(scope="module")
def schema(tmp_path_factory: pytest.TempPathFactory) -> dict[str, Any]:
    """KServe's schema, from its published package alone, without what it needs to run."""
    folder = tmp_path_factory.mktemp("kserve")
    pip = [sys.executable, "-m", "pip", "install", "--no-deps", "--no-compile", "--ignore-requires-python"]
    done = subprocess.run(
        [*pip, "--quiet", "--target", str(folder), KSERVE_PACKAGE],
        env={**os.environ, **outside()},
        capture_output=True,
        text=True,
        check=False,
    )
    assert done.returncode == 0, done.stderr
    version = kubernetes_validate.latest_version()
    strict = Path(kubernetes_validate.__file__).parent / "kubernetes-json-schema" / f"v{version}-local-strict"
    definitions = (strict / "_definitions.json").read_text(encoding="utf-8")
    local = definitions.replace("/api/_definitions.json#/$defs/", "#/$defs/")
    return kserve_schema(folder / "kserve" / "models", json.loads(local)["$defs"])


# ---- valid ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("version", VERSIONS)
def test_an_overlay_is_valid(overlay: list[Manifest], version: str) -> None:
    assert len(overlay) >= 14
    for manifest in overlay:
        assert kubernetes_validate.validate(manifest, version, strict=True) == version


@pytest.mark.parametrize("version", VERSIONS)
@pytest.mark.parametrize(
    ("kind", "name", "path"),
    [
        pytest.param("Deployment", "densenet", "spec.template.spec.containers.0.readinesProbe", id="readinesProbe"),
        pytest.param(
            "Deployment", "densenet", "spec.template.spec.terminationGracePeriod", id="terminationGracePeriod"
        ),
        pytest.param("HorizontalPodAutoscaler", "densenet", "spec.minReplica", id="minReplica"),
        pytest.param("NetworkPolicy", "densenet", "spec.ingres", id="ingres"),
        pytest.param("PodDisruptionBudget", "densenet", "spec.maxUnavailabel", id="maxUnavailabel"),
    ],
)
def test_a_misspelt_key_is_refused(cpu: list[Manifest], version: str, kind: str, name: str, path: str) -> None:
    manifest = copy.deepcopy(find(cpu, kind, name))
    misspell(manifest, path)
    with pytest.raises(kubernetes_validate.ValidationError, match=path.rpartition(".")[2]):
        kubernetes_validate.validate(manifest, version, strict=True)


def misspell(manifest: Manifest, path: str) -> None:
    """Add a key that doesn't exist at a place such as ``spec.containers.0.imag``."""
    place: Any = manifest
    *keys, last = path.split(".")
    for key in keys:
        place = place[int(key) if isinstance(place, list) else key]
    place[last] = 1


@pytest.mark.parametrize("folder", KSERVE)
def test_an_inference_service_is_valid(schema: dict[str, Any], folder: str) -> None:
    (service,) = render(KUBERNETES / "kserve" / folder)
    assert service["apiVersion"] == "serving.kserve.io/v1beta1"
    jsonschema.Draft202012Validator(schema).validate(service)


@pytest.mark.parametrize(
    "path",
    [
        "spec.predictor.canaryTraficPercent",
        "spec.predictor.minReplica",
        "spec.predictor.containers.0.livenesProbe",
        "spec.predictor.containers.0.securityContext.runAsRoot",
        "metadata.annotation",
    ],
)
def test_a_misspelt_key_of_an_inference_service_is_refused(schema: dict[str, Any], path: str) -> None:
    (service,) = render(KUBERNETES / "kserve" / "base")
    misspell(service, path)
    with pytest.raises(jsonschema.ValidationError, match=path.rpartition(".")[2]):
        jsonschema.Draft202012Validator(schema).validate(service)


def test_knative_takes_the_inference_service() -> None:
    """What Knative's webhook refuses in a pod unless it is configured otherwise; no published schema says it."""
    (service,) = render(KUBERNETES / "kserve" / "base")
    predictor = service["spec"]["predictor"]
    (container,) = predictor["containers"]
    assert not {"securityContext", "nodeSelector", "tolerations", "affinity", "initContainers"} & predictor.keys()
    assert "terminationGracePeriodSeconds" not in predictor
    assert "lifecycle" not in container
    (port,) = container["ports"]
    assert port["name"] in ("http1", "h2c")
    assert all(set(volume) - {"name"} <= {"emptyDir", "configMap", "secret"} for volume in predictor["volumes"])


def test_the_kserve_overlays_change_what_they_say() -> None:
    base, zero, canary = (render(KUBERNETES / "kserve" / folder)[0]["spec"]["predictor"] for folder in KSERVE)
    assert (base["minReplicas"], zero["minReplicas"], canary["minReplicas"]) == (1, 0, 1)
    assert "canaryTrafficPercent" not in base
    assert canary["canaryTrafficPercent"] == 10
    images = [predictor["containers"][0]["image"] for predictor in (base, canary)]
    assert images == ["densenet:0.1.0", "densenet:0.2.0"]


# ---- at one with themselves ----------------------------------------------------------------------


def test_what_is_referred_to_exists(overlay: list[Manifest]) -> None:
    """A selector, port or name that fits nothing is valid, and does nothing."""
    templates = [m["spec"]["template"] for m in overlay if m["kind"] == "Deployment"]
    ports: dict[str, set[str]] = {}
    for service in (m for m in overlay if m["kind"] == "Service"):
        (template,) = (t for t in templates if service["spec"]["selector"].items() <= t["metadata"]["labels"].items())
        named = {port["name"] for container in template["spec"]["containers"] for port in container["ports"]}
        assert {port["targetPort"] for port in service["spec"]["ports"]} <= named
        ports[service["metadata"]["name"]] = {port["name"] for port in service["spec"]["ports"]}
    for rule in find(overlay, "Ingress", "front-door")["spec"]["rules"]:
        for path in rule["http"]["paths"]:
            backend = path["backend"]["service"]
            assert backend["port"]["name"] in ports[backend["name"]]
    for budget in (m for m in overlay if m["kind"] == "PodDisruptionBudget"):
        labels = budget["spec"]["selector"]["matchLabels"]
        assert any(labels.items() <= template["metadata"]["labels"].items() for template in templates)
    for template in templates:
        find(overlay, "ServiceAccount", template["spec"]["serviceAccountName"])
        for constraint in template["spec"]["topologySpreadConstraints"]:
            assert constraint["labelSelector"]["matchLabels"].items() <= template["metadata"]["labels"].items()
        for volume in template["spec"]["volumes"]:
            if "configMap" in volume:
                assert volume["configMap"]["name"] in {
                    m["metadata"]["name"] for m in overlay if m["kind"] == "ConfigMap"
                }
    target = find(overlay, "HorizontalPodAutoscaler", "densenet")["spec"]["scaleTargetRef"]
    assert "replicas" not in find(overlay, target["kind"], target["name"])["spec"]
    namespaces = {m["metadata"].get("namespace") for m in overlay if m["kind"] != "Namespace"}
    assert namespaces == {"densenet"}
    find(overlay, "Namespace", "densenet")


def test_pods_need_no_rights(overlay: list[Manifest]) -> None:
    """What the namespace's level ``restricted`` demands, and more: a read-only root, no token of the cluster."""
    labels = find(overlay, "Namespace", "densenet")["metadata"]["labels"]
    assert labels["pod-security.kubernetes.io/enforce"] == "restricted"
    assert find(overlay, "ServiceAccount", "densenet")["automountServiceAccountToken"] is False
    for spec in (pod_spec(overlay, "densenet"), pod_spec(overlay, "front-door")):
        assert spec["securityContext"]["runAsNonRoot"] is True
        assert spec["securityContext"]["runAsUser"] > 0
        assert spec["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}
        assert spec["automountServiceAccountToken"] is False
        assert not {"hostNetwork", "hostPID", "hostIPC"} & spec.keys()
        for container in spec["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }
            assert container["resources"]["limits"]["memory"] == container["resources"]["requests"]["memory"]
        for volume in spec["volumes"]:
            assert "configMap" in volume or volume["emptyDir"]["sizeLimit"]


def test_a_server_gets_whole_cores(overlay: list[Manifest]) -> None:
    """serve.py rounds the cores down, and starts a worker for each."""
    (container,) = pod_spec(overlay, "densenet")["containers"]
    assert container["resources"]["requests"] == container["resources"]["limits"]
    assert re.fullmatch(r"\d+", container["resources"]["limits"]["cpu"])


def test_the_gpu_overlay_asks_for_a_gpu() -> None:
    manifests = render(KUBERNETES / "overlays" / "gpu")
    spec = pod_spec(manifests, "densenet")
    assert spec["containers"][0]["resources"]["limits"]["nvidia.com/gpu"] == 1
    assert spec["containers"][0]["image"].endswith("-cuda")
    assert spec["containers"][0]["args"][-2:] == ["--weights", "bundled"]
    assert spec["nodeSelector"] == {"nvidia.com/gpu.present": "true"}
    assert spec["tolerations"] == [{"key": "nvidia.com/gpu", "operator": "Exists", "effect": "NoSchedule"}]
    (metric,) = find(manifests, "HorizontalPodAutoscaler", "densenet")["spec"]["metrics"]
    assert metric["type"] == "Pods"
    model = yaml.safe_load((CONFIG / "model-config.gpu.yaml").read_text(encoding="utf-8"))
    assert int(metric["pods"]["target"]["averageValue"]) == model["batchSize"] // 2


def test_there_is_time_to_start_and_to_drain(overlay: list[Manifest]) -> None:
    spec = pod_spec(overlay, "densenet")
    (container,) = spec["containers"]
    waited = container["lifecycle"]["preStop"]["sleep"]["seconds"]
    assert spec["terminationGracePeriodSeconds"] >= waited + STOP_TIMEOUT
    startup = container["startupProbe"]
    assert startup["periodSeconds"] * startup["failureThreshold"] > START_TIMEOUT
    model = yaml.safe_load((CONFIG / "model-config.yaml").read_text(encoding="utf-8"))
    liveness = container["livenessProbe"]
    assert liveness["periodSeconds"] * liveness["failureThreshold"] > model["maxRetryTimeoutInSec"]


def test_tls_is_switched_on_by_one_component(cpu: list[Manifest], tmp_path: Path) -> None:
    folders = {"resources": "overlays/cpu", "components": "components/tls"}
    own = {key: [os.path.relpath(KUBERNETES / folder, tmp_path)] for key, folder in folders.items()}
    (tmp_path / "kustomization.yaml").write_text(yaml.safe_dump(own), encoding="utf-8")
    manifests = render(tmp_path)
    ingress = find(manifests, "Ingress", "front-door")
    assert ingress["spec"].pop("tls") == [{"secretName": "densenet-tls"}]
    assert manifests == cpu


def test_the_way_in_takes_what_the_server_takes(overlay: list[Manifest]) -> None:
    limit = read_properties(CONFIG / "config.properties")["max_request_size"]
    annotations = find(overlay, "Ingress", "front-door")["metadata"]["annotations"]
    assert annotations["nginx.ingress.kubernetes.io/proxy-body-size"] == limit


# ---- at one with the image -----------------------------------------------------------------------


@pytest.fixture(scope="module")
def dockerfile() -> dict[str, list[str]]:
    """The instructions of the Dockerfile's last stage: ``{"USER": ["10001:10001"], …}``."""
    text = re.sub(r"\\\n|^\s*#.*\n", "", (ROOT / "Dockerfile").read_text(encoding="utf-8"), flags=re.MULTILINE)
    instructions: dict[str, list[str]] = {}
    for line in text.splitlines():
        word, _, rest = line.strip().partition(" ")
        if word == "FROM":
            instructions = {}
        if word:
            instructions.setdefault(word, []).append(rest.strip())
    return instructions


def servers() -> Iterator[tuple[str, Manifest, Manifest]]:
    """Every container that runs the project's image, with its pod."""
    for name in OVERLAYS:
        spec = pod_spec(render(KUBERNETES / "overlays" / name), "densenet")
        yield name, spec, spec["containers"][0]
    for name in KSERVE:
        predictor = render(KUBERNETES / "kserve" / name)[0]["spec"]["predictor"]
        yield f"kserve/{name}", predictor, predictor["containers"][0]


@pytest.mark.parametrize(("pod", "container"), [pytest.param(p, c, id=name) for name, p, c in servers()])
def test_a_container_fits_the_dockerfile(dockerfile: dict[str, list[str]], pod: Manifest, container: Manifest) -> None:
    assert "command" not in container, "the image's entry point starts the server"
    entry = json.loads(dockerfile["ENTRYPOINT"][0])
    assert entry[:2] == ["python3", "scripts/serve.py"]
    serve.build_parser().parse_args([*entry[2:], *container.get("args", [])])  # exits at a flag that serve.py lacks

    user = {**pod.get("securityContext", {}), **container["securityContext"]}
    assert dockerfile["USER"] == [f"{user['runAsUser']}:{user['runAsGroup']}"]
    exposed = {int(port) for port in shlex.split(dockerfile["EXPOSE"][0])}
    assert {port["containerPort"] for port in container["ports"]} <= exposed
    assert [mount["mountPath"] for mount in container["volumeMounts"]] == ["/tmp"]
    environment = dict(pair.split("=", 1) for line in dockerfile["ENV"] for pair in shlex.split(line))
    writable = [environment[key] for key in ("DENSENET_RUN", "DENSENET_MODEL_STORE", "DENSENET_CACHE", "HOME")]
    assert all(path == "/tmp" or path.startswith("/tmp/") for path in writable)

    health = re.search(r"CMD (\[.*\])", dockerfile["HEALTHCHECK"][0])
    assert health
    probes = {name: probe["exec"]["command"] for name, probe in container.items() if name.endswith("Probe")}
    assert {"readinessProbe", "livenessProbe"} <= probes.keys()
    for command in probes.values():
        assert command == json.loads(health[1]) == ["python3", "scripts/status.py"]
        assert dockerfile["WORKDIR"] == ["/app"], "the probe's path is relative to it"
        assert (ROOT / command[1]).is_file()


def test_the_front_door_is_that_of_compose(cpu: list[Manifest]) -> None:
    compose = yaml.safe_load((ROOT / "compose.yaml").read_text(encoding="utf-8"))["services"]["front-door"]
    pod = pod_spec(cpu, "front-door")
    (container,) = pod["containers"]
    assert (container["image"], container["command"]) == (compose["image"], compose["command"])
    user = pod["securityContext"]
    assert f"{user['runAsUser']}:{user['runAsGroup']}" == compose["user"]
    assert any(mount["mountPath"] == "/etc/densenet" for mount in container["volumeMounts"])


def test_the_pod_runs_as_it_stands(cpu: list[Manifest], engine: Engine, image: dict[str, Any]) -> None:
    """The image that was built, with the manifest's arguments, user, limits and volumes as flags of podman."""
    pod = pod_spec(cpu, "densenet")
    (container,) = pod["containers"]
    user, security, limits = pod["securityContext"], container["securityContext"], container["resources"]["limits"]
    assert security["readOnlyRootFilesystem"] and not security["allowPrivilegeEscalation"]
    sizes = {volume["name"]: volume["emptyDir"]["sizeLimit"] for volume in pod["volumes"]}
    ports = {port["name"]: port["containerPort"] for port in container["ports"]} | {"management": MANAGEMENT}
    first = free_ports()
    published = {name: first + number for number, name in enumerate(ports)}
    flags = (
        *("--user", f"{user['runAsUser']}:{user['runAsGroup']}", "--read-only", "--cap-drop", "ALL"),
        *("--security-opt", "no-new-privileges", "--cpus", limits["cpu"], "--memory", in_bytes(limits["memory"])),
        *(
            f"--tmpfs={mount['mountPath']}:size={in_bytes(sizes[mount['name']])},mode=0777"
            for mount in container["volumeMounts"]
        ),
        *(f"--publish=127.0.0.1:{published[name]}:{port}" for name, port in ports.items()),
    )
    with engine.running(*container["args"], flags=flags) as running:

        def probe(name: str) -> str:
            done = running.execute(*container[name]["exec"]["command"])
            return done.stdout if done.returncode == 0 else ""

        startup = container["startupProbe"]
        patience = startup["periodSeconds"] * startup["failureThreshold"]
        wait_until(lambda: probe("startupProbe"), patience, running.logs, pause=0.5)
        workers = limits["cpu"]
        assert f"{workers} of {workers} workers READY" in probe("readinessProbe")
        assert probe("livenessProbe")
        url = f"http://127.0.0.1:{published['inference']}/predictions/densenet"
        assert requests.post(url, data=CHELSEA.read_bytes(), timeout=60).status_code == 200
        metrics = requests.get(f"http://127.0.0.1:{published['metrics']}/metrics", timeout=60)
        assert "ts_queue_latency_microseconds" in metrics.text
        with pytest.raises(requests.ConnectionError):
            requests.get(f"http://127.0.0.1:{published['management']}/models", timeout=60)


def in_bytes(quantity: str) -> str:
    """A quantity as Kubernetes writes it, such as ``3Gi``, in bytes."""
    number, unit = re.fullmatch(r"(\d+)(Mi|Gi)", quantity).groups()  # type: ignore[union-attr]
    return str(int(number) * {"Mi": 2**20, "Gi": 2**30}[unit])


# ---- closed --------------------------------------------------------------------------------------

SERVER = {"app.kubernetes.io/name": "densenet", "app.kubernetes.io/component": "server"}
DOOR = {"app.kubernetes.io/name": "densenet", "app.kubernetes.io/component": "front-door"}
INFERENCE, MANAGEMENT, METRICS, GRPC_INFERENCE, GRPC_MANAGEMENT, DOOR_METRICS = range(5000, 5006)
PEOPLE = {
    "front door": Pod("densenet", DOOR),
    "server": Pod("densenet", SERVER),
    "other pod here": Pod("densenet", {"app": "other"}),
    "Prometheus": Pod("monitoring", {"app.kubernetes.io/name": "prometheus"}),
    "other pod of monitoring": Pod("monitoring", {"app.kubernetes.io/name": "grafana"}),
    "false Prometheus": Pod("default", {"app.kubernetes.io/name": "prometheus"}),
    "ingress controller": Pod("ingress-nginx", {"app.kubernetes.io/name": "ingress-nginx"}),
    "false controller": Pod("default", {"app.kubernetes.io/name": "ingress-nginx"}),
    "internet": Pod(),
}
OPEN = {
    ("front door", "server", INFERENCE),
    ("Prometheus", "server", METRICS),
    ("Prometheus", "front door", DOOR_METRICS),
    ("ingress controller", "front door", INFERENCE),
}
"""Everything that anybody may open."""


@pytest.mark.parametrize("target", ["server", "front door"])
@pytest.mark.parametrize("source", PEOPLE)
def test_who_may_speak_with_whom(cpu: list[Manifest], source: str, target: str) -> None:
    policies = [manifest for manifest in cpu if manifest["kind"] == "NetworkPolicy"]
    for port in range(INFERENCE, DOOR_METRICS + 1):
        allowed = reaches(policies, PEOPLE[source], PEOPLE[target], port)
        assert allowed == ((source, target, port) in OPEN), f"{source} → {target}:{port}"


def test_servers_call_nobody_and_the_front_door_dns_alone(cpu: list[Manifest]) -> None:
    policies = [manifest for manifest in cpu if manifest["kind"] == "NetworkPolicy"]
    door, server = PEOPLE["front door"], PEOPLE["server"]
    for anywhere in (Pod("kube-system", {"k8s-app": "kube-dns"}), Pod("default"), Pod()):
        assert not any(reaches(policies, server, anywhere, port, "TCP") for port in (53, 80, 443, 6443))
        assert not any(reaches(policies, door, anywhere, port) for port in (80, 443, 6443))
        assert reaches(policies, door, anywhere, 53, "UDP")


def test_without_policies_everything_would_be_open() -> None:
    """The evaluation above says no because of the policies."""
    assert reaches([], PEOPLE["internet"], PEOPLE["server"], MANAGEMENT)


def test_management_listens_on_loopback(cpu: list[Manifest]) -> None:
    """Closed also where no plug-in enforces policies."""
    (container,) = pod_spec(cpu, "densenet")["containers"]
    assert container["args"] == ["--metrics-host", "0.0.0.0"]
    assert read_properties(CONFIG / "config.properties")["management_address"] == "http://127.0.0.1:5001"


# ---- the autoscaler's metric ---------------------------------------------------------------------

ADAPTER = KUBERNETES / "components" / "queue-length" / "prometheus-adapter.yaml"


def test_the_adapter_makes_the_metric_that_the_autoscaler_asks_for() -> None:
    (rule,) = yaml.safe_load(ADAPTER.read_text(encoding="utf-8"))["rules"]["custom"]
    manifests = render(KUBERNETES / "overlays" / "gpu")
    (metric,) = find(manifests, "HorizontalPodAutoscaler", "densenet")["spec"]["metrics"]
    assert metric["pods"]["metric"]["name"] == rule["name"]["as"]
    assert set(rule["resources"]["overrides"]) == {"namespace", "pod"}


def test_the_clusters_prometheus_has_the_jobs_that_alerts_and_dashboard_ask_about() -> None:
    """Its relabelling is tried on a real Prometheus in test_kubernetes_parts.py."""
    jobs = yaml.safe_load((KUBERNETES / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    alone = yaml.safe_load((CONFIG / "prometheus" / "prometheus.yml").read_text(encoding="utf-8"))["scrape_configs"]
    assert {job["job_name"] for job in jobs} == {job["job_name"] for job in alone}
    for job in jobs:
        assert job["kubernetes_sd_configs"] == [{"role": "pod", "namespaces": {"names": ["densenet"]}}]
