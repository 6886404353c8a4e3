"""Speaks Kubernetes: the only package that may import its client; runs allocations as Jobs of a cluster."""
