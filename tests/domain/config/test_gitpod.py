"""`.gitpod.yml`: what each key leads to, and where the line and column of what is wrong are."""

from __future__ import annotations

import pytest
from tests.domain.config.reading import gitpod, messages, noticed

from fairwater.domain.workspaces.setup import AdditionalRepository, PortRule, Visibility


def test_an_image_is_taken_with_its_line() -> None:
    wanted = gitpod("# ours\nimage: gitpod/workspace-full:latest\n")
    assert (wanted.file, wanted.image, wanted.image_line) == (".gitpod.yml", "gitpod/workspace-full:latest", 2)
    assert wanted.notices == ()


def test_building_an_image_is_an_error_and_the_default_is_used() -> None:
    wanted = gitpod("tasks: []\nimage:\n  file: .gitpod.Dockerfile\n  context: docker\n")
    assert wanted.image is None
    assert noticed(wanted) == [("error", "not_supported", 2, 1)]
    assert "'.gitpod.Dockerfile'" in messages(wanted)


@pytest.mark.parametrize(
    "image",
    ["oci:/etc/images", "docker-archive:x.tar", "file:///x", "docker://node", "a b", "-v", "''", "dir:/", "x\\ny"],
)
def test_an_image_that_no_registry_has_is_refused(image: str) -> None:
    wanted = gitpod(f'image: "{image}"\n' if image != "''" else "image: ''\n")
    assert wanted.image is None
    assert [one[0] for one in noticed(wanted)] == ["error"]


@pytest.mark.parametrize("image", ["node", "127.0.0.1:5000/a/b:1", "ghcr.io/a/b@sha256:" + "a" * 64, "dir:5000"])
def test_an_image_of_a_registry_is_taken(image: str) -> None:
    assert gitpod(f'image: "{image}"').image == (image if image != "dir:5000" else None)


def test_ports_and_ranges_are_taken_with_what_is_said_of_them() -> None:
    wanted = gitpod(
        """
        ports:
          - port: 3000
            onOpen: open-preview
            name: "  The   shop "
            description: d
          - port: 4000-4999
            visibility: public
            protocol: https
          - port: "5000"
            onOpen: ignore-completely
        """
    )
    assert wanted.ports == (
        PortRule(3000, 3000, "The shop", "d", on_open="open-preview"),
        PortRule(4000, 4999, visibility=Visibility.PUBLIC, protocol="https"),
        PortRule(5000, 5000, on_open="ignore"),
    )
    assert wanted.notices == ()


@pytest.mark.parametrize("port", ["0", "65536", "3.5", "true", "a", "4000-3000", "1-70000", "[1]", "-1", "٣٠٠٠"])
def test_what_is_no_port_is_told_with_its_place_and_the_others_are_used(port: str) -> None:
    wanted = gitpod(f"ports:\n  - port: {port}\n  - port: 8080\n")
    assert [rule.first for rule in wanted.ports] == [8080]
    assert [(one[0], one[2], one[3]) for one in noticed(wanted)] == [("error", 2, 11)]


def test_a_port_of_the_old_protocol_is_taken_as_http() -> None:
    wanted = gitpod("ports: [{port: 53, protocol: UDP}]")
    assert wanted.ports == (PortRule(53, 53),)
    assert noticed(wanted) == [("info", "deprecated", 1, 30)]


def test_tasks_keep_their_numbers_where_one_has_nothing_to_run() -> None:
    wanted = gitpod("tasks:\n  - init: make\n  - name: empty\n  - command: make run\n    name: run\n")
    assert [(task.number, task.name, task.marker is not None) for task in wanted.tasks] == [
        (0, "task 1", True),
        (2, "run", False),
    ]
    assert noticed(wanted) == [("info", "nothing_to_run", 3, 5)]


def test_a_tasks_variables_are_as_they_are_written() -> None:
    wanted = gitpod("tasks:\n- command: x\n  env: {A: yes, B: 1.10, C: true, D: 'q', E: 0x10, F: on}\n")
    assert wanted.tasks[0].environment == (
        ("A", "yes"), ("B", "1.10"), ("C", "true"), ("D", "q"), ("E", "0x10"), ("F", "on"),
    )  # fmt: skip


def test_bad_variables_are_left_out_each_with_its_place() -> None:
    wanted = gitpod("tasks:\n- command: x\n  env:\n    1A: x\n    B: [1]\n    A-B: 1\n    C: c\n    D:\n")
    assert wanted.tasks[0].environment == (("C", "c"),)
    assert noticed(wanted) == [
        ("error", "bad_value", 4, 5),
        ("error", "wrong_type", 5, 8),
        ("error", "bad_value", 6, 5),
        ("warning", "not_supported", 8, 5),
    ]


@pytest.mark.parametrize(
    ("key", "level"),
    [("vscode: {extensions: [a.b]}", "warning"), ("jetbrains: {plugins: [x]}", "warning"),
     ("github: {prebuilds: true}", "warning"), ("gitConfig: {a: b}", "warning"),
     ("coreDump: {enabled: true}", "warning"),
     ("experimentalNetwork: true", "warning"), ("mainConfiguration: https://x/y/z", "warning"),
     ("subRepositories: [{url: x}]", "warning"), ("tasks: [{command: x, openMode: split-left}]", "info")],
)  # fmt: skip
def test_what_is_not_supported_yet_is_told_and_never_dropped_in_silence(key: str, level: str) -> None:
    (notice,) = gitpod(f"\n{key}\n").notices
    assert (str(notice.level), notice.code, notice.line) == (level, "not_supported", 2)
    assert notice.column is not None
    assert notice.message.startswith(key.partition(":")[0])


@pytest.mark.parametrize("key", ["vscode: {}", "github:", "gitConfig: {}", "experimentalNetwork: false"])
def test_a_key_that_asks_for_nothing_is_not_told(key: str) -> None:
    assert gitpod(key).notices == ()


def test_an_unknown_key_is_told_with_the_nearest_known_one() -> None:
    wanted = gitpod("imagee: x\ntasks:\n  - comand: x\n    command: y\nzzzz: 1\n")
    assert noticed(wanted) == [
        ("warning", "unknown_key", 1, 1),
        ("warning", "unknown_key", 3, 5),
        ("warning", "unknown_key", 5, 1),
    ]
    assert "did you mean 'image'?" in wanted.notices[0].message
    assert "did you mean 'command'?" in wanted.notices[1].message
    assert "did you mean" not in wanted.notices[2].message


@pytest.mark.parametrize(
    ("text", "place"),
    [("image: 3", (1, 8)), ("image: [a]", (1, 8)), ("tasks: make", (1, 8)), ("tasks:\n - make", (2, 4)),
     ("tasks:\n - init: [a]", (2, 10)), ("ports: 3000", (1, 8)), ("ports: [3000]", (1, 9)),
     ("checkoutLocation: {}", (1, 19)), ("workspaceLocation: []", (1, 20)), ("additionalRepositories: {}", (1, 25)),
     ("additionalRepositories: [x]", (1, 26)), ("tasks: [{command: x, env: [A]}]", (1, 27))],
)  # fmt: skip
def test_a_wrong_type_is_an_error_with_its_place(text: str, place: tuple[int, int]) -> None:
    assert noticed(gitpod(text))[0] == ("error", "wrong_type", *place)


def test_null_is_as_good_as_not_there() -> None:
    wanted = gitpod("image:\ntasks:\nports: ~\ncheckoutLocation: null\nadditionalRepositories:\n")
    assert wanted.notices == ()
    assert wanted.tasks == ()


@pytest.mark.parametrize(
    ("written", "got"),
    [("web/shop", "web/shop"), ("./shop/", "shop"), ("/workspace/a//b", "a/b"), ("mono repo", "mono repo")],
)
def test_a_checkout_location_is_below_workspace(written: str, got: str) -> None:
    wanted = gitpod(f"checkoutLocation: '{written}'")
    assert (wanted.checkout, wanted.notices) == (got, ())


@pytest.mark.parametrize(
    "written",
    ["../x", "a/../../b", "/etc", "/workspacex/a", "/workspace/../etc", ".", "/workspace", "", "a/.git/b",
     ".fairwater/x",     ".fairwater-incoming", "a\\\\b", "-rf", "~root", "a\\nb", "x" * 600, "a\\0b", "\\u202ea"],
)  # fmt: skip
def test_a_checkout_location_elsewhere_is_refused(written: str) -> None:
    wanted = gitpod(f'checkoutLocation: "{written}"')
    assert wanted.checkout == ""
    assert [(one[0], one[2], one[3]) for one in noticed(wanted)] == [("error", 1, 19)]


@pytest.mark.parametrize(
    ("written", "folder"),
    [("shop/web", "shop/web"), (".", "/workspace"), ("/workspace/shop", "shop"), ("a/b.code-workspace", "a")],
)
def test_a_workspace_location_is_where_one_begins(written: str, folder: str) -> None:
    assert gitpod(f"workspaceLocation: {written}").folder == folder


def test_additional_repositories_get_folders_of_their_own() -> None:
    wanted = gitpod(
        """
        additionalRepositories:
          - url: https://github.com/a/backend
            checkoutLocation: services/backend
          - url: git@git.example:a/frontend.git
          - url: https://github.com/b/frontend
          - url: https://github.com/c/shop
          - url: file:///etc
          - url: https://user:secret@example.com/a/b
          - checkoutLocation: x
        """
    )
    assert wanted.repositories == (
        AdditionalRepository("https://github.com/a/backend", "services/backend"),
        AdditionalRepository("git@git.example:a/frontend.git"),
    )
    assert [(one[1], one[2]) for one in noticed(wanted)] == [
        ("bad_folder", 6), ("bad_folder", 7), ("bad_url", 8), ("bad_url", 9), ("missing_key", 10),
    ]  # fmt: skip
    assert "secret" not in messages(wanted)


def test_more_than_the_bounds_is_an_error_and_the_first_are_used() -> None:
    wanted = gitpod(
        "tasks:\n" + "- command: x\n" * 65 + "ports:\n" + "- port: 1\n" * 257
        + "additionalRepositories:\n" + "".join(f"- url: https://x.org/a/r{n}\n" for n in range(33))
    )  # fmt: skip
    assert (len(wanted.tasks), len(wanted.ports), len(wanted.repositories)) == (64, 256, 32)
    assert [(one[1], one[2]) for one in noticed(wanted)] == [("too_many", 66), ("too_many", 324), ("too_many", 358)]


def test_a_script_that_is_too_long_is_left_out_and_never_cut() -> None:
    wanted = gitpod(f"tasks:\n- command: x\n- command: '{'a' * 70_000}'\n")
    assert [task.number for task in wanted.tasks] == [0]
    assert noticed(wanted) == [("error", "too_long", 3, 3)]


def test_the_notices_are_bounded_and_the_rest_counted() -> None:
    wanted = gitpod("".join(f"key{number}: 1\n" for number in range(500)))
    assert len(wanted.notices) == 201
    assert (wanted.notices[-1].code, "300 more" in wanted.notices[-1].message) == ("too_many_problems", True)


_REAL = [
    (
        """
        image: gitpod/workspace-postgres
        tasks:
          - name: Setup
            init: |
              npm ci
              npm run build
            command: npm run dev
          - name: Database
            before: export PGDATABASE=shop
            command: >
              psql -c
              'select 1'
        ports:
          - {port: 5432, onOpen: ignore}
          - {port: 3000, onOpen: open-browser, visibility: public}
        vscode:
          extensions:
            - dbaeumer.vscode-eslint
        """,
        ("gitpod/workspace-postgres", ["Setup", "Database"], 2, ["not_supported"]),
    ),
    (
        "tasks:\n- init: pip install -r requirements.txt\n  command: python manage.py runserver\n",
        (None, ["task 1"], 0, []),
    ),
    (
        "x-env: &env {A: '1'}\ntasks:\n  - command: a\n    env:\n      <<: *env\n      B: 2\n",
        (None, ["task 1"], 0, ["unknown_key"]),
    ),
    (
        "---\nimage:\n    file: Dockerfile\ngithub:\n    prebuilds: {master: true}\n",
        (None, [], 0, ["not_supported"] * 2),
    ),
]


@pytest.mark.parametrize(("text", "expected"), _REAL)
def test_files_as_people_write_them(text: str, expected: tuple[str | None, list[str], int, list[str]]) -> None:
    wanted = gitpod(text)
    codes = [notice.code for notice in wanted.notices]
    assert (wanted.image, [task.name for task in wanted.tasks], len(wanted.ports), codes) == expected
