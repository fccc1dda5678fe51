"""What happens when the world misbehaves. Door-plate: simulations/README.md."""
