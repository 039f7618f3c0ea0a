#!/usr/bin/env bash
# Checks every manifest: Kubernetes objects against their schema, EgressSelectorConfiguration with
# kube-apiserver's own loader and rules. Needs kubernetes-validate (Python) and Go.
set -euo pipefail
cd "$(dirname "$0")/.."
validate=$(command -v kubernetes-validate || echo target/ci-python/bin/kubernetes-validate)
for file in server/deploy/static-pod.yaml server/deploy/sidecar.yaml agent/deploy/daemonset.yaml \
  server/deploy/konnectivity/[0-9]-*.yaml; do
  "$validate" --strict "$file"
done

# kube-apiserver's rules want the named files to exist, so they are made for the check.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cargo run --quiet --locked -p towline-pki -- init "$scratch/pki" --cluster check >/dev/null
cargo run --quiet --locked -p towline-pki -- issue client kube-apiserver --dir "$scratch/pki" --out "$scratch/pki" >/dev/null
sed "s#/etc/towline/pki#$scratch/pki#" server/deploy/egress-selector-tcp.yaml >"$scratch/egress-selector-tcp.yaml"
(cd tests/interop && go build -o ../../target/egress ./egress)
target/egress check server/deploy/egress-selector-unix.yaml server/deploy/konnectivity/egress-selector.yaml \
  "$scratch/egress-selector-tcp.yaml"
