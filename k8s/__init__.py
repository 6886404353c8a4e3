"""Speaks Kubernetes: runs allocations as Jobs of a cluster and offers its GPU nodes. Read `api`, `nodes`, `jobs`."""
