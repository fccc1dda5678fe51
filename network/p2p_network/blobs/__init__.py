"""How does something larger than a frame get from one node to another, whole or not at all?"""
