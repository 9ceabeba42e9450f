"""The tabs of the page: each file makes one, from the parts it is given."""
