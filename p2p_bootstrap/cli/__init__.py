"""The command line: the only place that prints or exits. `main` maps a verb's name to where it lives."""
