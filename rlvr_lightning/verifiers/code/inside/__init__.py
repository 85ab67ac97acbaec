"""What runs inside a sandbox: plain modules of the standard library alone, sent there as code; see `code.run`."""
