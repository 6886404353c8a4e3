"""Decides which jobs run where and when, and keeps the jobs; knows nothing of NVML, prices, or Kubernetes."""
