"""Who does what, and how a cluster comes to be. Door-plate: roles/README.md."""
