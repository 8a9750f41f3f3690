"""Fairwater: developer workspaces in the cloud that feel like your own machine, and stay so."""

__version__ = "0.1.0"
