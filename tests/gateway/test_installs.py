"""`runtime_env`'s pip and uv: what is taken as Ray takes it, and what is refused with a sentence."""

from __future__ import annotations

import json

import pytest
from hypothesis import given
from hypothesis import strategies as st
from ray.runtime_env import RuntimeEnv

from orchestrator.core.errors import RefusalCode, RefusedError
from orchestrator.gateway.installs import OPTIONS_MAX, PACKAGES_MAX, TEXT_CHARACTERS_MAX, parse_install
from orchestrator.gateway.submissions import parse_submission

IN_WORKING_DIR = "${RAY_RUNTIME_ENV_CREATE_WORKING_DIR}"

TAKEN = [
    "numpy",
    "torch==2.12.0",
    "ray[serve]>=2.60 ; python_version >= '3.11'",
    "tiny @ https://example.org/tiny-1.0-py3-none-any.whl#sha256=00",
    "https://example.org/tiny-1.0-py3-none-any.whl",
    "git+https://example.org/lab/tiny.git@v1.0",
    "git+https://${TOKEN}@example.org/lab/tiny.git",
    "https://${USER_NAME}:${PASSWORD}@example.org/tiny.whl",
    f"{IN_WORKING_DIR}/tiny-1.0-py3-none-any.whl",
    f"-r {IN_WORKING_DIR}/requirements.txt",
    f"--requirement={IN_WORKING_DIR}/more/requirements.txt",
]


@pytest.mark.parametrize("installer", ["pip", "uv"])
@pytest.mark.parametrize("text", TAKEN)
def test_requirement_is_taken_as_it_is(installer: str, text: str) -> None:
    assert parse_install(installer, [text]) == {"packages": [text]}


@pytest.mark.parametrize("installer", ["pip", "uv"])
@pytest.mark.parametrize(
    "form",
    [["tiny"], {"packages": ["tiny"]}, {"packages": ["tiny"], "check": True, "options": ["--no-deps"]}],
)
def test_what_rays_client_makes_of_a_form_is_taken_whole(installer: str, form: object) -> None:
    if isinstance(form, dict):
        names = {"packages": "packages", "check": f"{installer}_check"}
        names["options"] = "pip_install_options" if installer == "pip" else "uv_pip_install_options"
        form = {names[key]: value for key, value in form.items()}
    sent = json.loads(json.dumps(RuntimeEnv(**{installer: form}).to_dict()))
    taken = parse_submission({"entrypoint": "true", "runtime_env": sent})
    assert taken.runtime_env == {installer: sent[installer]}


@pytest.mark.parametrize("empty", [[], {"packages": []}])
def test_nothing_to_install_is_nothing(empty: object) -> None:
    assert parse_install("pip", empty) == {}


@pytest.mark.parametrize(
    ("value", "named"),
    [
        ("requirements.txt", "must be a list of requirements"),
        (None, "must be a list"),
        ({}, "['packages'] must be a list of strings"),
        ({"packages": "tiny"}, "['packages'] must be a list of strings"),
        ({"packages": ["a"], "pip_version": "==24"}, "takes no 'pip_version'"),
        ({"packages": ["a"], "pip_check": "yes"}, "['pip_check'] must be true or false"),
        ([1], "strings of one line"),
        ([" "], "none of them empty"),
        (["tiny\n--index-url https://example.org"], "strings of one line"),
        (["a" * (TEXT_CHARACTERS_MAX + 1)], f"more than {TEXT_CHARACTERS_MAX} characters"),
        (["a"] * (PACKAGES_MAX + 1), f"more than {PACKAGES_MAX} entries"),
        (["-e ."], "build a wheel into working_dir"),
        (["--editable=git+https://example.org/x"], "build a wheel into working_dir"),
        (["--index-url https://example.org"], "options in pip_install_options"),
        (["./tiny.whl"], "is no requirement"),
        (["/etc/passwd"], "is no requirement"),
        (["-r requirements.txt"], "only files of working_dir"),
        ([f"-r {IN_WORKING_DIR}/../../secret"], "only files of working_dir"),
        ([f"{IN_WORKING_DIR}/"], "only files of working_dir"),
        (["${HOME}/tiny.whl"], "only files of working_dir"),
        (["file:///etc/tiny.whl"], "an address with 'file'"),
        (["git+ssh://git@example.org/x"], "an address with 'git+ssh'"),
        (["tiny @ https://me:hush@example.org/t.whl"], "write ${NAME} in their place"),
        (["https://${ME}:hush@example.org/t.whl"], "write ${NAME} in their place"),
    ],
)
def test_what_cannot_work_is_refused_by_its_field(value: object, named: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_install("pip", value)
    assert refused.value.code is RefusalCode.INVALID
    assert named in refused.value.message
    assert refused.value.message.startswith("runtime_env['pip']")
    assert "hush" not in refused.value.message


@pytest.mark.parametrize(
    "options",
    [
        ["--no-deps", "--pre"],
        ["--extra-index-url=https://example.org/cu121"],
        ["--index-url", "https://example.org/simple"],
        ["--no-index", f"--find-links={IN_WORKING_DIR}/wheels"],
        ["--only-binary", ":all:"],
    ],
)
def test_options_of_an_installation_are_taken(options: list[str]) -> None:
    form = {"packages": ["tiny"], "uv_pip_install_options": options}
    assert parse_install("uv", form) == form


@pytest.mark.parametrize(
    ("options", "named"),
    [
        ("--no-deps", "must be a list of strings"),
        (["--no-deps"] * (OPTIONS_MAX + 1), f"more than {OPTIONS_MAX} entries"),
        (["--target=/tmp"], "takes no '--target'"),
        (["--nodeps"], "did you mean '--no-deps'?"),
        (["--index-url"], "--index-url needs a value"),
        (["--index-url", "--no-deps"], "--index-url needs a value"),
        (["--find-links", "/home"], "only files of working_dir"),
        (["--index-url=https://me:hush@example.org/simple"], "PIP_INDEX_URL"),
        (["--index-url=https://${TOKEN}@example.org/simple"], "PIP_INDEX_URL"),
    ],
)
def test_options_that_are_not_offered_are_refused(options: object, named: str) -> None:
    with pytest.raises(RefusedError) as refused:
        parse_install("pip", {"packages": ["tiny"], "pip_install_options": options})
    assert named in refused.value.message
    assert "hush" not in refused.value.message


@given(st.lists(st.text(max_size=60) | st.sampled_from(TAKEN), max_size=5))
def test_any_list_is_taken_unchanged_or_refused_as_invalid(packages: list[str]) -> None:
    refusal: RefusedError | None = None
    found: dict[str, object] = {}
    try:
        found = parse_install("uv", packages)
    except RefusedError as error:
        refusal = error
    if refusal is not None:
        assert (refusal.code, found) == (RefusalCode.INVALID, {})
        return
    assert found == ({"packages": packages} if packages else {})
    assert not any("\n" in text for text in packages)
