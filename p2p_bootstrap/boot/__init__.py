"""The local module: from a kernel command line to a proven root. Standard library and PyYAML only."""
