"""deploy/kubernetes: valid by Kubernetes' and KEDA's own schemas, locked up, and in step with the code."""

from __future__ import annotations

import functools
import json
import os
import re
import shutil
import subprocess
from collections.abc import Iterator
from pathlib import Path
from typing import Any, NoReturn

import jsonschema
import kubernetes_validate
import pytest
import yaml

from towline.bridge.settings import BridgeSettings
from towline.cli.settings_table import collect
from towline.contracts.topics import TOPICS, Topics
from towline.dev.cache import cache_folder
from towline.scheduler.server.stats import METRICS as SCHEDULER_METRICS
from towline.telemetry.metrics import METRICS

pytestmark = pytest.mark.timeout(900)
ROOT = Path(__file__).parents[2]
OVERLAYS = sorted(path.name for path in (ROOT / "deploy" / "kubernetes" / "overlays").iterdir())
KUBERNETES = "1.32"
KEDA = "github.com/kedacore/keda/v2@v2.18.0"
KUSTOMIZE = "sigs.k8s.io/kustomize/kustomize/v5@v5.7.1"
WORKLOADS = {"Deployment", "StatefulSet", "Job"}
FOREIGN_VARIABLES = {
    "GRPC_DEFAULT_SSL_ROOTS_FILE_PATH",
    "OPENAI_API_KEY",
    "OPENAI_MODEL",
    "OTEL_EXPORTER_OTLP_ENDPOINT",
    "OTEL_RESOURCE_ATTRIBUTES",
}
Document = dict[str, Any]


def unavailable(reason: str) -> NoReturn:
    """Skip the test; in CI that is a fault."""
    if os.environ.get("CI"):
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason)


def go(*arguments: str, **environment: str) -> str:
    found = shutil.which("go")
    if found is None:
        unavailable("Go is not installed: it fetches KEDA's schemas, and kustomize if there is no kubectl")
    done = subprocess.run(
        ["env", *(f"{name}={value}" for name, value in environment.items()), found, *arguments],
        capture_output=True,
        text=True,
        timeout=600,
        check=False,
    )
    if done.returncode != 0:
        unavailable(f"go {' '.join(arguments)}: {done.stderr.strip()[-300:] or done.stdout.strip()[-300:]}")
    return done.stdout


@functools.cache
def kustomize() -> list[str]:
    """kubectl's kustomize, else kustomize itself, built once."""
    for command in (["kubectl", "kustomize"], ["kustomize", "build"]):
        if shutil.which(command[0]):
            return command
    folder = cache_folder() / f"kustomize-{KUSTOMIZE.rpartition('@')[2]}"
    if not (folder / "kustomize").exists():
        go("install", KUSTOMIZE, GOBIN=str(folder))
    return [str(folder / "kustomize"), "build"]


@functools.cache
def rendered(overlay: str) -> tuple[Document, ...]:
    folder = ROOT / "deploy" / "kubernetes" / "overlays" / overlay
    done = subprocess.run(
        [*kustomize(), str(folder)], capture_output=True, text=True, timeout=120, check=False
    )
    assert done.returncode == 0, done.stderr
    return tuple(document for document in yaml.safe_load_all(done.stdout) if document)


@functools.cache
def keda_schemas() -> dict[str, Document]:
    folder = Path(json.loads(go("mod", "download", "-json", KEDA))["Dir"]) / "config" / "crd" / "bases"
    return {
        definition["spec"]["names"]["kind"]: strict(version["schema"]["openAPIV3Schema"])
        for path in folder.glob("keda.sh_*.yaml")
        for definition in [yaml.safe_load(path.read_text())]
        for version in definition["spec"]["versions"]
    }


def strict(schema: Any) -> Any:
    """The schema, which no field passes that it does not name."""
    if isinstance(schema, list):
        return [strict(part) for part in schema]
    if not isinstance(schema, dict):
        return schema
    made = {name: strict(part) for name, part in schema.items()}
    is_open = schema.get("x-kubernetes-preserve-unknown-fields") or "additionalProperties" in schema
    # metadata is an object without properties there: Kubernetes knows it.
    if isinstance(schema.get("properties"), dict) and schema.get("type") == "object" and not is_open:
        made["additionalProperties"] = False
    return made


def pods(overlay: str) -> Iterator[tuple[Document, Document]]:
    """Workloads with the specs of their pods."""
    for document in rendered(overlay):
        if document["kind"] in WORKLOADS:
            yield document, document["spec"]["template"]["spec"]


def named(overlay: str, kind: str) -> dict[str, Document]:
    return {d["metadata"]["name"]: d for d in rendered(overlay) if d["kind"] == kind}


def find(node: Any, key: str) -> Iterator[Any]:
    if isinstance(node, dict):
        for name, value in node.items():
            if name == key:
                yield value
            yield from find(value, key)
    elif isinstance(node, list):
        for part in node:
            yield from find(part, key)


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_document_is_valid_by_the_schema_of_its_kind(overlay: str) -> None:
    documents = rendered(overlay)

    for document in documents:
        if document["apiVersion"].startswith("keda.sh/"):
            jsonschema.validate(document, keda_schemas()[document["kind"]])
        else:
            kubernetes_validate.validate(document, KUBERNETES, strict=True)

    assert len(documents) > 20
    assert len(named(overlay, "ScaledObject")) == 2


def test_the_schemas_do_refuse() -> None:
    deployment = json.loads(json.dumps(named("azure", "Deployment")["towline-bridge"]))
    deployment["spec"]["replica"] = 2
    with pytest.raises(kubernetes_validate.ValidationError):
        kubernetes_validate.validate(deployment, KUBERNETES, strict=True)
    scaled = json.loads(json.dumps(named("azure", "ScaledObject")["towline-bridge"]))
    scaled["spec"]["minReplicas"] = 2
    with pytest.raises(jsonschema.ValidationError):
        jsonschema.validate(scaled, keda_schemas()["ScaledObject"])


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_pod_is_locked_up(overlay: str) -> None:
    for workload, pod in pods(overlay):
        name = workload["metadata"]["name"]
        assert pod["automountServiceAccountToken"] is False, name
        assert pod["securityContext"]["runAsNonRoot"] is True, name
        assert pod["securityContext"]["seccompProfile"] == {"type": "RuntimeDefault"}, name
        for container in pod["containers"]:
            assert container["securityContext"] == {
                "allowPrivilegeEscalation": False,
                "readOnlyRootFilesystem": True,
                "capabilities": {"drop": ["ALL"]},
            }, name
            assert container["resources"]["limits"]["memory"], name
            assert container["resources"]["requests"]["cpu"], name
            if workload["kind"] != "Job":
                assert {"startupProbe", "livenessProbe", "readinessProbe"} <= set(container), name


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_secrets_are_there_by_reference_only(overlay: str) -> None:
    assert named(overlay, "Secret") == {}
    settings = {setting.name: setting.is_secret for setting in collect()}
    for _, pod in pods(overlay):
        for container in pod["containers"]:
            for variable in container.get("env", ()):
                assert not (settings.get(variable["name"]) and "value" in variable), variable
    for config in named(overlay, "ConfigMap").values():
        assert not [name for name in config["data"] if settings.get(name)]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_every_variable_and_every_name_exists(overlay: str) -> None:
    known = {setting.name for setting in collect()} | FOREIGN_VARIABLES
    configs = named(overlay, "ConfigMap")
    accounts = named(overlay, "ServiceAccount")
    for _, pod in pods(overlay):
        assert pod.get("serviceAccountName", "default") in {*accounts, "default"}
        for container in pod["containers"]:
            assert {variable["name"] for variable in container.get("env", ())} <= known
            assert {source["configMapRef"]["name"] for source in container.get("envFrom", ())} <= set(configs)
            volumes = {volume["name"] for volume in pod.get("volumes", ())}
            volumes |= {claim["metadata"]["name"] for claim in _claims(overlay)}
            assert {mount["name"] for mount in container.get("volumeMounts", ())} <= volumes
    for config in configs.values():
        assert set(config["data"]) <= known


def _claims(overlay: str) -> list[Document]:
    return [c for s in named(overlay, "StatefulSet").values() for c in s["spec"]["volumeClaimTemplates"]]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_selectors_find_pods_and_policies_open_ports_that_are_there(overlay: str) -> None:
    labels = [workload["spec"]["template"]["metadata"]["labels"] for workload, _ in pods(overlay)]
    names = {label["app.kubernetes.io/name"] for label in labels}
    selected: set[str] = set()
    for kind in ("Service", "PodDisruptionBudget", "NetworkPolicy"):
        for document in named(overlay, kind).values():
            for wanted in find(document["spec"], "app.kubernetes.io/name"):
                assert wanted in names, document["metadata"]["name"]
            for values in find(document["spec"], "values"):
                assert set(values) <= names, document["metadata"]["name"]
            if kind == "PodDisruptionBudget":
                selected |= set(find(document["spec"]["selector"], "app.kubernetes.io/name"))
    assert selected == set(named(overlay, "Deployment"))
    listening = {
        port["containerPort"] for _, pod in pods(overlay) for ports in find(pod, "ports") for port in ports
    }
    for policy in named(overlay, "NetworkPolicy").values():
        for rule in policy["spec"].get("ingress", ()):
            assert {port["port"] for port in rule["ports"]} <= listening, policy["metadata"]["name"]


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_what_is_scaled_exists_and_is_measured_by_names_that_exist(overlay: str) -> None:
    exported = {name.replace(".", "_") for name in METRICS} | set(SCHEDULER_METRICS)
    topics = {Topics().name(spec.name): spec for spec in TOPICS}
    group = BridgeSettings.model_fields["group"].default
    for scaled in named(overlay, "ScaledObject").values():
        assert scaled["spec"]["scaleTargetRef"]["name"] in named(overlay, "Deployment")
        for trigger in scaled["spec"]["triggers"]:
            about = trigger["metadata"]
            if trigger["type"] == "kafka":
                assert topics[about["topic"]].partitions >= scaled["spec"]["maxReplicaCount"]
                suffix = about["topic"].removeprefix(Topics().prefix)
                assert about["consumerGroup"] == f"{Topics().prefix}{group}.{suffix}"
                assert trigger["authenticationRef"]["name"] in named(overlay, "TriggerAuthentication")
            else:
                query = about.get("valueLocation") or about["query"]
                measured = re.findall(r"towline_\w+", query)
                assert set(measured) <= exported
                assert measured


@pytest.mark.parametrize("overlay", OVERLAYS)
def test_applying_the_manifests_again_leaves_the_number_of_pods_to_what_scales_them(overlay: str) -> None:
    scaled = {one["spec"]["scaleTargetRef"]["name"] for one in named(overlay, "ScaledObject").values()}
    assert scaled
    for name, deployment in named(overlay, "Deployment").items():
        assert ("replicas" in deployment["spec"]) == (name not in scaled), name


def test_azure_needs_no_secret_of_the_scheduler() -> None:
    config = next(iter(named("azure", "ConfigMap").values()))["data"]
    assert config["TOWLINE_SCHEDULER_CREDENTIAL"] == "azure"
    assert config["TOWLINE_SCHEDULER_ADDRESS"].startswith("https://")
    for role in ("towline-bridge", "towline-worker"):
        template = named("azure", "Deployment")[role]["spec"]["template"]
        assert template["metadata"]["labels"]["azure.workload.identity/use"] == "true"
        account = named("azure", "ServiceAccount")[template["spec"]["serviceAccountName"]]
        assert account["metadata"]["annotations"]["azure.workload.identity/client-id"]
    assert "azure.workload.identity/use" not in json.dumps(named("azure", "Deployment")["towline-relay"])


def test_one_scheduler_owns_its_volume() -> None:
    scheduler = named("single-node", "StatefulSet")["towline-scheduler"]
    assert scheduler["spec"]["replicas"] == 1
    assert scheduler["spec"]["volumeClaimTemplates"][0]["spec"]["accessModes"] == ["ReadWriteOnce"]
    assert "towline-scheduler" not in named("single-node", "PodDisruptionBudget")
