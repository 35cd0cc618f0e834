"""What ships for those who extend ditplan: tests of what they wrote."""
