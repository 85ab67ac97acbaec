"""What is added to the verifier's reward before the advantage."""
