"""What runs on this machine, and in what order. See README.md, "Floor plan"."""

__version__ = "0.1.0"
