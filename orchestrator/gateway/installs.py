"""Reading ``runtime_env``'s pip and uv: packages that Ray installs inside the job's box, on top of its runtime.

The box is what keeps the machine safe, whatever is installed; the rules here keep secrets out of what the network
stores and shows, and tell a tenant at once what could not work on another machine than his own.
"""

from __future__ import annotations

import re
from collections.abc import Mapping

from orchestrator.core.errors import invalid
from orchestrator.core.supply.catalogue import nearest
from orchestrator.gateway.body import quoted

INSTALLERS: Mapping[str, tuple[str, str]] = {
    "pip": ("pip_check", "pip_install_options"),
    "uv": ("uv_check", "uv_pip_install_options"),
}
"""Each with Ray's names of its check and of its options. Another version of either is not offered: a runtime has one."""

PACKAGES_MAX = 200
"""Asked for by hand; what they bring along is not counted."""

OPTIONS_MAX = 20

TEXT_CHARACTERS_MAX = 500
"""Of one requirement: a URL with a hash has some 250."""

WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}/"
"""How Ray's requirements name the unpacked working_dir."""

SCHEMES = ("https", "http", "git+https")

FLAGS = (
    "--no-deps",
    "--pre",
    "--upgrade",
    "--no-index",
    "--no-cache",
    "--no-cache-dir",
    "--disable-pip-version-check",
    "--prefer-binary",
    "--no-build-isolation",
)

VALUED = (
    "--index-url",
    "--extra-index-url",
    "--find-links",
    "--only-binary",
    "--no-binary",
    "--constraint",
    "--prerelease",
    "--index-strategy",
    "--torch-backend",
)
"""Their value stands behind a `=`, or is the next in the list."""

IN_ENV_VARS = "put them into env_vars, and write ${NAME} in their place"

INDEX_IN_ENV_VARS = "put such an address into env_vars, as PIP_INDEX_URL or UV_DEFAULT_INDEX"

_ADDRESS = re.compile(r"([A-Za-z][A-Za-z0-9+.-]*)://([^/\s]*)")
_VARIABLES = re.compile(r"\$\{[A-Z_][A-Z0-9_]*\}(?::\$\{[A-Z_][A-Z0-9_]*\})?")
_FILE = re.compile(r"(?:-r|--requirement)[ =]?\s*(?P<path>.*)")
_NAME = re.compile(r"[A-Za-z0-9]")


def parse_install(installer: str, value: object) -> dict[str, object]:
    """Ray's whole form, ``{"packages": […], …}``; empty where nothing is to be installed. Raises RefusedError."""
    field = f"runtime_env[{quoted(installer)}]"
    check, options = INSTALLERS[installer]
    form = {"packages": value} if isinstance(value, list) else value
    if not isinstance(form, dict):
        message = f"{field} must be a list of requirements, or an object that holds them as packages"
        raise invalid(field, f"{message}: a file of this machine is read by nobody here")
    for key in form:
        if key not in ("packages", check, options):
            hint = nearest(str(key)[:80], ["packages", check, options])
            raise invalid(field, f"{field} takes no {quoted(str(key))}: did you mean {hint!r}?")
    packages = _texts(f"{field}['packages']", form.get("packages"), PACKAGES_MAX)
    found: dict[str, object] = {"packages": packages}
    for text in packages:
        _check_requirement(f"{field}['packages']", text, options)
    if check in form:
        if not isinstance(form[check], bool):
            raise invalid(field, f"{field}[{check!r}] must be true or false")
        found[check] = form[check]
    if options in form:
        given = _texts(f"{field}[{options!r}]", form[options], OPTIONS_MAX)
        _check_options(f"{field}[{options!r}]", given)
        found[options] = given
    return found if packages else {}


def _texts(field: str, value: object, count_max: int) -> list[str]:
    if not isinstance(value, list):
        raise invalid(field, f"{field} must be a list of strings")
    if len(value) > count_max:
        raise invalid(field, f"{field} has more than {count_max} entries; put a wheel into working_dir")
    for text in value:
        # One line each: they are written into a file, where a second line would be a requirement nobody checked.
        if not isinstance(text, str) or not text.strip() or not text.isprintable():
            raise invalid(field, f"{field} must hold strings of one line each, none of them empty")
        if len(text) > TEXT_CHARACTERS_MAX:
            raise invalid(field, f"{field} holds a string of more than {TEXT_CHARACTERS_MAX} characters")
    return value


def _check_requirement(field: str, text: str, options: str) -> None:
    """A name, an address, or something in working_dir. Never repeats an address, which may hold a password."""
    stripped = text.strip()
    file = _FILE.fullmatch(stripped)
    if file is not None:
        _check_path(field, file["path"])
    elif stripped.startswith("-"):
        option = re.split(r"[\s=]", stripped, maxsplit=1)[0]
        message = f"{field} holds the option {quoted(option)}"
        if option in ("-e", "--editable"):
            raise invalid(
                field, f"{message}: build a wheel into working_dir, and name it as {WORKING_DIR}…whl"
            )
        raise invalid(field, f"{message}: requirements stand here, options in {options}")
    elif stripped.startswith("$"):
        _check_path(field, stripped)
    elif "://" in stripped:
        _check_addresses(field, stripped, variables=True)
    elif _NAME.match(stripped) is None:
        message = f"{field} holds {quoted(stripped)}, which is no requirement such as numpy==2.4.1"
        raise invalid(field, f"{message}; a file in working_dir is named as {WORKING_DIR}…")


def _check_path(field: str, path: str) -> None:
    inside = path.removeprefix(WORKING_DIR)
    if inside == path or not inside or ".." in inside.split("/"):
        message = f"{field} holds the path {quoted(path)}: only files of working_dir are on every machine"
        raise invalid(field, f"{message}, named as {WORKING_DIR}…")


def _check_addresses(field: str, text: str, *, variables: bool) -> None:
    """Of a scheme that works in a box, and without credentials; as names of env_vars they are no secret."""
    for scheme, host in _ADDRESS.findall(text):
        if scheme.lower() not in SCHEMES:
            raise invalid(
                field, f"{field} holds an address with {quoted(scheme)}: {', '.join(SCHEMES)} are offered"
            )
        user, at, _ = host.rpartition("@")
        if at and not (variables and _VARIABLES.fullmatch(user)):
            message = f"{field} holds credentials, which would be stored and shown"
            raise invalid(field, f"{message}: {IN_ENV_VARS if variables else INDEX_IN_ENV_VARS}")


def _check_options(field: str, options: list[str]) -> None:
    rest = iter(options)
    for option in rest:
        name, equals, value = option.partition("=")
        if option in FLAGS:
            continue
        if name not in VALUED:
            hint = nearest(name[:80], [*FLAGS, *VALUED])
            raise invalid(field, f"{field} takes no {quoted(name)}: did you mean {hint!r}?")
        value = value if equals else next(rest, "")
        if not value or value.startswith("-"):
            raise invalid(field, f"{field}: {name} needs a value, as {name}=…")
        if value.startswith(("$", "/", ".", "~")):
            _check_path(field, value)
        _check_addresses(field, value, variables=False)
