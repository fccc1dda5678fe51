"""The ground floor of the house: machine, errors, ids, clock, log. Standard library only."""
