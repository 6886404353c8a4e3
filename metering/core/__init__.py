"""Pure arithmetic of usage and money: no clock, no I/O, no floats near either."""
