"""stub"""
def bound_of_run(*a): return 1.0
