"""Benchmarks: whose problems, by which protocol, beside which published numbers."""
