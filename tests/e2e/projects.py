"""Public projects as their teams would bring them: sources from PyPI and Debian, an image of their own, configuration.

Everything is fetched through the machine's own pip and apt, so that a mirror or a proxy set up there is used.
"""

from __future__ import annotations

import shutil
import subprocess
import sys
from dataclasses import dataclass
from pathlib import Path

PACKAGES = "python3,python3-venv,git,ca-certificates,gcc,make,libc6-dev"


@dataclass(frozen=True)
class Project:
    """`files` are laid over the source; `check` is the project's own test, to be run in the workspace."""

    name: str
    archive: Path
    files: dict[str, str]
    check: str

    def commit(self, folder: Path) -> Path:
        """A git repository of it below `folder`."""
        aside = folder / f"{self.name}.new"
        aside.mkdir()
        subprocess.run(
            ["tar", "--extract", "--no-same-owner", "--file", self.archive, "--directory", aside], check=True
        )
        [top] = aside.iterdir()
        repository = top.rename(folder / self.name)
        aside.rmdir()
        for name, text in self.files.items():
            (repository / name).parent.mkdir(parents=True, exist_ok=True)
            (repository / name).write_text(text)
        git = ["git", "-C", str(repository), "-c", "user.name=T", "-c", "user.email=t@example.org"]
        subprocess.run([*git, "init", "-q", "--initial-branch=main"], check=True)
        subprocess.run([*git, "add", "--force", "."], check=True)
        subprocess.run([*git, "commit", "-qm", "as published"], check=True)
        return repository


def from_pypi(requirement: str, folder: Path) -> Path:
    """The source archive of `NAME==VERSION`."""
    aside = folder / requirement
    command = [sys.executable, "-m", "pip", "download", "--quiet", "--no-deps", "--no-binary", ":all:"]
    if subprocess.run([sys.executable, "-m", "pip", "--version"], capture_output=True, check=False).returncode:
        command[0] = "/usr/bin/python3"
    subprocess.run([*command, "--dest", str(aside), requirement], check=True, capture_output=True)
    return next(aside.glob("*.tar.gz"))


def from_debian(package: str, folder: Path) -> Path:
    """The upstream archive of a source package of the release that this machine's apt knows."""
    apt = folder / "apt"
    (apt / "lists/partial").mkdir(parents=True)
    sources = "\n".join(path.read_text() for path in Path("/etc/apt/sources.list.d").glob("*.sources"))
    classic = Path("/etc/apt/sources.list")
    (apt / "all.sources").write_text(sources.replace("Types: deb\n", "Types: deb-src\n"))
    options = [f"Dir::Etc::SourceList={apt}/all.sources", "Dir::Etc::SourceParts=/dev/null"]
    if not sources:
        (apt / "all.list").write_text(classic.read_text().replace("deb ", "deb-src "))
        options[0] = f"Dir::Etc::SourceList={apt}/all.list"
    options += [f"Dir::State::Lists={apt}/lists", "APT::Sandbox::User=root"]
    command = ["apt-get", "-q", *(part for option in options for part in ("-o", option))]
    subprocess.run([*command, "update"], check=True, capture_output=True, cwd=folder)
    subprocess.run([*command, "source", "--download-only", package], check=True, capture_output=True, cwd=folder)
    return next(folder.glob(f"{package}_*.orig.tar.*"))


def debian_image(folder: Path) -> Path:
    """An OCI layout with the image `base`: Debian with Python and a C compiler, and a user `coder` beside root."""
    root, layout = folder / "root", folder / "layout"
    subprocess.run(
        ["debootstrap", "--variant=minbase", f"--include={PACKAGES}", "bookworm", str(root)],
        check=True, capture_output=True,
    )  # fmt: skip
    subprocess.run(["chroot", str(root), "useradd", "--create-home", "--shell", "/bin/bash", "coder"], check=True)
    # As a company's own image would: its certificates, for pip too.
    shutil.copy("/etc/ssl/certs/ca-certificates.crt", root / "etc/ssl/certs/ca-certificates.crt")
    (root / "etc/pip.conf").write_text("[global]\ncert = /etc/ssl/certs/ca-certificates.crt\n")
    shutil.rmtree(root / "var/cache/apt")
    shutil.rmtree(root / "var/lib/apt/lists")
    (root / "home/coder/.from-image").write_text("kept\n")
    layer = folder / "layer.tar"
    subprocess.run(
        [
            "tar",
            "--create",
            "--file",
            str(layer),
            "--directory",
            str(root),
            "--exclude=./dev/*",
            "--numeric-owner",
            ".",
        ],
        check=True,
    )
    shutil.rmtree(root)
    image = f"{layout}:base"
    subprocess.run(["umoci", "init", "--layout", str(layout)], check=True)
    subprocess.run(["umoci", "new", "--image", image], check=True)
    subprocess.run(["umoci", "raw", "add-layer", "--image", image, str(layer)], check=True)
    layer.unlink()
    return layout


def configured(layout: Path, tag: str, *options: str) -> None:
    """A further image of the layout, with the same layer and settings of its own."""
    subprocess.run(["umoci", "config", "--image", f"{layout}:base", "--tag", tag, *options], check=True)


def push(layout: Path, tag: str, reference: str) -> None:
    subprocess.run(
        ["skopeo", "copy", "--quiet", "--dest-tls-verify=false", f"oci:{layout}:{tag}", f"docker://{reference}"],
        check=True, capture_output=True,
    )  # fmt: skip
