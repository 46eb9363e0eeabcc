#!/usr/bin/env bash
# Build the real Jaeger, OpenTelemetry Collector, Prometheus (with promtool) and Alertmanager from the Go module proxy, once, into a
# folder outside the work tree; and Helm, Kustomize and kubeconform, with the schema of the OpenTelemetry Operator's Instrumentation.
# Skips one that is already there, built from the same inputs by the same Go, or that STAGETRACE_<NAME> names.
set -euo pipefail

here=$(cd "$(dirname "${BASH_SOURCE[0]}")" && pwd)
cache=${STAGETRACE_CACHE:-${XDG_CACHE_HOME:-$HOME/.cache}/stagetrace}
bin=$cache/bin
jaeger_package=github.com/jaegertracing/jaeger/cmd/jaeger
prometheus_package=github.com/prometheus/prometheus/cmd/prometheus
promtool_package=github.com/prometheus/prometheus/cmd/promtool
alertmanager_package=github.com/prometheus/alertmanager/cmd/alertmanager
builder_package=go.opentelemetry.io/collector/cmd/builder
build_flags=(-mod=readonly -trimpath -buildvcs=false -ldflags "-s -w")

say() { printf '%s\n' "$*"; }

fail() {
  printf '%s\n' "$@" >&2
  exit 1
}

checksum() {
  if command -v sha256sum >/dev/null; then sha256sum; else shasum -a 256; fi | cut -d ' ' -f 1
}

# inputs FILE...: what a binary depends on, as one line.
inputs() {
  {
    go env GOVERSION GOOS GOARCH CGO_ENABLED
    printf '%s\n' "${build_flags[@]}"
    cat "$@"
  } | checksum
}

# is_built NAME STAMP
is_built() {
  [[ -e $bin/$1 && -f $bin/$1.stamp && $(<"$bin/$1.stamp") == "$2" ]]
}

# put NAME STAMP: only a finished binary ever gets the final name. The stamp goes first, so that a binary never has an older one's.
put() {
  rm -f "$bin/$1.stamp"
  mv -f "$work/$1" "$bin/$1"
  printf '%s\n' "$2" >"$work/stamp"
  mv -f "$work/stamp" "$bin/$1.stamp"
  say "built $bin/$1"
}

# is_named VARIABLE
is_named() {
  [[ -n ${!1:-} ]] || return 1
  [[ -x ${!1} ]] || fail "$1 names ${!1}, which cannot be executed: correct it, or unset it to build it."
  say "not built, since $1 names ${!1}"
}

# build_package NAME MODULE PACKAGE HOW_LONG [FLAG...]: of a module that has a folder here.
build_package() {
  local name=$1 module=$2 package=$3 how_long=$4 stamp
  shift 4
  stamp=$(inputs "$here/$module/go.mod" "$here/$module/go.sum")
  if is_built "$name" "$stamp"; then
    say "$name is built already: $bin/$name"
    return
  fi
  say "building $name, about $how_long the first time ..."
  (cd "$here/$module" && go build "${build_flags[@]}" "$@" -o "$work/$name" "$package")
  put "$name" "$stamp"
}

build_otelcol() {
  local stamp version
  stamp=$(inputs "$here/otelcol/go.mod" "$here/otelcol/go.sum" "$here/otelcol/manifest.yaml")
  if is_built otelcol "$stamp"; then
    say "the OpenTelemetry Collector is built already: $bin/otelcol"
    return
  fi
  say "building the OpenTelemetry Collector, about 4 minutes the first time ..."
  version=$(sed -n 's/^  version: *//p' "$here/otelcol/manifest.yaml")
  cp "$here/otelcol/manifest.yaml" "$work/"
  # The builder's own `go mod tidy` also asks for modules that only other modules' tests use, some of which no proxy serves: it
  # writes the source alone (into ./source, by the manifest), and the committed go.mod and go.sum name the modules.
  (cd "$work" && go run "$builder_package@v$version" --config manifest.yaml --skip-compilation --skip-get-modules) \
    >"$work/builder.log" 2>&1 || fail "The OpenTelemetry Collector Builder v$version failed:" "$(tail -n 5 "$work/builder.log")"
  cp "$here/otelcol/go.mod" "$here/otelcol/go.sum" "$work/source/"
  (cd "$work/source" && go build "${build_flags[@]}" -o "$work/otelcol" .)
  put otelcol "$stamp"
}

# copy_crd NAME: of the operator's module, whose CRD has the schema.
copy_crd() {
  local stamp folder module=github.com/open-telemetry/opentelemetry-operator
  stamp=$(inputs "$here/operator/go.mod" "$here/operator/go.sum")
  if is_built "$1" "$stamp"; then
    say "the schema of Instrumentation is here already: $bin/$1"
    return
  fi
  folder=$(cd "$here/operator" && go mod download -json "$module" | sed -n 's/^\t"Dir": "\(.*\)",$/\1/p')
  cp "$folder/config/crd/bases/opentelemetry.io_instrumentations.yaml" "$work/$1"
  put "$1" "$stamp"
}

jaeger=yes otelcol=yes prometheus=yes promtool=yes alertmanager=yes helm=yes kubeconform=yes kustomize=yes
is_named STAGETRACE_JAEGER && jaeger=
is_named STAGETRACE_OTELCOL && otelcol=
is_named STAGETRACE_PROMETHEUS && prometheus=
is_named STAGETRACE_PROMTOOL && promtool=
is_named STAGETRACE_ALERTMANAGER && alertmanager=
is_named STAGETRACE_HELM && helm=
is_named STAGETRACE_KUBECONFORM && kubeconform=
is_named STAGETRACE_KUSTOMIZE && kustomize=

command -v go >/dev/null || fail \
  "The real Jaeger, OpenTelemetry Collector, Prometheus, Alertmanager, Helm, Kustomize and kubeconform are to be built into $bin." \
  "Go is missing: there is no 'go' on the PATH." \
  "Install Go 1.25 or newer (https://go.dev/dl), then run 'make backends' again."

mkdir -p "$bin"
# Beside the final place, so that the renames are within one file system.
work=$(mktemp -d "$cache/build.XXXXXX")
trap 'rm -rf "$work"' EXIT
[[ -z $jaeger ]] || build_package jaeger jaeger "$jaeger_package" "4 minutes and 2 GB of Go's build cache"
[[ -z $otelcol ]] || build_otelcol
# Without the discovery of targets in clouds and clusters, which is most of it.
[[ -z $prometheus ]] || build_package prometheus prometheus "$prometheus_package" "2 minutes" -tags remove_all_sd
[[ -z $promtool ]] || build_package promtool prometheus "$promtool_package" "half a minute" -tags remove_all_sd
# After Prometheus, most of whose packages it has in the same versions: alone it takes a minute.
[[ -z $alertmanager ]] || build_package alertmanager alertmanager "$alertmanager_package" "10 seconds"
[[ -z $helm ]] || build_package helm helm helm.sh/helm/v4/cmd/helm "2 minutes"
[[ -z $kustomize ]] || build_package kustomize kustomize sigs.k8s.io/kustomize/kustomize/v5 "half a minute"
[[ -z $kubeconform ]] || build_package kubeconform kubeconform github.com/yannh/kubeconform/cmd/kubeconform "10 seconds"
copy_crd instrumentation-crd.yaml
