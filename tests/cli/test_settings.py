from __future__ import annotations

import itertools
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent
from fairwater.domain.units import GIB, MIB, Seconds
from fairwater.domain.workspaces.classes import STANDARD, XL
from fairwater.settings import KEYS, load_settings
from fairwater.settings_sources import variable_of


def wrong(text: str, tmp_path: Path, **environment: str) -> str:
    file = tmp_path / "fairwater.toml"
    file.write_text(text)
    with pytest.raises(Permanent) as caught:
        load_settings(file, environment)
    assert caught.value.code == "bad_config"
    return caught.value.message


def test_without_a_file_everything_is_at_its_default() -> None:
    settings = load_settings(None, {})
    assert str(settings.server.listen) == "127.0.0.1:7080"
    assert settings.server.public_url == "http://localhost:7080"
    assert settings.classes == {"standard": STANDARD, "xl": XL}
    assert settings.node.stop_grace_s == Seconds(10)
    assert {entry.origin for entry in settings.explain()} == {"default"}


def test_the_file_is_read_with_units_and_the_environment_wins_over_it_and_a_flag_over_both(tmp_path: Path) -> None:
    file = tmp_path / "fairwater.toml"
    file.write_text('[server]\nlisten = "127.0.0.1:1111"\n\n[classes.xl]\nmemory = "20GiB"\n[deadlines]\ninit = "1h"\n')
    environment = {"FAIRWATER_SERVER_LISTEN": "127.0.0.1:2222", "FAIRWATER_NODE_GIT_FILE_ROOTS": "/srv/a, /srv/b"}
    settings = load_settings(file, environment)
    assert settings.server.listen.port == 2222
    assert settings.classes["xl"].memory == 20 * GIB
    assert settings.deadlines.init_s == 3600
    assert settings.node.git_file_roots == (Path("/srv/a"), Path("/srv/b"))
    flagged = load_settings(file, environment, {"server.listen": "127.0.0.1:3333", "node.runtime": None})
    assert flagged.server.listen.port == 3333
    origins = {entry.key: entry.origin for entry in flagged.explain()}
    assert origins["server.listen"] == "flag"
    assert origins["node.git_file_roots"] == "environment FAIRWATER_NODE_GIT_FILE_ROOTS"
    assert origins["classes.xl.memory"] == f"{file}:5"


def test_an_unknown_key_is_an_error_with_its_line_and_the_nearest_known_one(tmp_path: Path) -> None:
    message = wrong('[server]\nlisten = "127.0.0.1:1"\nlistne = "x"\n[nod]\nparked = 3\n', tmp_path)
    assert f"{tmp_path}/fairwater.toml:3: unknown key 'server.listne'; did you mean 'server.listen'?" in message
    assert "fairwater.toml:5: unknown key 'nod.parked'; did you mean 'node.parked'?" in message


def test_a_known_key_in_no_table_is_named_with_its_table(tmp_path: Path) -> None:
    assert "did you mean 'server.listen'?" in wrong('listen = "127.0.0.1:1"\n', tmp_path)


def test_an_unknown_variable_is_an_error_that_names_the_nearest_known_one(tmp_path: Path) -> None:
    message = wrong("", tmp_path, FAIRWATER_SERVER_LISTN="x")
    assert "unknown variable FAIRWATER_SERVER_LISTN; did you mean 'FAIRWATER_SERVER_LISTEN'?" in message


def test_variables_that_are_no_settings_are_left_alone() -> None:
    names = ("URL", "TOKEN", "DATA_DIR", "CONFIG", "CONTEXT_URL", "REPO_ROOT", "WORKSPACE_ID", "WORKSPACE_URL")
    assert not load_settings(None, {f"FAIRWATER_{name}": "x" for name in names}).written


def test_no_two_keys_share_a_variable() -> None:
    variables = [variable_of(key.name) for key in KEYS]
    assert all(one != other for one, other in itertools.combinations(variables, 2))


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[classes.standard]\nmemory = "lots"', "'lots' is not a size"),
        ('[classes.standard]\nmemory = "1MiB"', "at least 128 MiB"),
        ("[classes.standard]\nprocesses = true", "not a whole number"),
        ('[server]\nlisten = "7080"', "HOST:PORT"),
        ('[server]\nuser = "root"', "other than root"),
        ('[server]\npublic_url = "ftp://x"', "such as https://"),
        ('[network]\npool = "10.1.2.3/16"', "network such as"),
        ('[network]\npool = "8.0.0.0/16"', "private network"),
        ('[network]\nallow = ["10.0.0.0/33:22"]', "CIDR:PORT"),
        ('[network]\nnameservers = ["dns.example"]', "DNS server"),
        ('[node]\ngit_file_roots = ["/"]', "absolute path"),
        ('[node]\nruntime = "crun --debug"', "OCI runtime"),
        ('[deadlines]\ninit = "soon"', "'soon' is not a duration"),
        ('[server]\ndatabase_url = "mysql://u:hunter2@h/d"', "write postgresql://"),
        ('[server]\nmaster_key = "hunter2"', "master key 1 is not 32 bytes"),
        ('[server]\nmaster_key_file = "key"', "absolute path of a file"),
        ('[images]\npull_rate = "1KiB"', "at least 64 KiB"),
        ('[images]\ndisk = "1MiB"', "at least 1 GiB"),
        ('[images]\ninsecure_registries = ["http://x/"]', "HOST or HOST:PORT"),
        ('[images]\nfolders = ["images"]', "absolute path"),
        ('[images]\ndefault = "-x"', "does not name an image"),
        ('[images]\ndefault = "oci:/srv/image"', "everybody may use"),
        ("server = 3", "server is a table"),
        ("[server", "this is not TOML"),
    ],
)
def test_a_bad_value_is_refused_with_what_would_be_right(text: str, said: str, tmp_path: Path) -> None:
    assert said in wrong(text, tmp_path)


@pytest.mark.parametrize(
    ("text", "said"),
    [
        ('[classes.xl]\nmemory = "1GiB"', "classes.xl.memory is less than classes.standard.memory"),
        ('[node]\nstop_grace_s = "5min"', "deadlines.stopping (120 s) is over before node.stop_grace_s (300 s)"),
        ('[network]\npool = "10.213.0.0/28"', "too few addresses"),
        ('[network]\nallow = ["10.213.7.0/24:22"]', "part of network.pool"),
        ('[network]\nnameservers = ["10.213.0.1"]', "part of network.pool"),
    ],
)
def test_values_that_contradict_each_other_are_refused(text: str, said: str, tmp_path: Path) -> None:
    assert said in wrong(text, tmp_path)


def test_everything_that_is_wrong_is_said_at_once(tmp_path: Path) -> None:
    assert len(wrong('[server]\nlisten = "x"\nfoo = 1\n[node]\nparked = -1', tmp_path).splitlines()) == 3


def test_a_password_is_never_explained() -> None:
    environment = {"FAIRWATER_SERVER_DATABASE_URL": "postgresql://fair:s@3cret@db/fair?sslpassword=other"}
    settings = load_settings(None, environment)
    shown = {entry.key: entry.value for entry in settings.explain()}["server.database_url"]
    assert shown == "postgresql://fair:***@db/fair?sslpassword=***"
    assert "s@3cret" not in repr(settings)


KEY = "MDEyMzQ1Njc4OWFiY2RlZjAxMjM0NTY3ODlhYmNkZWY="


def test_a_master_key_is_never_explained_nor_shown() -> None:
    settings = load_settings(None, {"FAIRWATER_SERVER_MASTER_KEY": f"{KEY}\n{'0f' * 32}"})
    assert settings.server.master_key == (b"0123456789abcdef0123456789abcdef", bytes.fromhex("0f" * 32))
    shown = {entry.key: entry.value for entry in settings.explain()}["server.master_key"]
    assert shown == "***"
    assert "0123456789abcdef" not in repr(settings.server)


@pytest.mark.parametrize(
    "text",
    [
        '[server]\nmaster_key = "hunter2"',
        '[server]\nmaster_key = ["hunter2"]',
        '[server]\ndatabase_url = "mysql://u:hunter2@h/d"',
        '[server]\ndatabase_url = ["postgresql://u:hunter2@h/d"]',
    ],
)
def test_a_wrong_secret_is_refused_without_showing_it(text: str, tmp_path: Path) -> None:
    assert "hunter2" not in wrong(text, tmp_path)


def test_images_are_limited_unless_said_otherwise() -> None:
    images = load_settings(None, {}).images
    assert (images.default, images.disk, images.pull_rate, images.stall_s) == ("host", None, 100 * MIB, 60.0)
    assert images.parked_memory == 256 * MIB
    unlimited = load_settings(None, {"FAIRWATER_IMAGES_PULL_RATE": "0", "FAIRWATER_IMAGES_DISK": "10GiB"}).images
    assert (unlimited.pull_rate, unlimited.disk) == (None, 10 * GIB)
    named = load_settings(None, {"FAIRWATER_IMAGES_INSECURE_REGISTRIES": "Registry.Example:5000, [::1]:80"}).images
    assert named.insecure_registries == ("registry.example:5000", "[::1]:80")


def test_settings_survive_the_way_through_a_childs_environment() -> None:
    flags = {
        "node.git_file_roots": ["/srv/a", "/srv/b,c"], "server.listen": "[::1]:99", "classes.xl.cpu_cores": 9.5,
        "server.master_key": KEY, "images.folders": ["/srv/a,b"], "images.pull_rate": 0, "images.stall": "5s",
    }  # fmt: skip
    settings = load_settings(None, {}, flags)
    again = load_settings(None, settings.environment())
    assert (again.server, again.node, again.classes) == (settings.server, settings.node, settings.classes)
    assert again.images == settings.images
