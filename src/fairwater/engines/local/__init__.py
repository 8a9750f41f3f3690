"""The engine of one machine: its node agent, spoken to over a unix socket."""
