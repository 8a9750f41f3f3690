"""A small Git LFS store for tests: the batch API and the objects, which can be switched off."""

from __future__ import annotations

import hashlib
import json
from dataclasses import dataclass, field

_TYPE = {"Content-Type": "application/vnd.git-lfs+json"}


@dataclass
class LfsStore:
    """`available` False: every request is answered with 503."""

    objects: dict[str, bytes] = field(default_factory=dict)
    available: bool = True

    def add(self, content: bytes) -> str:
        """Keeps an object; the pointer that stands for it in a repository."""
        oid = hashlib.sha256(content).hexdigest()
        self.objects[oid] = content
        return f"version https://git-lfs.github.com/spec/v1\noid sha256:{oid}\nsize {len(content)}\n"

    def answer(self, method: str, path: str, body: bytes, url: str) -> tuple[int, bytes, dict[str, str]]:
        """Status, body and headers for a request."""
        if not self.available:
            return 503, b'{"message": "away"}', _TYPE
        oid = path.rpartition("/")[2]
        if method == "POST" and path.endswith("/objects/batch"):
            return 200, self._batch(json.loads(body), url), _TYPE
        if method == "GET" and oid in self.objects:
            return 200, self.objects[oid], {"Content-Type": "application/octet-stream"}
        if method == "PUT" and hashlib.sha256(body).hexdigest() == oid:
            self.objects[oid] = body
            return 200, b"", {}
        return 404, b'{"message": "not found"}', _TYPE

    def _batch(self, asked: dict[str, object], url: str) -> bytes:
        operation, answers = str(asked["operation"]), []
        wanted = asked["objects"]
        assert isinstance(wanted, list)
        for each in wanted:
            answer = {"oid": each["oid"], "size": each["size"]}
            if operation == "upload" or each["oid"] in self.objects:
                answer["actions"] = {operation: {"href": f"{url}/lfs-objects/{each['oid']}"}}
            else:
                answer["error"] = {"code": 404, "message": "no such object"}
            answers.append(answer)
        return json.dumps({"transfer": "basic", "objects": answers}).encode()
