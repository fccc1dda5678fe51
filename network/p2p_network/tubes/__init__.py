"""How do two programs on two nodes talk through the mesh, without a VPN?"""
