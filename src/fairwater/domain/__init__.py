"""Pure decisions: frozen values in, frozen values out. No IO, no clock, no randomness, no logging."""
