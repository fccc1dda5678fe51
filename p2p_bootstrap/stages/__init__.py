"""Which steps of the cloud-config run in which stage of the boot, and what do they do? Standard library,
PyYAML and `p2p_network.core` only: this package also runs in the initramfs."""
