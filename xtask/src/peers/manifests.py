"""Validates rendered manifests against Kubernetes' own schemas, strictly, for the oldest version
that the chart allows and a new one; and compares the chart's pod with that of the kustomize base.

Usage: manifests.py KUSTOMIZED CHART (files of YAML).
"""

import sys

import kubernetes_validate
import yaml

VERSIONS = ("1.28", "1.37")
# Kinds that come with the Prometheus operator: Kubernetes has no schema of them.
OTHERS = {"PodMonitor", "PrometheusRule"}


def documents(path):
    with open(path, encoding="utf-8") as file:
        return [document for document in yaml.safe_load_all(file) if document]


def pod(documents):
    (spec,) = [one["spec"]["template"]["spec"] for one in documents if one["kind"] == "DaemonSet"]
    return spec


def main():
    rendered = [documents(path) for path in sys.argv[1:]]
    for path, manifests in zip(sys.argv[1:], rendered):
        kinds = {one["kind"] for one in manifests}
        if not {"DaemonSet", "ConfigMap", "ServiceAccount", *OTHERS} - {"PrometheusRule"} <= kinds:
            sys.exit(f"{path} has only {kinds}")
        for version in VERSIONS:
            for manifest in manifests:
                if manifest["kind"] not in OTHERS:
                    kubernetes_validate.validate(manifest, version, strict=True)
    ours, chart = map(pod, rendered)
    for key in sorted(ours.keys() | chart.keys()):
        if ours.get(key) != chart.get(key):
            sys.exit(f"the chart's pod has another {key}:\n{chart.get(key)}\nthe base:\n{ours.get(key)}")
    # The validation finds what does not belong there.
    wrong = next(one for one in rendered[0] if one["kind"] == "DaemonSet")
    wrong["spec"]["template"]["spec"]["hostPid"] = True
    for version in VERSIONS:
        try:
            kubernetes_validate.validate(wrong, version, strict=True)
        except kubernetes_validate.ValidationError:
            continue
        sys.exit(f"the schemas of {version} take any key")
    print(f"manifests are valid for Kubernetes {' and '.join(VERSIONS)}; the chart renders the base's pod")


main()
