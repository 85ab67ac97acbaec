"""Advantage estimators: rewards of a group to advantages."""
