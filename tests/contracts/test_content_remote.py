"""The contract of `ports.content.Content` on real git, SSH and LFS servers: what a URL asks for, who may have it."""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
from collections.abc import AsyncIterator, Callable, Iterator, Mapping
from dataclasses import dataclass, field, replace
from pathlib import Path

import pytest
from tests.servers.address import own_address
from tests.servers.git_server import GitServer, ServedRepository, git, git_server, module
from tests.servers.git_ssh import SshServer, new_key, ssh_server

from fairwater.bootstrap.node import open_node
from fairwater.data_dir import DataDir
from fairwater.domain.failure import Permanent
from fairwater.domain.ids import RunNumber, WorkspaceId
from fairwater.domain.units import MIB, Bytes
from fairwater.domain.workspaces.classes import WorkspaceClass
from fairwater.domain.workspaces.git_urls import source_of
from fairwater.domain.workspaces.notice import Level
from fairwater.domain.workspaces.run import Progress, Source
from fairwater.domain.workspaces.secrets import Credential, CredentialKind, RunSecrets
from fairwater.domain.workspaces.setup import AdditionalRepository, Brought, Wanted
from fairwater.node.content import SandboxedContent
from fairwater.node.host_image import HostImage
from fairwater.node.instance import claim_instance
from fairwater.node.plain.content import PlainContent
from fairwater.node.plain.volumes import PlainVolumes
from fairwater.node.sandboxes import ParkedSandboxes
from fairwater.node.secrets import FileSecrets
from fairwater.node.volumes import BtrfsVolumes
from fairwater.ports.content import Content
from fairwater.ports.process import ExecRequest
from fairwater.ports.sandboxes import Admission, Tenant
from fairwater.ports.volumes import Volumes
from fairwater.settings import load_settings

pytestmark = pytest.mark.long

WORKSPACE = WorkspaceId("abcdefgh2345")
LIMITS = WorkspaceClass("test", cpu_cores=1, memory=Bytes(512 * MIB), processes=256, disk=Bytes(256 * MIB))
WITHIN_S = 30.0
TOKEN = "s3cret-t0ken-0123456789"
ISOLATED = pytest.param("sandboxed", marks=pytest.mark.root)


@dataclass
class Remote:
    """`root` is an attached, empty volume's; `secrets` are what the run is given."""

    make: Callable[[float], Content]
    root: Path
    keeper: FileSecrets
    git: GitServer
    ssh: SshServer
    images: HostImage
    sandboxes: ParkedSandboxes | None
    content: Content = field(init=False)
    progress: list[Progress] = field(default_factory=list)
    files: Mapping[str, bytes] = field(default_factory=dict)
    """The configuration files that were read."""

    def __post_init__(self) -> None:
        self.content = self.make(WITHIN_S)

    async def bring(
        self, source: Source | str | None, wanted: Wanted = Wanted(), dotfiles: Source | None = None
    ) -> Brought:
        def configure(files: Mapping[str, bytes]) -> Wanted:
            self.files = files
            return wanted

        source = source_of(source) if isinstance(source, str) else source
        return await self.content.bring(
            WORKSPACE, RunNumber(1), source, dotfiles, self.root, self.log, self.progress.append, configure
        )

    def trust(self, *credentials: Credential) -> None:
        self.keeper.put(WORKSPACE, RunSecrets(credentials))

    def hurried(self) -> Remote:
        """The same, with little time."""
        hurried = replace(self)
        hurried.content = self.make(3.0)
        return hurried

    async def inside(self, script: str) -> tuple[int, str]:
        """Exit status and words of a script in the workspace itself."""
        assert self.sandboxes is not None
        image = await self.images.prepare("host")
        sandbox = await self.sandboxes.claim(Tenant(WORKSPACE, RunNumber(1)), image)
        try:
            await self.sandboxes.admit(sandbox, Admission(LIMITS, self.root, {}, "/workspace"))
            process = await self.sandboxes.exec(sandbox, ExecRequest(("sh", "-c", script)))
            await process.write(b"")
            said = b"".join([chunk async for _, chunk in process.output()])
            return await process.wait(), said.decode("utf-8", "replace")
        finally:
            await self.sandboxes.remove(sandbox)

    @property
    def log(self) -> Path:
        return self.root / "state" / "run-1.log"

    @property
    def host(self) -> str:
        return self.git.url.removeprefix("http://")

    def token(self, secret: str = TOKEN, *, host: str = "", plain_http: bool = True) -> Credential:
        return Credential(CredentialKind.TOKEN, host or self.host, "jo", secret, plain_http)

    def place(self, name: str = "repo") -> Path:
        return self.root / "workspace" / name

    def read(self, path: str) -> str:
        return (self.root / "workspace" / path).read_text()

    def run_git(self, *arguments: str, place: str = "repo") -> str:
        command = ("git", "-c", "safe.directory=*", "-C", str(self.place(place)), *arguments)
        environment = {"PATH": os.environ["PATH"], "HOME": "/nonexistent", "GIT_CONFIG_NOSYSTEM": "1"}
        return subprocess.run(command, env=environment, check=True, capture_output=True, text=True).stdout.strip()


@pytest.fixture
def address(request: pytest.FixtureRequest) -> Iterator[str]:
    if request.node.callspec.params["remote"] == "plain":
        yield "127.0.0.1"
        return
    with own_address() as own:
        yield own


@pytest.fixture
def servers(tmp_path: Path, address: str) -> Iterator[tuple[GitServer, SshServer]]:
    with git_server(tmp_path / "git", address) as served, ssh_server(tmp_path / "ssh", address) as ssh:
        yield served, ssh


@pytest.fixture(params=["plain", ISOLATED])
async def remote(
    request: pytest.FixtureRequest, tmp_path: Path, servers: tuple[GitServer, SshServer]
) -> AsyncIterator[Remote]:
    served, ssh = servers
    origin = (tmp_path / "origin",)
    images = HostImage(tmp_path / "images")
    sandboxes: ParkedSandboxes | None = None
    async with contextlib.AsyncExitStack() as opened:
        volumes: Volumes
        if request.param == "sandboxed":
            instance = claim_instance(tmp_path)
            ports = [served.url.rpartition(":")[2], str(ssh.port)]
            flags = {"node.parked": 1, "network.allow": [f"{ssh.address}/32:{port}" for port in ports]}
            settings = load_settings(environment={}, flags=flags)
            node = await opened.enter_async_context(open_node(settings, DataDir(tmp_path), instance))
            assert isinstance(node.sandboxes, ParkedSandboxes)
            sandboxes = node.sandboxes
            keeper = FileSecrets(instance.folder / "secrets")
            volumes = BtrfsVolumes(tmp_path / "node/volumes")
        else:
            keeper = FileSecrets(tmp_path / "secrets")
            volumes = PlainVolumes(tmp_path / "volumes")

        def make(timeout_s: float) -> Content:
            if sandboxes is not None:
                return SandboxedContent(sandboxes, images, keeper, origin, timeout_s=timeout_s)
            return PlainContent(origin, keeper, timeout_s=timeout_s)

        await volumes.create(WORKSPACE, Bytes(256 * MIB))
        root = (await volumes.attach(WORKSPACE, Bytes(256 * MIB))).root
        assert root is not None
        yield Remote(make, root, keeper, served, ssh, images, sandboxes)
        keeper.forget(WORKSPACE)
        await volumes.delete(WORKSPACE)


@pytest.fixture
def repository(remote: Remote) -> ServedRepository:
    return remote.git.repository("org/repo")


# --- what a URL asks for --------------------------------------------------------------------------------------------


async def test_a_pull_request_of_a_host_of_ones_own_is_checked_out(
    remote: Remote, repository: ServedRepository
) -> None:
    commit = repository.commit({"pull.txt": "pull\n"}, branch="aside")
    repository.hide_under("refs/pull/12/head", commit)
    brought = await remote.bring(f"{remote.git.url}/org/repo/pull/12/files")
    assert (brought.repository, brought.notices) == ("repo", ())
    assert remote.read("repo/pull.txt") == "pull\n"
    assert remote.run_git("symbolic-ref", "--short", "HEAD") == "pull/12"
    assert remote.run_git("config", "branch.pull/12.merge") == "refs/pull/12/head"


async def test_a_merge_request_of_a_nested_group_is_checked_out(remote: Remote) -> None:
    nested = remote.git.repository("group/sub/repo")
    nested.hide_under("refs/merge-requests/5/head", nested.commit({"merge.txt": "merge\n"}, branch="aside"))
    await remote.bring(f"{remote.git.url}/group/sub/repo/-/merge_requests/5")
    assert remote.read("repo/merge.txt") == "merge\n"


async def test_a_pull_request_that_is_not_there_is_told(remote: Remote, repository: ServedRepository) -> None:
    with pytest.raises(Permanent) as told:
        await remote.bring(f"{repository_url(remote)}/pull/99")
    assert told.value.code == "no_such_ref"
    assert remote.content.brought(remote.root) is None


async def test_a_branch_with_slashes_and_a_folder_are_told_apart(remote: Remote, repository: ServedRepository) -> None:
    repository.commit({"src/lib/x.py": "x\n", "src/y.py": "y\n"}, branch="feature/a")
    brought = await remote.bring(f"{repository_url(remote)}/tree/feature/a/src/lib")
    assert brought == Brought("repo", "src/lib")
    assert remote.run_git("symbolic-ref", "--short", "HEAD") == "feature/a"


async def test_a_files_page_leads_to_its_folder(remote: Remote, repository: ServedRepository) -> None:
    repository.commit({"src/lib/x.py": "x\n"}, branch="feature/a")
    brought = await remote.bring(f"{repository_url(remote)}/blob/feature/a/src/lib/x.py#L1")
    assert brought.subfolder == "src/lib"


async def test_a_folder_at_a_commit_that_is_shortened_is_found(remote: Remote, repository: ServedRepository) -> None:
    commit = repository.commit({"src/x.py": "old\n"})
    repository.commit({"src/x.py": "new\n"})
    brought = await remote.bring(f"{repository_url(remote)}/tree/{commit[:10]}/src")
    assert brought.subfolder == "src"
    assert remote.read("repo/src/x.py") == "old\n"


@pytest.mark.parametrize("page", ["tree/main/nowhere", "tree/main/link/x"])
async def test_a_folder_that_is_not_there_is_told_and_not_fatal(
    remote: Remote, repository: ServedRepository, page: str
) -> None:
    (repository.work / "link").symlink_to("/etc")
    repository.commit({})
    brought = await remote.bring(f"{repository_url(remote)}/{page}")
    assert brought.subfolder == ""
    assert [notice.code for notice in brought.notices] == ["no_such_folder"]


async def test_a_ref_that_no_branch_begins_is_told(remote: Remote, repository: ServedRepository) -> None:
    with pytest.raises(Permanent) as told:
        await remote.bring(f"{repository_url(remote)}/tree/nowhere/src")
    assert told.value.code == "no_such_ref"
    assert "nowhere/src" in told.value.message


async def test_an_empty_repository_is_brought_in(remote: Remote, repository: ServedRepository) -> None:
    repository.hide_under("refs/hidden/x", repository.commit({}))
    git(repository.bare, "update-ref", "-d", "refs/heads/main")
    brought = await remote.bring(repository_url(remote))
    assert brought == Brought("repo")


# --- submodules -----------------------------------------------------------------------------------------------------


async def test_submodules_are_brought_in_at_every_level(remote: Remote, repository: ServedRepository) -> None:
    inner, outer = remote.git.repository("org/inner"), remote.git.repository("other/outer")
    inner_commit = inner.commit({"inner.txt": "inner\n"})
    inner.commit({"inner.txt": "later\n"})
    outer_commit = outer.link(
        {"deep/inner": inner_commit}, module("inner", "deep/inner", f"{remote.git.url}/org/inner")
    )
    repository.link({"lib/outer": outer_commit}, module("outer", "lib/outer", "../../other/outer"))
    brought = await remote.bring(repository_url(remote))
    assert brought.notices == ()
    assert remote.read("repo/lib/outer/deep/inner/inner.txt") == "inner\n"
    assert remote.run_git("status", "--porcelain") == ""
    assert "+" not in remote.run_git("submodule", "status", "--recursive")


async def test_a_submodule_that_is_missing_is_told_and_the_others_are_there(
    remote: Remote, repository: ServedRepository
) -> None:
    lib = remote.git.repository("org/lib")
    modules = module("gone", "gone", "../gone") + module("lib", "lib", "../lib")
    commit = lib.commit({"lib.txt": "lib\n"})
    repository.link({"gone": commit, "lib": commit}, modules)
    brought = await remote.bring(repository_url(remote))
    assert [(notice.level, notice.code) for notice in brought.notices] == [(Level.ERROR, "submodule_failed")]
    assert "gone" in brought.notices[0].message
    assert remote.read("repo/lib/lib.txt") == "lib\n"


async def test_a_submodule_loop_ends(remote: Remote, repository: ServedRepository) -> None:
    other = remote.git.repository("org/other")
    commit = repository.commit({})
    for _ in range(4):
        commit = other.link({"repo": commit}, module("repo", "repo", "../repo"))
        commit = repository.link({"other": commit}, module("other", "other", "../other"))
    brought = await remote.bring(repository_url(remote))
    assert [(notice.level, notice.code) for notice in brought.notices] == [(Level.WARNING, "submodule_loop")]
    assert (remote.place() / "other/repo/other/README.md").exists()
    assert list((remote.place() / "other/repo/other/repo").iterdir()) == []


HOSTILE_MODULES = [
    module("x", "../../escape", "../lib"),
    module("../../x", "x", "../lib"),
    module("x", "x", "--upload-pack=touch /tmp/fairwater-evidence"),
    module("x", "x", "-u./payload"),
    module("x", "x", "ext::sh -c touch% /tmp/fairwater-evidence"),
    module("x", "x", "file:///etc"),
    module("x", "x", "/etc"),
    module("x", ".git/hooks", "../lib"),
    module("x", "x", "ssh://-oProxyCommand=touch$IFS/tmp/fairwater-evidence/x"),
    module("x", "x", "../lib") + "\tupdate = !touch /tmp/fairwater-evidence\n",
    '[submodule "x"]\n\tpath = x\n\turl = "unfinished\n',
    "[submodule\n",
]


@pytest.mark.parametrize("modules", HOSTILE_MODULES)
async def test_hostile_submodules_do_no_harm(remote: Remote, repository: ServedRepository, modules: str) -> None:
    lib = remote.git.repository("org/lib")
    repository.link({"x": lib.commit({"lib.txt": "lib\n"})}, modules)
    brought = await remote.bring(repository_url(remote))
    assert {notice.code for notice in brought.notices} <= {"submodule_refused", "submodule_failed"}
    assert brought.notices or "update = !" in modules  # that, git itself does not take from there
    assert not Path("/tmp/fairwater-evidence").exists()
    assert not (remote.root / "escape").exists()
    assert {path.name for path in (remote.root / "workspace").iterdir()} == {"repo"}
    assert remote.read("repo/README.md") == "first\n"


async def test_an_empty_file_of_submodules_says_nothing(remote: Remote, repository: ServedRepository) -> None:
    repository.commit({".gitmodules": ""})
    assert await remote.bring(repository_url(remote)) == Brought("repo")


# --- large files ----------------------------------------------------------------------------------------------------

ATTRIBUTES = "*.bin filter=lfs diff=lfs merge=lfs -text\n"


async def test_large_files_are_brought_in_and_go_on_working(remote: Remote, repository: ServedRepository) -> None:
    content = os.urandom(200_000)
    repository.commit({".gitattributes": ATTRIBUTES, "sub/big.bin": remote.git.lfs.add(content)})
    brought = await remote.bring(repository_url(remote))
    assert brought.notices == ()
    assert (remote.place() / "sub/big.bin").read_bytes() == content
    assert remote.run_git("config", "--local", "filter.lfs.process") == "git-lfs filter-process"
    assert (remote.place() / ".git/hooks/pre-push").exists()
    assert remote.run_git("status", "--porcelain") == ""


async def test_with_the_large_files_server_away_the_rest_is_there(remote: Remote, repository: ServedRepository) -> None:
    pointer = remote.git.lfs.add(b"big")
    repository.commit({".gitattributes": ATTRIBUTES, "big.bin": pointer})
    remote.git.lfs.available = False
    brought = await remote.bring(repository_url(remote))
    (notice,) = brought.notices
    assert (notice.level, notice.code) == (Level.ERROR, "lfs_unavailable")
    assert "git lfs pull" in notice.message
    assert remote.read("repo/big.bin") == pointer


# --- private repositories -------------------------------------------------------------------------------------------


@pytest.fixture
def private(remote: Remote, repository: ServedRepository) -> ServedRepository:
    remote.git.private.add("org/repo")
    remote.git.accounts["jo"] = TOKEN
    return repository


async def test_a_private_repository_is_cloned_with_the_hosts_token(remote: Remote, private: ServedRepository) -> None:
    remote.trust(remote.token())
    brought = await remote.bring(repository_url(remote))
    assert brought.repository == "repo"
    nothing_of(TOKEN, remote)


async def test_large_files_of_a_private_repository_are_brought_in(remote: Remote, private: ServedRepository) -> None:
    private.commit({".gitattributes": ATTRIBUTES, "big.bin": remote.git.lfs.add(b"big")})
    remote.trust(remote.token())
    brought = await remote.bring(repository_url(remote))
    assert brought.notices == ()
    assert remote.read("repo/big.bin") == "big"
    nothing_of(TOKEN, remote)


async def test_without_a_credential_it_is_told_how_to_add_one(remote: Remote, private: ServedRepository) -> None:
    with pytest.raises(Permanent) as told:
        await remote.bring(repository_url(remote))
    assert told.value.code == "access_denied"
    assert f"fairwater credential add {remote.host}" in told.value.message


async def test_a_token_that_is_wrong_or_expired_is_told(remote: Remote, private: ServedRepository) -> None:
    remote.trust(remote.token("wrong-" + TOKEN))
    with pytest.raises(Permanent) as told:
        await remote.bring(repository_url(remote))
    assert told.value.code == "credential_refused"
    assert TOKEN not in told.value.message
    nothing_of(TOKEN, remote)


async def test_a_token_is_not_sent_without_tls_unless_that_is_allowed(
    remote: Remote, private: ServedRepository
) -> None:
    remote.trust(remote.token(plain_http=False))
    with pytest.raises(Permanent) as told:
        await remote.bring(repository_url(remote))
    assert told.value.code == "access_denied"
    assert not any(authorization for _, authorization in remote.git.asked)


async def test_a_token_is_not_sent_to_another_host(remote: Remote, private: ServedRepository) -> None:
    remote.trust(remote.token(host="git.example.org"))
    with pytest.raises(Permanent):
        await remote.bring(repository_url(remote))
    assert not any(authorization for _, authorization in remote.git.asked)


async def test_the_token_is_in_no_process_list_while_it_is_used(remote: Remote, private: ServedRepository) -> None:
    remote.trust(remote.token())
    remote.git.stalled.add("org/repo/info/lfs")
    private.commit({".gitattributes": ATTRIBUTES, "big.bin": remote.git.lfs.add(b"big")})
    bringing = asyncio.create_task(remote.bring(repository_url(remote)))
    assert await asyncio.to_thread(remote.git.waiting.wait, WITHIN_S)
    seen = [each.read_bytes() for each in Path("/proc").glob("[0-9]*/cmdline") if readable(each)]
    seen += [each.read_bytes() for each in Path("/proc").glob("[0-9]*/environ") if readable(each)]
    remote.git.released.set()
    await bringing
    assert len(seen) > 2
    assert not any(TOKEN.encode() in each for each in seen)


async def test_a_private_repository_is_cloned_with_an_ssh_key(remote: Remote, repository: ServedRepository) -> None:
    remote.trust(Credential(CredentialKind.SSH_KEY, remote.ssh.host, remote.ssh.user, remote.ssh.key))
    brought = await remote.bring(remote.ssh.url_of(repository.bare))
    assert brought == Brought("repo")
    nothing_of(remote.ssh.key.splitlines()[2], remote)


async def test_without_a_key_nobody_elses_is_tried(remote: Remote, repository: ServedRepository) -> None:
    remote.trust(Credential(CredentialKind.SSH_KEY, "git.example.org", "git", remote.ssh.key))
    with pytest.raises(Permanent) as told:
        await remote.bring(remote.ssh.url_of(repository.bare))
    assert told.value.code == "access_denied"


async def test_a_key_that_is_refused_is_told(remote: Remote, repository: ServedRepository, tmp_path: Path) -> None:
    wrong = new_key(tmp_path, "wrong")
    remote.trust(Credential(CredentialKind.SSH_KEY, remote.ssh.host, remote.ssh.user, wrong))
    with pytest.raises(Permanent) as told:
        await remote.bring(remote.ssh.url_of(repository.bare))
    assert told.value.code == "credential_refused"
    assert f"fairwater credential add {remote.ssh.host}" in told.value.message


# --- what a configuration asks for ----------------------------------------------------------------------------------


async def test_the_configuration_files_are_read_and_links_out_are_not_followed(
    remote: Remote, repository: ServedRepository, tmp_path: Path
) -> None:
    (repository.work / ".devcontainer").mkdir()
    (repository.work / ".devcontainer/devcontainer.json").symlink_to("/etc/passwd")
    repository.commit({"config/gitpod.yml": "image: x\n"})
    (repository.work / ".gitpod.yml").symlink_to("config/gitpod.yml")
    repository.commit({})
    await remote.bring(repository_url(remote))
    assert remote.files == {".gitpod.yml": b"image: x\n"}
    assert await remote.content.config_files(remote.root, "repo") == remote.files
    assert await remote.content.config_files(remote.root, "nowhere") == {}


async def test_the_repository_goes_where_its_configuration_says(remote: Remote, repository: ServedRepository) -> None:
    brought = await remote.bring(repository_url(remote), Wanted(checkout="go/src/repo"))
    assert brought.repository == "go/src/repo"
    assert remote.read("go/src/repo/README.md") == "first\n"
    assert await remote.content.has_folder(remote.root, "/workspace/go/src")
    assert not await remote.content.has_folder(remote.root, "/workspace/nowhere")
    assert await remote.content.has_folder(remote.root, "/home/dev")


@pytest.mark.parametrize("checkout", ["../x", "/etc", "a/../../x", ".fairwater-incoming/x", ".git", "a//b"])
async def test_a_place_elsewhere_is_refused(remote: Remote, repository: ServedRepository, checkout: str) -> None:
    brought = await remote.bring(repository_url(remote), Wanted(checkout=checkout))
    assert brought.repository == "repo"
    assert [notice.code for notice in brought.notices] == ["bad_location"]


async def test_additional_repositories_are_brought_in(remote: Remote, repository: ServedRepository) -> None:
    for name in ("org/one", "org/two"):
        remote.git.repository(name)
    more = (
        AdditionalRepository(remote.git.url_of("org/one")),
        AdditionalRepository(remote.git.url_of("org/two"), "b/c"),
    )
    brought = await remote.bring(repository_url(remote), Wanted(repositories=more))
    assert brought == Brought("repo")
    assert remote.read("one/README.md") == "first\n"
    assert remote.read("b/c/README.md") == "first\n"


async def test_what_cannot_be_brought_in_beside_the_repository_is_told(
    remote: Remote, repository: ServedRepository
) -> None:
    remote.git.repository("org/one")
    urls = ["file:///etc", "ext::id", remote.git.url_of("org/gone"), "https://user:pass@h/a/b"]
    more = [AdditionalRepository(url, f"place{number}") for number, url in enumerate(urls)]
    more += [AdditionalRepository(remote.git.url_of("org/one"), place) for place in ("repo", "repo/x", "../x", "one")]
    brought = await remote.bring(repository_url(remote), Wanted(file=".gitpod.yml", repositories=tuple(more)))
    assert [notice.code for notice in brought.notices] == ["repository_failed"] * 7
    assert {notice.file for notice in brought.notices} == {".gitpod.yml"}
    assert not any("user:pass" in notice.message for notice in brought.notices)
    assert {path.name for path in (remote.root / "workspace").iterdir()} == {"repo", "one"}


async def test_dotfiles_are_in_the_home_directory(remote: Remote, repository: ServedRepository) -> None:
    dotfiles = remote.git.repository("jo/dotfiles")
    dotfiles.commit({".bashrc": "alias x=y\n"})
    brought = await remote.bring(repository_url(remote), dotfiles=source_of(remote.git.url_of("jo/dotfiles")))
    assert brought == Brought("repo")
    assert (remote.root / "home/.dotfiles/.bashrc").read_text() == "alias x=y\n"


async def test_dotfiles_that_are_gone_are_told(remote: Remote, repository: ServedRepository) -> None:
    brought = await remote.bring(repository_url(remote), dotfiles=source_of(remote.git.url_of("jo/gone")))
    assert [notice.code for notice in brought.notices] == ["dotfiles_failed"]
    assert not (remote.root / "home/.dotfiles").exists()


async def test_an_additional_repository_that_stalls_does_not_hold_up_the_rest(
    remote: Remote, repository: ServedRepository
) -> None:
    remote.git.stalled.add("org/stalled")
    more = (AdditionalRepository(remote.git.url_of("org/stalled")),)
    bringing = asyncio.create_task(remote.hurried().bring(repository_url(remote), Wanted(repositories=more)))
    assert await asyncio.to_thread(remote.git.waiting.wait, WITHIN_S)
    brought = await bringing
    assert brought.repository == "repo"
    assert [notice.code for notice in brought.notices] == ["repository_failed"]
    assert "took longer" in brought.notices[0].message


async def test_a_repository_that_stalls_is_told(remote: Remote, repository: ServedRepository) -> None:
    remote.git.stalled.add("org/repo")
    with pytest.raises(Permanent) as told:
        await remote.hurried().bring(repository_url(remote))
    assert told.value.code == "clone_failed"
    assert "took longer" in told.value.message
    assert list((remote.root / "workspace").iterdir()) == []


# --- in the workspace itself ----------------------------------------------------------------------------------------


@pytest.mark.parametrize("remote", [ISOLATED], indirect=True)
@pytest.mark.parametrize("way", ["token", "key"])
async def test_a_push_from_inside_is_let_in_by_the_same_credential(
    remote: Remote, private: ServedRepository, way: str
) -> None:
    if way == "token":
        remote.trust(remote.token())
        url = repository_url(remote)
    else:
        remote.trust(Credential(CredentialKind.SSH_KEY, remote.ssh.host, remote.ssh.user, remote.ssh.key))
        url = remote.ssh.url_of(private.bare)
    await remote.bring(url)
    status, said = await remote.inside(
        "cd repo && echo mine > mine.txt && git add mine.txt && "
        "git -c user.name=jo -c user.email=jo@example.org commit --quiet -m mine && git push --quiet origin main; "
        "s=$?; env; exit $s"
    )
    assert status == 0, said
    assert git(private.bare, "show", "main:mine.txt") == "mine"
    for secret in (TOKEN, remote.ssh.key.splitlines()[2]):
        assert secret not in said
        nothing_of(secret, remote)


# --- what is kept ---------------------------------------------------------------------------------------------------


async def test_what_was_brought_is_known_after_a_restart(remote: Remote, repository: ServedRepository) -> None:
    repository.link({"gone": repository.commit({})}, module("gone", "gone", "../gone"))
    brought = await remote.bring(f"{repository_url(remote)}/tree/main")
    assert brought.notices
    assert remote.content.brought(remote.root) == brought
    assert json.loads((remote.root / "state/content-ready").read_bytes())["repository"] == "repo"
    assert await remote.bring(repository_url(remote)) == brought


async def test_a_mark_of_an_older_version_stands_for_the_one_checkout(
    remote: Remote, repository: ServedRepository
) -> None:
    await remote.bring(repository_url(remote))
    (remote.root / "state/content-ready").write_bytes(b"")
    (remote.root / "workspace/notes").mkdir()
    assert remote.content.brought(remote.root) == Brought("repo")


def repository_url(remote: Remote) -> str:
    return remote.git.url_of("org/repo")


def readable(path: Path) -> bool:
    try:
        path.read_bytes()
    except OSError:
        return False
    return True


def nothing_of(secret: str, remote: Remote) -> None:
    """Nothing on the volume holds `secret`, the clone's configuration and the log among it."""
    assert remote.log.exists()
    for folder, _, names in os.walk(remote.root):
        for name in names:
            path = Path(folder) / name
            assert path.is_symlink() or secret.encode() not in path.read_bytes(), path
