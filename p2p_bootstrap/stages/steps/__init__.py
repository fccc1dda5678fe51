"""What does each key of a step do? One small module per group of keys; `order` puts them in Kairos's
order."""
