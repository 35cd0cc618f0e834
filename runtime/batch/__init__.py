"""Splitting the batch, or the calls, of guidance over ranks."""
