"""Who is here, and how bytes reach them. Door-plate: network/README.md."""
