"""skopeo's commands, run in a pull's sandbox. Decides nothing about what they bring."""

from __future__ import annotations

import base64
import hashlib
import json
from dataclasses import dataclass

from fairwater.domain.failure import Permanent
from fairwater.domain.images.explain import damaged, explain_failure
from fairwater.domain.images.manifest import Manifest, Platform, choose, parse_manifest
from fairwater.domain.images.reference import Reference
from fairwater.domain.workspaces.secrets import Credential
from fairwater.node.images.sandbox import AUTHFILE, ORIGIN, CommandFailed, PullSandbox

_SKOPEO = ("skopeo", "--insecure-policy", "--override-os=linux")
_INDEXES_MAX = 3


@dataclass(frozen=True, slots=True)
class Registry:
    """A registry as one pull sees it. `insecure`: without TLS, or with a certificate that nobody vouches for."""

    sandbox: PullSandbox
    reference: Reference
    credential: Credential | None
    insecure: bool

    async def sign_in(self) -> None:
        """Hands the credential over by standard input, into the sandbox's memory."""
        if self.credential is None:
            return
        word = base64.b64encode(f"{self.credential.username}:{self.credential.secret}".encode()).decode()
        auth = json.dumps({"auths": {self.reference.host: {"auth": word}}})
        await self.sandbox.run(("sh", "-c", f"umask 077 && cat > {AUTHFILE}"), stdin=auth.encode())

    async def manifest(self, platform: Platform) -> tuple[bytes, str, Manifest]:
        """What the reference stands for now on `platform`: the manifest's bytes, its digest, and what it says.

        Raises:
            Permanent: `no_such_image`, `image_denied`, `no_such_registry`, `wrong_architecture`, `image_damaged`,
                `bad_image`.
            Temporary: `registry_away`.
        """
        wanted = self.reference.digest
        for _ in range(_INDEXES_MAX):
            content = await self._raw(f"@{wanted}" if wanted else f":{self.reference.tag}")
            digest = f"sha256:{hashlib.sha256(content).hexdigest()}"
            if wanted and digest != wanted:
                raise damaged(self.reference, f"for {wanted} its registry sent {digest}")
            found = parse_manifest(content)
            if isinstance(found, Manifest):
                return content, digest, found
            wanted = choose(found, platform).digest
        raise Permanent(f"{self.reference}: its indexes are nested deeper than {_INDEXES_MAX}", code="bad_image")

    async def _raw(self, which: str) -> bytes:
        source = f"docker://{self.reference.source}{which}"
        tls = ("--tls-verify=false",) if self.insecure else ()
        sign_in = (f"--authfile={AUTHFILE}",) if self.credential else ("--no-creds",)
        try:
            return await self.sandbox.run((*_SKOPEO, "inspect", "--raw", *tls, *sign_in, source))
        except CommandFailed as failed:
            raise explain_failure(failed.stderr, self.reference) from failed

    async def copy(self, digest: str) -> None:
        """Brings the image of manifest `digest` into the sandbox's `blobs/`, but for the blobs that are there."""
        tls = ("--src-tls-verify=false",) if self.insecure else ()
        sign_in = (f"--src-authfile={AUTHFILE}",) if self.credential else ("--src-no-creds",)
        where = ("--dest-shared-blob-dir=/workspace/blobs", f"docker://{self.reference.source}@{digest}")
        await _copy(self.sandbox, self.reference, (*tls, *sign_in, *where, "oci:/workspace/image"))


async def copy_archive(sandbox: PullSandbox, reference: Reference, name: str) -> None:
    """Brings the image of the archive `name`, in the folder that the sandbox sees, into its `image/`, as it is."""
    tag = f":{reference.tag}" if reference.tag else ""
    await _copy(sandbox, reference, (f"{reference.kind}:{ORIGIN}/{name}{tag}", "dir:/workspace/image"))


async def _copy(sandbox: PullSandbox, reference: Reference, arguments: tuple[str, ...]) -> None:
    try:
        await sandbox.run((*_SKOPEO, "--tmpdir=/workspace/tmp", "copy", "--quiet", *arguments))
    except CommandFailed as failed:
        if failed.status in {128 + 9, 128 + 15}:
            raise Permanent(
                f"bringing in {reference} was killed, most likely for want of memory", code="bad_image"
            ) from failed
        raise explain_failure(failed.stderr, reference) from failed
