"""Speaks Kubernetes: the only package that may import its client. Implements the scheduler's Executor over a cluster."""
