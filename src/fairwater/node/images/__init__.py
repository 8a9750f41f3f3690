"""OCI images on a node: pulled and unpacked in a sandbox, kept as layers that workspaces share."""
