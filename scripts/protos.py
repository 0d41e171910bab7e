"""Generates `orchestrator/api/v1` from `protos/` and checks the protos: lint, compatibility, drift.

The proto package is `orchestrator.api.v1` and lives in the folder of that name, so protoc's output already
has the right import paths and nothing is rewritten afterwards.
"""

from __future__ import annotations

import filecmp
import os
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
PROTOS = ROOT / "protos"
PACKAGE = Path("orchestrator/api/v1")
GENERATED_SUFFIXES = ("_pb2.py", "_pb2.pyi", "_pb2_grpc.py", "_pb2_grpc.pyi")
BIN = Path(sys.executable).parent


def say(line: str) -> None:
    """Print at once, so that our lines stay in order with those of the tools."""
    print(line, flush=True)


def run(*command: str | Path) -> bool:
    """Run a command, its output shown; true if it succeeded."""
    # buf insists on a cache folder, and home may be missing.
    environment = {**os.environ, "BUF_CACHE_DIR": str(ROOT / ".venv" / "buf-cache")}
    arguments = [str(part) for part in command]
    return subprocess.run(arguments, cwd=ROOT, env=environment, check=False).returncode == 0


def git(*arguments: str) -> str:
    """Git's answer without its newline; empty where git has none (no repository, no such name)."""
    answer = subprocess.run(["git", *arguments], cwd=ROOT, capture_output=True, text=True, check=False)
    return answer.stdout.strip() if answer.returncode == 0 else ""


def generate(target: Path) -> bool:
    """Write messages, services and their typed stubs under `target`."""
    sources = sorted(path.relative_to(PROTOS) for path in PROTOS.rglob("*.proto"))
    plugins = [f"--plugin={name}={BIN / name}" for name in ("protoc-gen-mypy", "protoc-gen-mypy_grpc")]
    kinds = {"python": "", "grpc_python": "", "mypy": "quiet:", "mypy_grpc": "quiet:"}
    outputs = [f"--{kind}_out={options}{target}" for kind, options in kinds.items()]
    return run(sys.executable, "-m", "grpc_tools.protoc", f"-I{PROTOS}", *plugins, *outputs, *sources)


def generated_files(root: Path) -> dict[str, Path]:
    """The generated files under a root, by name."""
    return {path.name: path for path in (root / PACKAGE).glob("*") if path.name.endswith(GENERATED_SUFFIXES)}


def regenerate() -> bool:
    """Replace the generated code, so that nothing is left of a proto that is gone."""
    with tempfile.TemporaryDirectory() as folder:
        if not generate(Path(folder)):
            return False
        for path in generated_files(ROOT).values():
            path.unlink()
        for name, path in generated_files(Path(folder)).items():
            (ROOT / PACKAGE / name).write_bytes(path.read_bytes())
    return True


def check_drift() -> bool:
    """Hold the committed code to what the protos generate now."""
    with tempfile.TemporaryDirectory() as folder:
        if not generate(Path(folder)):
            return False
        committed, fresh = generated_files(ROOT), generated_files(Path(folder))
        drifted = sorted(
            name
            for name in committed.keys() | fresh.keys()
            if name not in committed
            or name not in fresh
            or not filecmp.cmp(committed[name], fresh[name], shallow=False)
        )
    for name in drifted:
        say(f"drift: {PACKAGE / name} is not what protos/ generates; run `make proto` and commit the result")
    if not drifted:
        say(f"drift: none, {len(fresh)} generated files")
    return not drifted


def baselines() -> list[str]:
    """Commits whose protos must stay readable.

    The published main branch, where this one is ahead of it; HEAD, where protos are being edited; and what
    was there before the last commit that touched them, so that a fresh clone checks that commit too.
    """
    head = git("rev-parse", "--verify", "--quiet", "HEAD")
    last_change = git("log", "-1", "--format=%H", "--", "protos")
    candidates = [
        git("merge-base", "HEAD", "origin/main"),
        head,
        git("rev-parse", "--verify", "--quiet", f"{last_change}^") if last_change else "",
    ]
    current = git("rev-parse", "HEAD:protos") if not git("status", "--porcelain", "--", "protos") else ""
    trees: dict[str, str] = {}
    for commit in filter(None, candidates):
        tree = git("rev-parse", "--verify", "--quiet", f"{commit}:protos")
        if tree not in ("", current):
            trees.setdefault(tree, commit)
    return list(trees.values())


def check_breaking() -> bool:
    """Compare with every baseline, each unpacked: buf itself would clone the whole repository."""
    if not git("rev-parse", "--git-dir"):
        say("breaking: NOT checked, git reads no repository here")
        return True
    if git("rev-parse", "--is-shallow-repository") == "true":
        say("breaking: the clone is shallow and may lack earlier protos; `git fetch --unshallow` brings them")
    commits = baselines()
    if not commits:
        say("breaking: nothing to compare with, no earlier commit has other protos")
    compatible = True
    for commit in commits:
        with tempfile.TemporaryDirectory() as folder:
            archive = Path(folder) / "protos.tar"
            unpacked = run("git", "archive", f"--output={archive}", commit, "protos") and run(
                "tar", "-xf", archive, "-C", folder
            )
            fine = unpacked and run(BIN / "buf", "breaking", "protos", "--against", Path(folder) / "protos")
        say(f"breaking: {'compatible with' if fine else 'NOT compatible with'} {commit[:12]}")
        compatible = compatible and fine
    return compatible


def check_lint() -> bool:
    """Hold the protos to buf's rules."""
    fine = run(BIN / "buf", "lint")
    say(f"buf lint: {'clean' if fine else 'failed'}")
    return fine


def main(arguments: list[str]) -> int:
    """Run one command: `generate` or `check`."""
    match arguments:
        case ["generate"]:
            return 0 if regenerate() else 1
        case ["check"]:
            return 0 if all([check_lint(), check_breaking(), check_drift()]) else 1
        case _:
            print("usage: scripts/protos.py generate|check", file=sys.stderr)
            return 2


if __name__ == "__main__":
    sys.exit(main(sys.argv[1:]))
