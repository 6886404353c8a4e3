"""Measurements, each printing its set-up. Nothing here is imported by the product or asserted by tests."""
