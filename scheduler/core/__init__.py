"""The pure heart: no clock, no I/O, no logging, no randomness. Read model, events, state, plan, cycle in that order."""
