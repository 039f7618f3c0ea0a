#!/usr/bin/env bash
# Checks every manifest: Kubernetes objects against their schema, EgressSelectorConfiguration with
# kube-apiserver's own loader and rules. Needs kubernetes-validate (Python) and Go.
set -euo pipefail
cd "$(dirname "$0")/.."
validate=$(command -v kubernetes-validate || echo target/ci-python/bin/kubernetes-validate)
for file in server/deploy/static-pod.yaml server/deploy/sidecar.yaml agent/deploy/daemonset.yaml; do
  "$validate" --strict "$file"
done
(cd tests/interop && go build -o ../../target/egress ./egress)
target/egress check server/deploy/egress-selector-unix.yaml server/deploy/egress-selector-tcp.yaml
