"""The process that moves packets: TUN super-packets, one AEAD per batch, TCP records, one epoll loop."""
