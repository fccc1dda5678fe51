"""How does a cluster get another version of k3s, node after node, without losing its quorum?"""
