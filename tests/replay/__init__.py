"""Tests of traces, their files, and the replay."""
