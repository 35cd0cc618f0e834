"""A backend for ditplan: the two passes of guidance on two ranks."""
