"""The Kubernetes manifests of deploy/, and their check by the schemas that the package kubernetes-validate holds."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import yaml
from trial import expect

FOLDER = Path(__file__).parents[2] / "deploy"
Document = dict[str, Any]


def all_documents() -> Iterator[tuple[Path, Document]]:
    """Every document of every manifest, with its file."""
    for file in sorted(FOLDER.glob("*.yaml")):
        text = file.read_text()
        expect("<<:" not in text, f"{file.name}: not every tool reads merge keys")
        for document in yaml.safe_load_all(text):
            yield file, document


def validate(document: Document) -> str:
    """Check a document; return by what. Raises NotOk with what is wrong."""
    import kubernetes_validate

    found = problems(document)
    expect(not found, f"{document['kind']} {document['metadata']['name']}: {found}")
    version = kubernetes_validate.latest_version()
    return f"pod templates by {version}" if document["kind"] == "RayJob" else f"schema {version}"


def problems(document: Document) -> str:
    """What the schema of the newest Kubernetes says against a document; empty for nothing.

    The schema of a RayJob comes with KubeRay, not with Kubernetes. Of it, the keys that ncflow uses and the templates
    of pods are checked.
    """
    import kubernetes_validate

    checked = [document] if document["kind"] != "RayJob" else _pods_of_ray(document)
    try:
        for each in checked:
            kubernetes_validate.validate(each, kubernetes_validate.latest_version(), strict=True)
    except kubernetes_validate.ValidationError as error:
        return str(error)
    return ""


def pod_specs() -> Iterator[tuple[Path, Document]]:
    """The specification of every pod, with its file."""
    for file, document in all_documents():
        if document["kind"] == "RayJob":
            yield from ((file, pod["spec"]) for pod in _pods_of_ray(document))
        elif "template" in document["spec"]:
            yield file, document["spec"]["template"]["spec"]


def containers() -> list[Document]:
    return [each for _, spec in pod_specs() for each in spec["containers"]]


def claims() -> set[str]:
    """The names of all volumes that a manifest claims."""
    return {each["metadata"]["name"] for _, each in all_documents() if each["kind"] == "PersistentVolumeClaim"}


def _pods_of_ray(job: Document) -> list[Document]:
    """A RayJob's templates, as pods. Raises NotOk for keys that KubeRay's version v1 does not have."""
    spec = job["spec"]
    expect(job["apiVersion"] == "ray.io/v1", job["apiVersion"])
    expect(spec.keys() <= {"entrypoint", "shutdownAfterJobFinishes", "rayClusterSpec"}, f"keys {[*spec]}")
    head, workers = spec["rayClusterSpec"]["headGroupSpec"], spec["rayClusterSpec"]["workerGroupSpecs"]
    expect(head.keys() == {"rayStartParams", "template"}, f"keys of the head {[*head]}")
    sizes = {"groupName", "replicas", "minReplicas", "maxReplicas"}
    for group in workers:
        expect(group.keys() == {*sizes, "rayStartParams", "template"}, f"keys of a group {[*group]}")
        expect(group["minReplicas"] <= group["replicas"] <= group["maxReplicas"], "replicas")
    for group in (head, *workers):
        wrong = {key: value for key, value in group["rayStartParams"].items() if not isinstance(value, str)}
        expect(not wrong, f"rayStartParams are strings, not {wrong}")
        expect(group["template"].keys() <= {"metadata", "spec"}, f"keys of a template {[*group['template']]}")
    named = {"metadata": {"name": "pod"}}
    return [{"apiVersion": "v1", "kind": "Pod", **named, **group["template"]} for group in (head, *workers)]
