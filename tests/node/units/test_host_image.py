"""What of the machine gets into the image `host`: what is on the list and may be read by everybody, and no secret."""

from __future__ import annotations

import os
from pathlib import Path

import pytest

from fairwater.domain.failure import Permanent
from fairwater.node.host_image import HOME, UID, HostImage

PUBLIC = {
    "etc/bash.bashrc": "PS1='$ '\n",
    "etc/os-release": "ID=debian\n",
    "etc/pip.conf": "[global]\nindex-url = https://mirror.example/simple\n",
    "etc/java-17-openjdk/security/java.security": "providers\n",
    "etc/ssl/certs/ca-certificates.crt": "-----BEGIN CERTIFICATE-----\n",
    "etc/ssl/openssl.cnf": "[default]\n",
    "etc/vim/vimrc": "set nocompatible\n",
}
PRIVATE = {
    "etc/shadow": "root:$6$...\n",
    "etc/hostname": "the-machine\n",
    "etc/hosts": "10.0.0.7 database.internal\n",
    "etc/machine-id": "0123456789abcdef\n",
    "etc/passwd": "ada:x:1001:1001:Ada:/home/ada:/bin/bash\n",
    "etc/ssh/ssh_host_ed25519_key": "-----BEGIN OPENSSH PRIVATE KEY-----\n",
    "etc/ssl/private/server.key": "-----BEGIN PRIVATE KEY-----\n",
    "etc/resolv.conf": "nameserver 10.0.0.2\n",
    "etc/cron.d/backup": "* * * * * root backup\n",
    "home/ada/.netrc": "machine example.org password secret\n",
    "root/.bash_history": "export TOKEN=secret\n",
    "var/lib/secret": "secret\n",
}


@pytest.fixture
def machine(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    """A made-up machine. Folders that go to the workspace's user need root to be given away; here it is noted."""
    root = tmp_path / "machine"
    for name, text in {**PUBLIC, **PRIVATE}.items():
        write(root / name, text)
    (root / "usr/bin").mkdir(parents=True)
    (root / "usr/lib").mkdir()
    (root / "bin").symlink_to("usr/bin")
    (root / "lib").symlink_to("usr/lib")
    given: list[tuple[str, int, int]] = []
    monkeypatch.setattr(os, "chown", lambda path, uid, gid: given.append((Path(path).name, uid, gid)))
    return root


def write(path: Path, text: str, mode: int = 0o644) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(text)
    path.chmod(mode)


async def layer_of(machine: Path, folder: Path) -> Path:
    (layer,) = (await HostImage(folder, machine).prepare("host")).layers
    return layer


def texts(layer: Path) -> dict[str, str]:
    """Every file of the image, by its path."""
    files = (path for path in layer.rglob("*") if path.is_file() and not path.is_symlink())
    return {str(path.relative_to(layer)): path.read_text() for path in files}


async def test_what_is_on_the_list_is_copied(machine: Path, tmp_path: Path) -> None:
    copied = texts(await layer_of(machine, tmp_path / "images"))
    assert {name: copied.get(name) for name in PUBLIC} == PUBLIC


async def test_nothing_else_of_the_machine_is_there(machine: Path, tmp_path: Path) -> None:
    copied = texts(await layer_of(machine, tmp_path / "images"))
    made = {"etc/passwd", "etc/group", "etc/nsswitch.conf", "etc/gitconfig", "etc/ssh/ssh_config",
            "etc/hosts", "etc/hostname", "etc/resolv.conf"}  # fmt: skip
    assert set(copied) == set(PUBLIC) | made
    everything = "".join(copied.values())
    for text in PRIVATE.values():
        assert text not in everything


async def test_users_are_the_image_s_own(machine: Path, tmp_path: Path) -> None:
    passwd = texts(await layer_of(machine, tmp_path / "images"))["etc/passwd"]
    assert [line.split(":")[0] for line in passwd.splitlines()] == ["root", "dev", "nobody"]
    assert f"dev:x:{UID}:{UID}:dev:{HOME}:/bin/bash" in passwd


@pytest.mark.parametrize("mode", [0o600, 0o640, 0o660])
async def test_a_file_that_not_everybody_may_read_is_not_copied(machine: Path, tmp_path: Path, mode: int) -> None:
    write(machine / "etc/vim/secrets.vim", "let token = 'secret'", mode)
    write(machine / "etc/npmrc", "cafile=/etc/ssl/ca.pem", mode)
    copied = texts(await layer_of(machine, tmp_path / "images"))
    assert "etc/vim/secrets.vim" not in copied
    assert "etc/npmrc" not in copied
    assert "etc/vim/vimrc" in copied


@pytest.mark.parametrize("closed", ["etc/vim/plugins", "etc/vim", "etc/ssl"])
async def test_what_lies_in_a_folder_that_not_everybody_may_enter_is_not_copied(
    machine: Path, tmp_path: Path, closed: str
) -> None:
    write(machine / "etc/vim/plugins/private.vim", "let token = 'secret'")
    (machine / closed).chmod(0o700)
    copied = texts(await layer_of(machine, tmp_path / "images"))
    assert not [name for name in copied if name.startswith(closed + "/")]


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("etc/pip.conf", "[global]\nindex-url = https://ada:hunter2@mirror.example/simple\n"),
        ("etc/pip.conf", "[global]\nindex-url = https://hunter2@mirror.example/simple\n"),
        ("etc/npmrc", "//registry.example/:_authToken=hunter2\n"),
        ("etc/npmrc", "_auth = aHVudGVyMg==hunter2\n"),
        ("etc/nodejs/npmrc", "//registry.example/:_password=hunter2\n"),
        ("etc/wgetrc", "http_proxy = http://ada:hunter2@proxy.example:3128/\n"),
        ("etc/wgetrc", "http_password = hunter2\n"),
        ("etc/environment", 'https_proxy="http://ada:hunter2@proxy.example:3128"\n'),
        ("etc/environment", "AWS_SECRET_ACCESS_KEY=hunter2\n"),
        ("etc/environment", "GITHUB_TOKEN=hunter2\n"),
        ("etc/profile", "export http_proxy=http://ada:hunter2@proxy.example:3128\n"),
        ("etc/bash.bashrc", "export http_proxy=http://ada:hunter2@proxy.example:3128\n"),
        ("etc/maven/settings.xml", "<server><username>ada</username><password>hunter2</password></server>\n"),
    ],
)
async def test_a_configuration_with_credentials_is_not_copied(
    machine: Path, tmp_path: Path, name: str, text: str
) -> None:
    write(machine / name, text)
    copied = texts(await layer_of(machine, tmp_path / "images"))
    assert not [file for file, content in copied.items() if "hunter2" in content]


async def test_links_are_kept_as_links_and_not_followed(machine: Path, tmp_path: Path) -> None:
    (machine / "etc/localtime").symlink_to("/usr/share/zoneinfo/Europe/Berlin")
    (machine / "etc/timezone").symlink_to("../home/ada/.netrc")
    (machine / "etc/fonts").symlink_to("../home/ada")
    (machine / "etc/ssl/certs/link.pem").symlink_to("../private/server.key")
    layer = await layer_of(machine, tmp_path / "images")
    assert str((layer / "etc/localtime").readlink()) == "/usr/share/zoneinfo/Europe/Berlin"
    assert str((layer / "etc/timezone").readlink()) == "../home/ada/.netrc"
    assert str((layer / "etc/fonts").readlink()) == "../home/ada"
    assert str((layer / "etc/ssl/certs/link.pem").readlink()) == "../private/server.key"
    assert str((layer / "bin").readlink()) == "usr/bin"
    assert not (layer / "etc/ssl/private").exists()
    assert not (layer / "home/ada").exists()


async def test_special_files_and_very_large_ones_are_left_out(machine: Path, tmp_path: Path) -> None:
    os.mkfifo(machine / "etc/vim/pipe", 0o644)
    write(machine / "etc/vim/large", "x" * (4 * 1024 * 1024 + 1))
    layer = await layer_of(machine, tmp_path / "images")
    assert sorted(path.name for path in (layer / "etc/vim").iterdir()) == ["vimrc"]


async def test_no_file_keeps_a_mode_that_gives_more_than_reading(machine: Path, tmp_path: Path) -> None:
    write(machine / "etc/vim/tool", "#!/bin/sh\n", 0o6777)
    layer = await layer_of(machine, tmp_path / "images")
    assert (layer / "etc/vim/tool").stat().st_mode & 0o7777 == 0o755
    assert (layer / "etc/vim/vimrc").stat().st_mode & 0o7777 == 0o644


async def test_the_digest_is_the_same_for_the_same_machine_and_changes_with_it(machine: Path, tmp_path: Path) -> None:
    first = await layer_of(machine, tmp_path / "images")
    assert await layer_of(machine, tmp_path / "images") == first
    assert (await layer_of(machine, tmp_path / "elsewhere")).name == first.name
    write(machine / "etc/os-release", "ID=fedora\n")
    image = HostImage(tmp_path / "images", machine)
    (second,) = (await image.prepare("host")).layers
    assert second.name != first.name
    assert first.exists(), "sandboxes may still use it"
    assert not (tmp_path / "images" / "host.new").exists()


async def test_a_layout_that_was_interrupted_is_begun_anew(machine: Path, tmp_path: Path) -> None:
    write(tmp_path / "images/host.new/etc/shadow", "left over")
    assert "etc/shadow" not in texts(await layer_of(machine, tmp_path / "images"))


async def test_an_image_of_another_name_is_refused(machine: Path, tmp_path: Path) -> None:
    with pytest.raises(Permanent, match=r"'nixos'.*'host'") as refused:
        await HostImage(tmp_path / "images", machine).prepare("nixos")
    assert refused.value.code == "no_such_image"


async def test_the_machine_s_programs_are_bound_and_authorities_named(machine: Path, tmp_path: Path) -> None:
    image = await HostImage(tmp_path / "images", machine).prepare("host")
    assert image.binds == ((machine / "usr", "/usr"),)
    assert dict(image.environment)["SSL_CERT_FILE"] == "/etc/ssl/certs/ca-certificates.crt"
    (machine / "etc/ssl/certs/ca-certificates.crt").unlink()
    without = await HostImage(tmp_path / "images", machine).prepare("host")
    assert "SSL_CERT_FILE" not in dict(without.environment)


async def test_it_is_always_here_and_named_by_its_content(machine: Path, tmp_path: Path) -> None:
    images = HostImage(tmp_path / "images", machine)
    image = await images.find("host")
    assert image == await images.prepare("host")
    assert image is not None
    assert image.digest == image.layers[0].name
    assert await images.find("nixos") is None


async def test_everything_runs_as_the_image_s_own_user(machine: Path, tmp_path: Path) -> None:
    image = await HostImage(tmp_path / "images", machine).prepare("host")
    assert (image.user.name, image.user.uid, image.user.home) == ("dev", UID, HOME)
    assert {user.name for user in image.users} == {"root", "dev"}
