"""Measures GPUs and bills their time; depends on the scheduler's records, never the other way round."""
