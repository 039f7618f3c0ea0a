#!/usr/bin/env bash
# Checks every manifest: Kubernetes objects against their schema, EgressSelectorConfiguration with
# kube-apiserver's own loader and rules. Needs kubernetes-validate (Python) and Go.
set -euo pipefail
cd "$(dirname "$0")/.."
validate=$(command -v kubernetes-validate || echo target/ci-python/bin/kubernetes-validate)
# All there are, but the two that are no objects of the API: a policy and the egress selections (below).
for file in {server,agent}/deploy/*.yaml server/deploy/konnectivity/*.yaml; do
  case "$file" in */policy.yaml | */egress-selector*.yaml) continue ;; esac
  "$validate" --strict "$file"
done

# kube-apiserver's rules want the named files to exist, so they are made for the check.
scratch=$(mktemp -d)
trap 'rm -rf "$scratch"' EXIT
cargo run --quiet --locked -p towline-pki -- init "$scratch/pki" --cluster check >/dev/null
cargo run --quiet --locked -p towline-pki -- issue client kube-apiserver --dir "$scratch/pki" --out "$scratch/pki" >/dev/null
sed "s#/etc/towline/pki#$scratch/pki#" server/deploy/egress-selector-tcp.yaml >"$scratch/egress-selector-tcp.yaml"

# What `towline-pki export` writes, by the same rules.
pki() { cargo run --quiet --locked -p towline-pki -- "$@"; }
client="$scratch/pki/client-kube-apiserver"
pki export secret towline-server --namespace kube-system --cert "$client.crt" --key "$client.key" \
  --ca "$scratch/pki/trust/agents.pem" --out "$scratch/tls.yaml" >/dev/null
pki export secret towline-files --from "$client.key" --from "$client.crt" --out "$scratch/opaque.yaml" >/dev/null
pki export config-map towline-trust --namespace kube-system --from "$scratch/pki/trust/agents.pem" \
  --out "$scratch/trust.yaml" >/dev/null
for file in tls opaque trust; do "$validate" --strict "$scratch/$file.yaml"; done
pki export egress-selector --unix /run/towline/door.sock --out "$scratch/egress-uds.yaml" >/dev/null
pki export egress-selector --unix /run/towline/door.sock --grpc --selections cluster,controlplane,etcd \
  --out "$scratch/egress-grpc.yaml" >/dev/null
pki export egress-selector --url https://127.0.0.1:8090 --ca "$scratch/pki/trust/servers.pem" \
  --client-cert "$client.crt" --client-key "$client.key" --out "$scratch/egress-tcp.yaml" >/dev/null
(cd tests/interop && go build -o ../../target/egress ./egress)
target/egress check server/deploy/egress-selector-unix.yaml server/deploy/konnectivity/egress-selector.yaml \
  "$scratch/egress-selector-tcp.yaml" "$scratch"/egress-{uds,grpc,tcp}.yaml
