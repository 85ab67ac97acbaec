"""Programs a model wrote, judged by running them on tests in a sandbox."""
