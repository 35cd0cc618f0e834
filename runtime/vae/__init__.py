"""A VAE over several ranks: rows of the picture for each, or whole tiles where tiling is on."""
