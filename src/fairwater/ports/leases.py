"""Which of several servers on one database does what only one may do."""

from __future__ import annotations

from dataclasses import dataclass
from datetime import datetime
from typing import Protocol


@dataclass(frozen=True, slots=True)
class Lease:
    """`holder` may act until `expires_at`, by the database's clock. `epoch` grows with every change of holder: what an
    earlier one still writes is told by it, and refused."""

    name: str
    holder: str
    epoch: int
    expires_at: datetime


class Leases(Protocol):
    """Time is the database's, so that servers whose clocks differ agree. Raises Temporary where that is away."""

    async def acquire(self, name: str, holder: str, for_s: float) -> Lease | None:
        """The lease, where nobody else holds it; None where somebody does. For its own holder, the same one anew."""
        ...

    async def renew(self, lease: Lease, for_s: float) -> Lease | None:
        """The same lease for longer; None where somebody else has taken it since."""
        ...

    async def release(self, lease: Lease) -> None:
        """Lets others have it at once; fine where it has been lost."""
        ...

    async def held(self, name: str) -> Lease | None:
        """Who holds it now, None for nobody."""
        ...
