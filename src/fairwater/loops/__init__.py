"""The imperative shell: one module per loop, and the one runner they share."""
