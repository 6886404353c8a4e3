"""Tests of the controller: real store, simulated executor, real threads."""
