"""One picture a function: each takes a `Table`, draws on a figure, and knows nothing of training."""
