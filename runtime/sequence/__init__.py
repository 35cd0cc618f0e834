"""Splitting the sequence over ranks: Ulysses, ring and what they need."""
