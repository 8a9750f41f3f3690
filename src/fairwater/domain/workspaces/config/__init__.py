"""A repository's configuration, `.gitpod.yml` or `devcontainer.json`, read as what it asks for.

Decides what of it is followed, and says of the rest, with file, line and column, that it is not. Refuses to know where
the files come from, and how anything that they ask for is done. Every byte of them is taken for hostile.
"""

from fairwater.domain.workspaces.config.choice import (
    CANDIDATES,
    FILE_BYTES_MAX,
    explain_configuration,
    read_configuration,
)
from fairwater.domain.workspaces.config.reading import Explanation
from fairwater.domain.workspaces.config.tasks import Stage
from fairwater.domain.workspaces.config.variables import expand, expand_all

__all__ = [
    "CANDIDATES",
    "FILE_BYTES_MAX",
    "Explanation",
    "Stage",
    "expand",
    "expand_all",
    "explain_configuration",
    "read_configuration",
]
