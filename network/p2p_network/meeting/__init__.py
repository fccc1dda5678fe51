"""Where do nodes meet that know nothing of each other but a key? Pure: what is said there, how it is read."""
