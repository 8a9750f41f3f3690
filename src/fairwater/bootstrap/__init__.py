"""The only place where things are wired together: one module a process."""
