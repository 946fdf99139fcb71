"""Speed of this machine: products of matrices, our training step and prediction, and those of other libraries."""
