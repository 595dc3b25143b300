"""Policies that decide which worker loads which expert for which calls; lower bounds on what any can do."""
