"""What does a cloud-config say, and where does it say it? Standard library, PyYAML and `p2p_network.core`
only: this package also runs in the initramfs."""
