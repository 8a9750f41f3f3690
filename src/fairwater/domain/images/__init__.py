"""OCI images as text and JSON: references, configuration, and what can go wrong with them."""
