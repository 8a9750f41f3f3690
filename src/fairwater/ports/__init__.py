"""The few protocols between decisions and the world. Each has one contract suite, run on the real thing and a fake."""
