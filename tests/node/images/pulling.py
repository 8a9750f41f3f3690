"""An agent's images in a process of their own, which can be killed: says `under way` once bytes have come.

python -m tests.node.images.pulling DATA_DIR FOLDER ADDRESS PROGRAM HOST
"""

from __future__ import annotations

import asyncio
import sys
from pathlib import Path

from tests.node.images.laboratory import StoreLab, boxes_reaching

from fairwater.domain.workspaces.run import Progress


async def pull(data_dir: Path, folder: Path, address: str, program: Path, host: str) -> None:
    def told(progress: Progress) -> None:
        if progress.step == "pulling image" and progress.done:
            print("under way", flush=True)

    async with (
        boxes_reaching(data_dir, address, program=program) as boxes,
        StoreLab(boxes, folder, address).store(insecure=(host,), stall_s=600.0) as store,
    ):
        await store.prepare(f"{host}/app:1", report=told)


if __name__ == "__main__":
    asyncio.run(pull(Path(sys.argv[1]), Path(sys.argv[2]), sys.argv[3], Path(sys.argv[4]), sys.argv[5]))
