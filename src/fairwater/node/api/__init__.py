"""The node agent's API over HTTP: the table in `ports/agent.py`, and nothing else."""
