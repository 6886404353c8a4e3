"""Boards, alerts and runbooks held against the metrics that the daemon really has."""
