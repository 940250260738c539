"""Small models, golden vectors, servers and drivers that tests share."""
