"""A large language model as judge: the two questions of the paper, and who asks them."""
