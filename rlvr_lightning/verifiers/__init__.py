"""Verifiers: is a response right?"""
