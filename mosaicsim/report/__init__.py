"""Showing it: console and plots."""
