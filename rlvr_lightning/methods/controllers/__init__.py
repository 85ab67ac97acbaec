"""Controllers: one number of one component, moved once an optimizer step by the entropy."""
