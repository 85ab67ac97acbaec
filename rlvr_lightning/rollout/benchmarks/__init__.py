"""Benchmarks measured: responses drawn, judged, kept, and gone on from."""
