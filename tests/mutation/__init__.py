"""Mutation testing with cosmic-ray: what is drawn (`mutants`), who judges it (`judges`), and the run (`run`)."""
