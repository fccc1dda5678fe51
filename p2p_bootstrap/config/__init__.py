"""What does this node's configuration ask for? `loading.load` reads it into a frozen model (`model`)."""
