"""A large language model as judge: the two questions of the paper, and the client that asks them."""
